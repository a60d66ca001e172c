"""What the routes work with: made once, at the start, and handed to every request."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection

from ragvl.server.settings import ServerSettings

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from ragvl.generator import Generator
    from ragvl.reranker import SavedThresholds
    from ragvl.retriever import DocumentRetriever
    from ragvl.server.access import ApiKeys
    from ragvl.server.backend import Backend
    from ragvl.server.documents import DocumentStore
    from ragvl.server.fetch import PictureFetcher
    from ragvl.server.metrics import Metrics


@dataclass
class Services:
    """The parts of a running server.

    Attributes:
        settings: its limits.
        engine: what computes: the model's thread and the queue before it, or other processes.
        documents: documents by id, those of the index too.
        fetcher: gets pictures behind URLs, of the hosts that are allowed.
        metrics: for `/metrics`.
        pool: threads that read and check bodies and pictures.
        small_pictures: one that makes pictures small to look at, so that no body waits for that.
        model_name: what answers call the model.
        threshold: from what relevance a document is kept if a request says nothing of it.
        thresholds: those that a request can name; None without any.
        model_aliases: other names that requests may call it by.
        retriever: the index; None without one.
        retriever_weight: how much the index's order counts in reranking.
        generator: None without one.
        examples: questions to try on the page.
        keys: API keys, of which a request must bring one; None lets everybody in.
        is_draining: whether the server is about to end, and takes no new work.
        warming: how far the index's prefixes are: (done, of how many); None where none are made.
        started: when the server was, in seconds since 1970.
    """

    settings: ServerSettings
    engine: Backend
    documents: DocumentStore
    fetcher: PictureFetcher
    metrics: Metrics
    pool: ThreadPoolExecutor
    small_pictures: ThreadPoolExecutor
    model_name: str
    threshold: float
    thresholds: SavedThresholds | None = None
    model_aliases: tuple[str, ...] = ()
    retriever: DocumentRetriever | None = None
    retriever_weight: float = 0.0
    generator: Generator | None = None
    examples: tuple[str, ...] = ()
    keys: ApiKeys | None = None
    is_draining: bool = False
    warming: tuple[int, int] | None = None
    started: int = field(default_factory=lambda: int(time.time()))

    def close(self) -> None:
        """Ends the threads; what is still queued is not answered."""
        self.engine.close()
        for threads in (self.pool, self.small_pictures):
            threads.shutdown(wait=True, cancel_futures=True)
        self.documents.close()


def services_of(connection: HTTPConnection) -> Services:
    """Those of the application that a request came to."""
    services: Services = connection.app.state.services
    return services
