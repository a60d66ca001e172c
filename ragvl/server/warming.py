"""Computes the prefixes of an index's documents behind the work of requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ragvl.data.document import Document
from ragvl.server.errors import Overloaded, ShuttingDown
from ragvl.server.services import Services

_log = logging.getLogger(__name__)

_AT_ONCE = 32  # documents; the queue is seldom full of them, and requests' work goes first


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
    total, done, refused = len(documents), 0, 0
    oldest: Document | None = None  # of what was warmed: the first that a full cache gives up
    services.warming = 0, total
    for first in range(0, total, _AT_ONCE):
        some = documents[first : first + _AT_ONCE]
        try:
            outcomes = await _warm(services, some)
        except ShuttingDown:
            return
        except Exception as error:
            _log.error("the index is no longer warmed, after %d documents", done, exc_info=error)
            return
        usable = [
            document
            for document, outcome in zip(some, outcomes, strict=True)
            if not isinstance(outcome, Exception)
        ]
        done += len(some)
        refused += len(some) - len(usable)
        services.warming = done, total
        oldest = oldest or next(iter(usable), None)
        if oldest is not None and not services.reranker.is_warm(oldest):
            _log.warning("the cache is full: %d of the index's %d documents are warm", done, total)
            return
    _log.info("the index is warm: %d documents, of which %d cannot be used", total, refused)


async def _warm(services: Services, documents: Sequence[Document]) -> Sequence[str | Exception]:
    while True:
        try:
            return await services.engine.warm(documents)
        except Overloaded as error:
            await asyncio.sleep(error.retry_after)
