"""The one thread that calls the model, and the bounded queue before it.

Requests await `score`, `warm` and `run`. What they ask for waits in a `Queue`; whenever the thread
is free it takes a pass of what is there, of several requests in fair turns, and computes it with
one call of the reranker. No pass waits for company. A score has the same bits in any company, so
who shares a pass does not matter. Awaiting is all that a request does: if its task is cancelled,
what it asked for and is in no pass yet leaves the queue at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakSet

from ragvl.data.document import Document
from ragvl.data.query import Query
from ragvl.server.backend import Backend, Scored
from ragvl.server.errors import DeadlineExceeded, Overloaded, ShuttingDown, TooLarge
from ragvl.server.estimates import Rates, late_jobs
from ragvl.server.metrics import Metrics
from ragvl.server.passes import Compute, Passes
from ragvl.server.queue import Job, Lane, Piece, Queue
from ragvl.server.settings import EngineLimits

if TYPE_CHECKING:
    from ragvl.reranker import Reranker

logger = logging.getLogger(__name__)

T = TypeVar("T")
# A request may be let in whose work is expected to be done in so much of the time that it has: a
# queue is shorter than its deadlines, for the model may become slower than it was
_SHARE_OF_TIME = 0.75


class Engine(Backend):
    """Computes requests' work, in turn, in a thread of its own; see the head of this module.

    Args:
        reranker: what it scores with; nobody else may use it meanwhile.
        limits: how much may wait, and how it is cut into passes.
        metrics: gets its figures.
    """

    def __init__(
        self, reranker: Reranker, limits: EngineLimits, metrics: Metrics | None = None
    ) -> None:
        super().__init__()
        self._reranker = reranker
        self._limits = limits
        self._metrics = metrics or Metrics()
        self._queue = Queue(limits.turn_pairs)
        self._passes = Passes(limits.pass_pairs, self._metrics.out_of_memory.inc)
        self._rates = Rates()
        self._scored: WeakSet[Document] = WeakSet()
        self._work = threading.Condition()  # guards all that follows, and the queue
        self._pass: tuple[float, float] | None = None  # when it began, and is expected to end
        self._closed = False
        self._thread = threading.Thread(target=self._live, name="ragvl-model", daemon=True)
        self._publish()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    # What requests call, in the event loop

    async def score(
        self,
        pairs: Sequence[tuple[Query, Document]],
        *,
        deadline: float | None = None,
    ) -> Scored:
        """Scores pairs.

        Args:
            pairs: may be empty.
            deadline: a moment of `time.monotonic()`; what would not be done by then is refused.

        Raises:
            Overloaded: there is no room, or too much waits.
            TooLarge: there will never be room for so much at once.
            ShuttingDown: nothing new is accepted.
        """
        job = await self._done("score", "score", pairs, deadline)
        began, ended = job.started or job.submitted, job.ended or job.submitted
        return Scored(job.results, 1e3 * (began - job.submitted), 1e3 * (ended - began))

    async def warm(
        self,
        documents: Sequence[Document],
        *,
        deadline: float | None = None,
    ) -> list[Literal["built", "known"] | Exception]:
        """Computes documents' prefixes, where scoring leaves room; see `score`."""
        job = await self._done("warm", "warm", documents, deadline)
        return job.results

    async def run(
        self, function: Callable[[], T], *, kind: str, deadline: float | None = None
    ) -> T:
        """What `function` gives in the model thread, where it takes its turn among requests.

        Args:
            function: other work for the model, such as an answer that is generated.
            kind: names the work: how long it takes is estimated by the last of its kind.
            deadline: see `score`.

        Raises:
            Exception: what it raised, and see `score`.
        """
        job = await self._done(kind, "score", [function], deadline, whole=True)
        (result,) = job.results
        return result

    async def is_warm(self, document: Document) -> bool:
        """Whether a tier has its prefix, looked at in a thread: tiers have locks, and a disk."""
        return await asyncio.to_thread(self._reranker.is_warm, document)

    def check_room(self, num_pairs: int = 1, deadline: float | None = None) -> None:
        """Raises what `score` would raise now, before more work is put into a request."""
        with self._work:
            self._check_room("score", "score", num_pairs, deadline)

    def close(self) -> None:
        """Ends the thread after its pass; what still waits fails with `ShuttingDown`."""
        with self._work:
            self._draining = self._closed = True
            dropped = self._queue.cancel_all()
            self._work.notify()
        for job in dropped:
            job.error = ShuttingDown()
            job.tell_done()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the thread works, and takes new work."""
        return self._thread.is_alive() and not self._draining

    def seconds_ahead(self) -> float:
        """How long all that waits to be scored is expected to take, in seconds."""
        with self._work:
            return self._seconds_ahead("score")

    @property
    def pass_seconds(self) -> float:
        """How long the pass at work has taken so far; 0 where there is none."""
        began = self._pass
        return time.monotonic() - began[0] if began else 0.0

    def _publish(self) -> None:
        """Has the metrics tell what waits."""
        queue = self._queue
        for name, help_text, value in (
            ("queued_pairs", "Pairs waiting or scored.", lambda: queue.num_items["score"]),
            ("queued_documents", "Documents waiting or warmed.", lambda: queue.num_items["warm"]),
            ("pair_seconds", "What a pair takes.", lambda: self._rates.seconds("score")),
            ("pass_age_seconds", "What the pass at work took so far.", lambda: self.pass_seconds),
            ("pass_limit", "Pairs that a pass may have now.", lambda: self._passes.limit),
        ):
            self._metrics.watch(name, help_text, value)

    @property
    def _is_idle(self) -> bool:
        with self._work:
            return self._queue.is_idle and super()._is_idle

    async def _done(
        self,
        kind: str,
        lane: Lane,
        items: Sequence[Any],
        deadline: float | None,
        *,
        whole: bool = False,
    ) -> Job:
        """A job of these items when it is over, without an error."""
        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(over.set)

        job = Job(kind, items, lane=lane, whole=whole, deadline=deadline, done=tell)
        if not items:
            return job
        with self._work:
            self._check_room(kind, lane, len(items), deadline)
            self._queue.add(job)
            self._work.notify()
        try:
            await over.wait()
        finally:
            with self._work:
                self._queue.cancel(job)
        if job.error is not None:
            raise job.error
        return job

    def _check_room(self, kind: str, lane: Lane, count: int, deadline: float | None) -> None:
        if self._closed:
            raise ShuttingDown
        self._check_accepted()
        held, most = self._queue.num_items[lane], self._limits.max_pairs
        if count > most:
            raise TooLarge(f"the request has {count:,} pairs, and the queue has room for {most:,}")
        if (excess := count + held - most) > 0:
            raise self._overloaded("pairs", self._seconds_ahead(lane) * excess / held)
        if deadline is not None:
            self._check_time(kind, lane, count, deadline)

    def _check_time(self, kind: str, lane: Lane, count: int, deadline: float) -> None:
        """Refuses what would not be done by its deadline for the sake of what waits before it."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the time that the request was given is over")
        ahead = self._seconds_ahead(lane, count)
        late = ahead + self._rates.most_seconds(kind, count) - _SHARE_OF_TIME * left
        if ahead > 0 and late > 0:
            raise self._overloaded("time", min(late, ahead))

    def _overloaded(self, reason: Literal["pairs", "time"], seconds: float) -> Overloaded:
        """The error of what is refused: there is room in so many seconds."""
        self._metrics.refused.labels(reason).inc()
        message = {
            "pairs": "too many pairs wait already",
            "time": "so much waits already that this would not be done by its deadline",
        }[reason]
        return Overloaded(message, retry_after=seconds)

    def _shed_late(self) -> None:
        """Refuses what an estimate that was too good let in, before work is put into it."""
        waiting = self._queue.waiting("score")
        for job, seconds in late_jobs(waiting, self._rates, self._passes.limit):
            job.error = self._overloaded("time", seconds)
            self._queue.cancel(job)
            job.tell_done()

    def _seconds_ahead(self, lane: Lane, count: int | None = None) -> float:
        """What is expected to be computed before new items of a lane, in seconds.

        Args:
            lane: theirs.
            count: how many they are: others take no more turns before these have had theirs. None
                for all that waits.
        """
        waiting = dict(self._queue.num_waiting)
        if lane == "score":
            waiting.pop("warm", None)
            if count is not None and "score" in waiting:
                turn = self._limits.turn_pairs
                turns = self._queue.num_jobs("score") * math.ceil(count / turn)
                waiting["score"] = min(waiting["score"], turns * turn)
        ahead = sum(self._rates.most_seconds(kind, number) for kind, number in waiting.items())
        return ahead + (max(0.0, self._pass[1] - time.monotonic()) if self._pass else 0.0)

    # What the thread does

    def _live(self) -> None:
        """Computes passes until it is closed; the process ends if that cannot go on."""
        try:
            while pieces := self._next_pass():
                self._run(pieces)
        except BaseException:
            # A server whose requests wait for ever is worse than one that is started anew
            logger.critical("the model's thread failed: the server ends", exc_info=True)
            logging.shutdown()
            os._exit(70)

    def _next_pass(self) -> list[Piece]:
        """Waits for work, and takes a pass of it; nothing when the engine is closed."""
        with self._work:
            self._shed_late()
            self._work.wait_for(lambda: self._queue or self._closed)
            if self._closed:
                return []
            most = self._passes.limit
            documents = min(most, self._limits.pass_documents)
            pieces = self._queue.take({"score": most, "warm": documents})
            now = time.monotonic()
            count = sum(len(piece.places) for piece in pieces)
            self._pass = now, now + self._rates.seconds(pieces[0].job.kind, count)
            return pieces

    def _run(self, pieces: Sequence[Piece]) -> None:
        """Computes a pass, and tells the jobs that are over by it."""
        began = time.monotonic()
        try:
            pieces = self._within_builds(pieces)
            self._passes.run(pieces, self._compute(pieces[0].job))
            self._note_scored(pieces)
        except BaseException as error:
            for piece in pieces:
                piece.job.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self._finish(pieces, began)

    def _note_scored(self, pieces: Sequence[Piece]) -> None:
        """Keeps in mind which documents have prefixes, as a rule: some tier may drop one."""
        if pieces[0].job.kind == "score":
            for piece in pieces:
                for place, (_, document) in zip(piece.places, piece.items, strict=True):
                    if not isinstance(piece.job.results[place], Exception):
                        self._scored.add(document)

    def _within_builds(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """Those items of a pass for which few prefixes have to be computed; the others wait again.

        A prefix takes as long as the scores of many pairs: requests about known documents are not
        held back by those about new ones.
        """
        if pieces[0].job.kind != "score":
            return pieces
        pairs = [pair for piece in pieces for pair in piece.items]
        if len(pairs) <= self._limits.pass_documents:
            return pieces
        if all(document in self._scored for _, document in pairs):  # asking takes a millisecond
            return pieces
        warm = iter(self._reranker.are_warm(pairs))
        built: set[int] = set()
        chosen, rest = [], []
        for piece in pieces:
            now, later = [], []
            for place, (_, document), is_warm in zip(piece.places, piece.items, warm, strict=False):
                if is_warm or id(document) in built or len(built) < self._limits.pass_documents:
                    now.append(place)
                    if not is_warm:
                        built.add(id(document))
                else:
                    later.append(place)
            chosen += [Piece(piece.job, now)] if now else []
            rest += [Piece(piece.job, later)] if later else []
        with self._work:
            self._queue.put_back(rest)
        return chosen

    def _compute(self, job: Job) -> Compute:
        """What computes the items of a pass that `job` is in."""
        if job.whole:
            return lambda functions: [function() for function in functions]
        return self._reranker.warm_each if job.lane == "warm" else self._reranker.score_each

    def _finish(self, pieces: Sequence[Piece], began: float) -> None:
        kind, count = pieces[0].job.kind, sum(len(piece.places) for piece in pieces)
        ended = time.monotonic()
        with self._work:
            self._pass = None
            self._rates.note(kind, count, ended - began)
            over = self._queue.finish(pieces)
        for job in over:
            job.ended = ended
            self._metrics.queue_seconds.observe((job.started or job.submitted) - job.submitted)
            job.tell_done()
        self._count(pieces, ended - began)

    def _count(self, pieces: Sequence[Piece], seconds: float) -> None:
        """Adds a pass to the metrics."""
        metrics = self._metrics
        metrics.pass_seconds.labels(pieces[0].job.kind).observe(seconds)
        results = [piece.job.results[place] for piece in pieces for place in piece.places]
        if pieces[0].job.kind == "score":
            scored = [one for one in results if one is not None and not isinstance(one, Exception)]
            metrics.pass_pairs.observe(len(results))
            metrics.pairs.inc(len(scored))
            cached = sum(one.num_cached for one in scored)
            metrics.prompt_tokens.labels("cached").inc(cached)
            computed = sum(one.num_tokens for one in scored) - cached
            metrics.prompt_tokens.labels("computed").inc(computed)
            metrics.prefixes_built.inc(sum(not one.num_cached for one in scored))
        elif pieces[0].job.kind == "warm":
            metrics.prefixes_built.inc(results.count("built"))
