"""Worlds drawn from a seed and written in WebQA's file format: of places, and of charts."""

from __future__ import annotations

from ragvl.data.synthetic.charts import write_charts
from ragvl.data.synthetic.places import write_world
from ragvl.data.synthetic.world import SPLITS, Split, split_of

__all__ = ["SPLITS", "Split", "split_of", "write_charts", "write_world"]
