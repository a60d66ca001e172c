"""How long work takes, by what the last of its kind took."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

from ragvl.server.queue import Job

_WEIGHT = 0.3  # of the newest measurement: a change of load shows within a few passes


class Rates:
    """Seconds an item, by kind of work: exponentially weighted means, and how far off they were."""

    def __init__(self) -> None:
        self._means: dict[str, float] = {}
        self._deviations: dict[str, float] = {}

    def note(self, kind: str, count: int, seconds: float) -> None:
        """Takes in that `count` items of a kind took so many seconds."""
        measured = seconds / count
        mean = self._means.get(kind, measured)
        deviation = self._deviations.get(kind, 0.0)
        self._deviations[kind] = deviation + _WEIGHT * (abs(measured - mean) - deviation)
        self._means[kind] = mean + _WEIGHT * (measured - mean)

    def seconds(self, kind: str, count: int = 1) -> float:
        """What `count` items of a kind are expected to take; 0 where none was measured yet."""
        return count * self._means.get(kind, 0.0)

    def most_seconds(self, kind: str, count: int = 1) -> float:
        """What they will seldom take more than: the steadier the last passes, the less it is.

        As TCP estimates when an answer is late.
        """
        return self.seconds(kind, count) + 4 * count * self._deviations.get(kind, 0.0)


def late_jobs(jobs: Sequence[Job], rates: Rates, most: int) -> Iterator[tuple[Job, float]]:
    """Jobs that have not begun and would not be done by their deadlines, for what is before them.

    Work on them would make others late as well. A job that takes longer than it has, by itself, is
    not among them: nobody else is why it is late.

    Args:
        jobs: of one lane, in turn.
        rates: what they are expected to take.
        most: items of one pass; a job is over with the pass that its last item is in.

    Yields:
        Each with how many seconds of work are before its end.
    """
    now = time.monotonic()
    behind = sum(len(job.waiting) for job in jobs if not job.whole)
    ahead, place = 0.0, 0
    for job in jobs:
        count, shared = len(job.waiting), 0 if job.whole else len(job.waiting)
        behind -= shared
        own = rates.most_seconds(job.kind, count)
        rest = 0 if job.whole else min(behind, -(place + count) % most)
        done = now + ahead + rates.most_seconds(job.kind, count + rest)
        due = math.inf if job.deadline is None else job.deadline
        if job.started is None and done > due >= job.submitted + own:
            yield job, ahead + own
        else:
            ahead += rates.seconds(job.kind, count)
            place += shared
