"""What routes ask for work: the model of this process, or those of others."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from ragvl.data.document import Document
from ragvl.data.query import Query
from ragvl.server.errors import ShuttingDown

if TYPE_CHECKING:
    from ragvl.reranker import ScoredPair

T = TypeVar("T")
_accepted: ContextVar[bool] = ContextVar("accepted", default=False)


@dataclass(frozen=True)
class Scored:
    """What became of a request's pairs.

    Attributes:
        pairs: for each, in order, its score, or what was wrong with it.
        queued_ms: how long the request waited for its first pass.
        scored_ms: from then until its last pass was over.
    """

    pairs: list[ScoredPair | Exception]
    queued_ms: float
    scored_ms: float

    @property
    def built(self) -> int:
        """How many pairs' prefixes were computed now."""
        scored = (pair for pair in self.pairs if not isinstance(pair, Exception))
        return sum(not pair.num_cached for pair in scored)


class Backend(ABC):
    """Computes what requests ask for, in the event loop's eyes: each awaits its own work.

    If a request's task is cancelled, what was asked for it is given up. Counts requests that were
    accepted, all of whose work is done before an orderly end.
    """

    def __init__(self) -> None:
        self._counting = threading.Lock()
        self._num_calls = 0
        self._draining = False

    @abstractmethod
    def start(self) -> None:
        """Begins to work."""

    @abstractmethod
    def close(self) -> None:
        """Ends; what still waits fails with `ShuttingDown`."""

    @abstractmethod
    async def score(
        self, pairs: Sequence[tuple[Query, Document]], *, deadline: float | None = None
    ) -> Scored:
        """Scores pairs.

        Args:
            pairs: may be empty.
            deadline: a moment of `time.monotonic()`; what would not be done by then is refused.

        Raises:
            ServerError: there is no room, or no time, or nothing new is accepted.
        """

    @abstractmethod
    async def warm(
        self, documents: Sequence[Document], *, deadline: float | None = None
    ) -> list[Literal["built", "known"] | Exception]:
        """Computes documents' prefixes, where scoring leaves room; see `score`.

        Raises:
            ValueError: of this model nothing is cached.
            ServerError: see `score`.
        """

    @abstractmethod
    async def run(
        self, function: Callable[[], T], *, kind: str, deadline: float | None = None
    ) -> T:
        """What `function` gives in a thread for work such as retrieving, where it takes its turn.

        Args:
            function: the work.
            kind: names it: how long it takes is estimated by the last of its kind.
            deadline: see `score`.

        Raises:
            Exception: what it raised, and see `score`.
        """

    @abstractmethod
    async def is_warm(self, document: Document) -> bool:
        """Whether a document's prefix is kept.

        Raises:
            DocumentError: the document cannot be used.
        """

    @abstractmethod
    def check_room(self, num_pairs: int = 1, deadline: float | None = None) -> None:
        """Raises what `score` would raise now, before more work is put into a request."""

    @abstractmethod
    def seconds_ahead(self) -> float:
        """How long all that waits to be scored is expected to take, in seconds."""

    @property
    def num_calls(self) -> int:
        """How many accepted requests are being answered."""
        return self._num_calls

    @contextlib.contextmanager
    def accept(self) -> Iterator[None]:
        """Counts a request as accepted for the time of a block: all of its work will be done.

        Raises:
            ShuttingDown: nothing new is accepted.
        """
        with self._counting:
            if self._draining:
                raise ShuttingDown
            self._num_calls += 1
        token = _accepted.set(True)
        try:
            yield
        finally:
            _accepted.reset(token)
            with self._counting:
                self._num_calls -= 1

    async def drain(self, seconds: float) -> bool:
        """Accepts nothing new, and waits until all that was accepted is done.

        Returns:
            Whether it was done within so many seconds.
        """
        with self._counting:
            self._draining = True
        until = time.monotonic() + seconds
        while not self._is_idle:
            if time.monotonic() >= until:
                return False
            await asyncio.sleep(0.01)
        return True

    @property
    def _is_idle(self) -> bool:
        return not self._num_calls

    def _check_accepted(self) -> None:
        """Refuses the work of requests that were not accepted before the end began.

        Raises:
            ShuttingDown: it is one.
        """
        if self._draining and not _accepted.get():
            raise ShuttingDown
