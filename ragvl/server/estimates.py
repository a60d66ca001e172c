"""How long work takes, by what the last of its kind took."""

from __future__ import annotations

_WEIGHT = 0.3  # of the newest measurement: a change of load shows within a few passes


class Rates:
    """Seconds an item, by kind of work: exponentially weighted means."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def note(self, kind: str, count: int, seconds: float) -> None:
        """Takes in that `count` items of a kind took so many seconds."""
        measured = seconds / count
        known = self._seconds.get(kind, measured)
        self._seconds[kind] = known + _WEIGHT * (measured - known)

    def seconds(self, kind: str, count: int = 1) -> float:
        """What `count` items of a kind are expected to take; 0 where none was measured yet."""
        return count * self._seconds.get(kind, 0.0)
