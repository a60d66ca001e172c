"""A world of fictional places, drawn from a seed and written in WebQA's file format."""

from __future__ import annotations

from ragvl.data.synthetic.places import write_world
from ragvl.data.synthetic.world import SPLITS, Split, split_of

__all__ = ["SPLITS", "Split", "split_of", "write_world"]
