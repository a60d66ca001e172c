"""The stages of RagVL as a request passes through them, each in its turn in the model's thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from ragvl.data.document import Document
from ragvl.data.images import DocumentError
from ragvl.data.query import Query
from ragvl.generator import Generator
from ragvl.mllm import PromptTooLongError
from ragvl.reranker import ScoredPair
from ragvl.retriever import DocumentRetriever, RetrievedDocument
from ragvl.server.errors import NotFound, ServerError, TooLarge, Unprocessable
from ragvl.server.protocol.common import Timings
from ragvl.server.refusals import plain_message
from ragvl.server.services import Services

T = TypeVar("T")


class UnreadableDocument(ServerError):
    """A document that the server itself brings cannot be read any more."""

    status, kind = 500, "unreadable_document"


class Pipeline:
    """Retrieves, scores and answers for one request.

    Args:
        services: what it works with.
        deadline: of the request, a moment of `time.monotonic()`.
        started: `time.perf_counter()` when the request's body was there.

    Attributes:
        built: documents whose prefix was computed for this request.
    """

    def __init__(self, services: Services, deadline: float, started: float) -> None:
        self._services = services
        self._deadline = deadline
        self._started = started
        self._queued = 0.0
        self._stages: dict[str, float] = {}
        self.built = 0

    async def retrieve(self, query: Query, num_candidates: int) -> list[RetrievedDocument]:
        """The documents of the index that fit `query` best.

        Raises:
            NotFound: the server has no index.
            Unprocessable: the query's picture cannot be used.
            ServerError: there is no room, or no time.
        """
        retriever = index_of(self._services)
        try:
            return await self._run("retrieve", lambda: retriever.retrieve(query, num_candidates))
        except DocumentError as error:
            raise Unprocessable(f"query: {plain_message(error, query)}", param="query") from error

    async def score(self, pairs: Sequence[tuple[Query, Document]]) -> list[ScoredPair | Exception]:
        """A score for each pair, or why it has none; in passes with other requests'."""
        scored = await self._services.engine.score(pairs, deadline=self._deadline)
        self._queued += scored.queued_ms
        self._stages["score"] = scored.scored_ms
        self.built = scored.built
        return scored.pairs

    async def generate(
        self, question: str, documents: Sequence[Document], *, max_new_tokens: int
    ) -> str:
        """The answer to `question` from documents.

        Raises:
            NotFound: the server has no generator.
            TooLarge: question and documents do not fit its context.
            UnreadableDocument: a picture was there when its prefix was computed, and no longer is.
            ServerError: there is no room, or no time.
        """
        generator = generator_of(self._services)

        def answer() -> str:
            return generator.answer(question, documents, max_new_tokens=max_new_tokens)

        try:
            return await self._run("generate", answer)
        except PromptTooLongError as error:
            message = plain_message(error, Query(question), *documents)
            raise TooLarge(f"query: of the generator, {message}", param="query") from error
        except DocumentError as error:
            raise UnreadableDocument(plain_message(error, *documents)) from error

    @property
    def retriever_weight(self) -> float:
        """How much the index's order counts in reranking."""
        return self._services.retriever_weight

    @property
    def model_name(self) -> str:
        """What answers call the model."""
        return self._services.model_name

    @property
    def timings(self) -> Timings:
        """Milliseconds so far."""
        return Timings(
            queue=round(self._queued, 3),
            total=round(1e3 * (time.perf_counter() - self._started), 3),
            **{stage: round(spent, 3) for stage, spent in self._stages.items()},
        )

    async def _run(self, stage: str, function: Callable[[], T]) -> T:
        """What `function` gives in the model's thread; notes how long it took, and waited."""
        submitted = time.perf_counter()

        def timed() -> T:
            began = time.perf_counter()
            self._queued += 1e3 * (began - submitted)
            try:
                return function()
            finally:
                self._stages[stage] = 1e3 * (time.perf_counter() - began)

        return await self._services.engine.run(timed, kind=stage, deadline=self._deadline)


def index_of(services: Services) -> DocumentRetriever:
    """The server's index.

    Raises:
        NotFound: it has none.
    """
    if services.retriever is None:
        raise NotFound(
            "documents: this server has no index to search in; give documents", param="documents"
        )
    return services.retriever


def generator_of(services: Services) -> Generator:
    """The server's generator.

    Raises:
        NotFound: it has none.
    """
    if services.generator is None:
        raise NotFound("this server has no generator, and so no answers")
    return services.generator
