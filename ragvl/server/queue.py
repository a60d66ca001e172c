"""What waits for the model thread: jobs in fair turns."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Lane = Literal["score", "warm"]
# So many passes of scoring go before one of warming, where both wait: warming is never starved
_SCORING_IN_A_ROW = 16


class Job:
    """One request's work for the model thread: items, each of which gets a result.

    Attributes:
        kind: what the work is, for estimates.
        lane: of scoring, which goes first, or of warming.
        items: pairs, documents, or one function.
        whole: whether it runs alone, in a pass of its own, as a function does.
        deadline: by when it is to be done, a moment of `time.monotonic()`; None: at any time.
        results: by item; None where there is none yet.
        error: what ended the whole job.
        submitted, started, ended: moments of `time.monotonic()`, None before they come.
    """

    def __init__(
        self,
        kind: str,
        items: Sequence[Any],
        *,
        lane: Lane = "score",
        whole: bool = False,
        deadline: float | None = None,
        done: Callable[[], object] = lambda: None,
    ) -> None:
        self.kind = kind
        self.lane = lane
        self.items = items
        self.whole = whole
        self.deadline = deadline
        self.results: list[Any] = [None] * len(items)
        self.error: BaseException | None = None
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.ended: float | None = None
        self.tell_done = done
        self.waiting = deque(range(len(items)))  # places of items that are in no pass yet
        self.num_running = 0
        self.turn_left = 0

    @property
    def num_left(self) -> int:
        """How many items have no result yet."""
        return len(self.waiting) + self.num_running


@dataclass(frozen=True)
class Piece:
    """Part of a job in a pass.

    Attributes:
        job: the job.
        places: of the items in it.
    """

    job: Job
    places: Sequence[int]

    @property
    def items(self) -> list[Any]:
        """What is to be computed."""
        return [self.job.items[place] for place in self.places]


class Queue:
    """Jobs that wait, and what of them is in a pass. No lock: its user has one.

    Each job in a lane gives up to `turn` items and then goes to the end of its lane: a job of no
    more items runs in the order in which it came, and a large one holds nobody back for longer.

    Args:
        turn: how many items a job gives before it is another's turn.

    Attributes:
        num_items: how many items of each lane have no result yet, those in a pass included.
        num_waiting: how many items of each kind are in no pass yet.
    """

    def __init__(self, turn: int) -> None:
        self._turn = turn
        self._lanes: dict[Lane, OrderedDict[Job, None]] = {
            "score": OrderedDict(),
            "warm": OrderedDict(),
        }
        self._jobs: set[Job] = set()  # that are not over
        self._scoring_passes = 0  # since the last of warming
        self.num_items: Counter[Lane] = Counter()
        self.num_waiting: Counter[str] = Counter()

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return any(self._lanes.values())

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is in a pass."""
        return not self._jobs

    def num_jobs(self, lane: Lane) -> int:
        """How many jobs of a lane have items that wait."""
        return len(self._lanes[lane])

    def waiting(self, lane: Lane) -> list[Job]:
        """The jobs of a lane of which items wait, in turn."""
        return list(self._lanes[lane])

    def add(self, job: Job) -> None:
        """Puts a job at the end of its lane."""
        job.turn_left = self._turn
        self._jobs.add(job)
        self._lanes[job.lane][job] = None
        self.num_items[job.lane] += len(job.items)
        self.num_waiting[job.kind] += len(job.items)

    def take(self, most: Mapping[Lane, int]) -> list[Piece]:
        """What the next pass computes: at most so many items of one lane, or one whole job."""
        name = self._next_lane()
        lane, room = self._lanes[name], most[name]
        pieces: list[Piece] = []
        while lane and room:
            job = next(iter(lane))
            if job.whole and pieces:
                break
            count = len(job.waiting) if job.whole else min(room, job.turn_left, len(job.waiting))
            pieces.append(Piece(job, [job.waiting.popleft() for _ in range(count)]))
            self.num_waiting[job.kind] -= count
            job.num_running += count
            job.turn_left -= count
            room -= count
            if job.turn_left == 0:  # also of one that leaves: it may be put back
                job.turn_left = self._turn
                lane.move_to_end(job)
            if not job.waiting:
                del lane[job]
            if job.whole:
                break
        self._note_started(pieces)
        return pieces

    def _next_lane(self) -> Lane:
        warming_waited = self._scoring_passes >= _SCORING_IN_A_ROW
        if not self._lanes["warm"]:
            self._scoring_passes = 0
        elif warming_waited or not self._lanes["score"]:
            self._scoring_passes = 0
            return "warm"
        else:
            self._scoring_passes += 1
        return "score"

    def _note_started(self, pieces: Sequence[Piece]) -> None:
        now = time.monotonic()
        for piece in pieces:
            if piece.job.started is None:
                piece.job.started = now

    def put_back(self, pieces: Sequence[Piece]) -> None:
        """Has items of a pass wait again, before the others of their jobs that go on.

        Their jobs keep their places in the lane, or go to its end if nothing of them waits.
        """
        for job, places in ((piece.job, piece.places) for piece in reversed(pieces)):
            job.num_running -= len(places)
            if job in self._jobs:
                job.waiting.extendleft(reversed(places))
                self.num_waiting[job.kind] += len(places)
                self._lanes[job.lane].setdefault(job)
            else:
                self.num_items[job.lane] -= len(places)

    def finish(self, pieces: Sequence[Piece]) -> list[Job]:
        """Takes the pieces of a pass as done, and gives the jobs that are over by it.

        A job with an error is over at once, and one that was cancelled already is.
        """
        over = []
        for job, places in ((piece.job, piece.places) for piece in pieces):
            job.num_running -= len(places)
            self.num_items[job.lane] -= len(places)
            if job in self._jobs and (job.error is not None or job.num_left == 0):
                self._remove(job)
                over.append(job)
        return over

    def cancel(self, job: Job) -> None:
        """Takes out what of a job is in no pass yet; nothing where it is over."""
        if job not in self._jobs:
            return
        self._remove(job)

    def cancel_all(self) -> list[Job]:
        """Cancels every job, and gives them."""
        jobs = list(self._jobs)
        for job in jobs:
            self.cancel(job)
        return jobs

    def _remove(self, job: Job) -> None:
        self._jobs.discard(job)
        self._lanes[job.lane].pop(job, None)
        self.num_items[job.lane] -= len(job.waiting)
        self.num_waiting[job.kind] -= len(job.waiting)
        job.waiting.clear()
