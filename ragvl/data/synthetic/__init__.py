"""Worlds drawn from a seed and written in WebQA's file format: of places, and of charts."""

from __future__ import annotations

from typing import Any

from ragvl.data.synthetic.charts import Charts
from ragvl.data.synthetic.places import Places
from ragvl.data.synthetic.world import Split, Subject, split_of, write_captions, write_world

SUBJECTS: dict[str, Subject[Any]] = {"places": Places(), "charts": Charts()}

__all__ = [
    "SUBJECTS",
    "Places",
    "Split",
    "Subject",
    "split_of",
    "write_captions",
    "write_world",
]
