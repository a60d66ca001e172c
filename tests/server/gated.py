"""A reranker that computes when it is told to, so that a test decides what waits meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

from ragvl import Document, Query, Reranker

Pair = tuple[Query, Document]
WAIT = 30  # seconds; a bound, not a wait


def pairs_of(name: str, count: int) -> list[Pair]:
    """Pairs that no other name has."""
    return [(Query(f"What is {name}?"), Document(text=f"{name} is {i}")) for i in range(count)]


class Gate:
    """The reranker behind a gate that lets one pass through at a time, and notes each."""

    def __init__(self, reranker: Reranker) -> None:
        self.reranker = reranker
        self.passes: list[list[Any]] = []
        self.arrived = threading.Semaphore(0)
        self.open = threading.Semaphore(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reranker, name)

    def score_each(self, pairs: Sequence[Pair]) -> Any:
        self._enter(pairs)
        return self.reranker.score_each(pairs)

    def are_warm(self, pairs: Sequence[Pair]) -> list[bool]:
        return self.reranker.are_warm(pairs)

    def warm_each(self, documents: Sequence[Document]) -> Any:
        self._enter(documents)
        return self.reranker.warm_each(documents)

    def _enter(self, items: Sequence[Any]) -> None:
        self.passes.append(list(items))
        self.arrived.release()
        assert self.open.acquire(timeout=WAIT)

    async def wait_for_pass(self) -> None:
        """Returns when a pass is at the gate."""
        assert await asyncio.to_thread(self.arrived.acquire, timeout=WAIT)

    def let_all_pass(self) -> None:
        self.open.release(1000)


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * WAIT):
            await main

    asyncio.run(bounded())


async def begun(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task of it that has run until it waits."""
    task = asyncio.ensure_future(coroutine)
    await asyncio.sleep(0)
    return task
