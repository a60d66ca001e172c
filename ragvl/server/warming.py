"""Computes the prefixes of an index's documents behind the work of requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ragvl.data.document import Document
from ragvl.server.backend import Backend
from ragvl.server.errors import Overloaded, ShuttingDown
from ragvl.server.services import Services

_log = logging.getLogger(__name__)

# A request that comes waits until a pass is over. So it is of few documents where they take long
_PASS_SECONDS = 0.2
_MOST = 32
_PATIENCE = 1.0  # seconds that requests may keep it waiting; then it is its turn


@asynccontextmanager
async def warming(services: Services) -> AsyncIterator[None]:
    """Warms the index during a block, if there is one and the settings say so."""
    if services.retriever is None or not services.settings.warm:
        yield
        return
    task = asyncio.create_task(warm_index(services))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def warm_index(services: Services) -> None:
    """Warms the documents of the index, one after the other; `services.warming` says how far it is.

    It ends with the last document, or where the cache is full: what is then kept of one costs it
    another.
    """
    assert services.retriever is not None
    documents = list(services.retriever.documents.values())
    total, done, refused, count = len(documents), 0, 0, 1
    oldest: Document | None = None  # of what was warmed: the first that a full cache gives up
    services.warming = 0, total
    while done < total:
        some = documents[done : done + count]
        await _give_way(services.engine)
        began = time.monotonic()
        try:
            outcomes = await _warm(services.engine, some)
        except ShuttingDown:
            return
        except Exception as error:
            _log.error("the index is no longer warmed, after %d documents", done, exc_info=error)
            return
        took = time.monotonic() - began
        count = min(2 * count, _MOST) if took < _PASS_SECONDS / 2 else count
        count = max(count // 2, 1) if took > _PASS_SECONDS else count
        done += len(some)
        refused += sum(isinstance(outcome, Exception) for outcome in outcomes)
        services.warming = done, total
        oldest = oldest or _first_warm(some, outcomes)
        if oldest is not None and not await services.engine.is_warm(oldest):
            _log.warning("the cache is full: %d of the index's %d documents are warm", done, total)
            return
    _log.info("the index is warm: %d documents, of which %d cannot be used", total, refused)


async def _give_way(engine: Backend) -> None:
    """Waits while requests are answered, but not for ever.

    Between two of its stages a request waits for nothing else, and would find the model's thread
    taken.
    """
    until = time.monotonic() + _PATIENCE
    while engine.num_calls and time.monotonic() < until:
        await asyncio.sleep(0.01)


async def _warm(engine: Backend, documents: Sequence[Document]) -> Sequence[str | Exception]:
    while True:
        try:
            return await engine.warm(documents)
        except Overloaded as error:
            await asyncio.sleep(error.retry_after)


def _first_warm(
    documents: Sequence[Document], outcomes: Sequence[str | Exception]
) -> Document | None:
    pairs = zip(documents, outcomes, strict=True)
    return next((one for one, outcome in pairs if not isinstance(outcome, Exception)), None)
