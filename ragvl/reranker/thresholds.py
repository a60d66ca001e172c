"""Where relevance is high enough to keep a document."""

from __future__ import annotations

from typing import Literal

Threshold = Literal["natural"] | float

NATURAL = 0.5  # Yes is likelier than No


def resolve_threshold(threshold: Threshold) -> float:
    """The relevance from which a document is kept.

    Args:
        threshold: "natural" (0.5, the paper's natural threshold) or a probability.

    Raises:
        ValueError: neither "natural" nor a number from 0 to 1.
    """
    if threshold == "natural":
        return NATURAL
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise ValueError(f"threshold={threshold!r}: expected 'natural' or a number from 0 to 1")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} is not a probability; relevance lies in 0..1")
    return float(threshold)
