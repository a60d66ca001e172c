"""Scores what a request asks about, and what routes for scores say in their answers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request

from ragvl.data.document import Document
from ragvl.messages import shown
from ragvl.reranker import ScoredPair, Threshold, relevance_order, resolve_threshold
from ragvl.server.contents import Placed, contents_of
from ragvl.server.deadlines import call
from ragvl.server.errors import NotFound, Unprocessable
from ragvl.server.pipeline import Pipeline
from ragvl.server.protocol.common import PromptTokensDetails, Timings, Usage
from ragvl.server.refusals import checked_scores
from ragvl.server.services import services_of


@dataclass(frozen=True)
class Scores:
    """What a request gets.

    Attributes:
        documents: its documents.
        pairs: their scores, in the request's order.
        usage: tokens.
        timings: milliseconds.
        built: documents whose prefix was computed.
    """

    documents: list[Document]
    pairs: list[ScoredPair]
    usage: Usage
    timings: Timings
    built: int

    def order(self, top_n: int | None = None) -> list[int]:
        """Places of pairs by raw score, of equal ones the first first; None and 0 mean all."""
        return relevance_order([pair.raw for pair in self.pairs])[: top_n or None]


async def score_pairs(
    request: Request,
    queries: Sequence[Placed],
    documents: Sequence[Placed],
    *,
    instruction: str | None = None,
    token_limit: int | None = None,
) -> Scores:
    """Scores every document for its query, in passes that other requests may share.

    Args:
        request: the request.
        queries: one for all documents, or as many.
        documents: what it holds of documents.
        instruction: of every query.
        token_limit: refuse a prompt of more tokens.

    Raises:
        ServerError: a document or query cannot be used or has no score, at its place; or there is
            no room, or no time.
    """
    services = services_of(request)
    started = time.perf_counter()

    async def work(deadline: float) -> Scores:
        services.engine.check_room(len(documents), deadline)  # before pictures are read
        contents = await contents_of(request, queries, documents, instruction)
        pairs = contents.pairs
        pipeline = Pipeline(services, deadline, started)
        scored = await pipeline.score(pairs)
        limits = [limit for limit in (token_limit, services.settings.max_tokens) if limit]
        results = checked_scores(scored, pairs, contents.places, min(limits, default=None))
        return Scores(
            contents.documents, results, usage_of(results), pipeline.timings, pipeline.built
        )

    return await call(request, work)


def usage_of(results: Sequence[ScoredPair]) -> Usage:
    """Tokens of all prompts together."""
    tokens = sum(result.num_tokens for result in results)
    cached = sum(result.num_cached for result in results)
    return Usage(
        prompt_tokens=tokens,
        total_tokens=tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
    )


def check_model(request: Request, model: str | None) -> None:
    """Refuses a request to another model.

    Raises:
        NotFound: it names one that is not here.
    """
    services = services_of(request)
    known = (services.model_name, *services.model_aliases)
    if model is not None and model not in known:
        raise NotFound(
            f"model: this server has no model {shown(model, 120)!r}; it has {', '.join(known)}",
            param="model",
        )


def threshold_of(request: Request, threshold: Threshold | None) -> float:
    """From what relevance a document is kept, by a request or else by the server.

    Raises:
        Unprocessable: there is no threshold of that name.
    """
    services = services_of(request)
    if threshold is None:
        return services.threshold
    try:
        return resolve_threshold(threshold, services.thresholds)
    except ValueError as error:
        raise Unprocessable(str(error), param="threshold") from None


def texts_of(document: Document) -> str | None:
    """What of a document goes back to a client: its texts, and never a picture."""
    return "\n".join(part for part in document.parts if isinstance(part, str)) or None


def answer_id(kind: str) -> str:
    """A new id of an answer."""
    return f"{kind}-{uuid.uuid4().hex}"
