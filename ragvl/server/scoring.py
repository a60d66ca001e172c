"""Scores what a request asks about, and says of each pair that has no score where it stands."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request

from ragvl.data.document import Document
from ragvl.data.images import DocumentError
from ragvl.data.query import Query
from ragvl.messages import MAX_ERROR, shown
from ragvl.mllm import PromptTooLongError
from ragvl.reranker import ScoredPair, Threshold, resolve_threshold
from ragvl.server.contents import Placed, contents_of
from ragvl.server.deadlines import call
from ragvl.server.errors import NotFound, OutOfMemory, ServerError, TooLarge, Unprocessable
from ragvl.server.protocol.common import PromptTokensDetails, Timings, Usage
from ragvl.server.services import services_of


class NoScore(ServerError):
    """The model gave no number for a pair."""

    status, kind = 500, "no_score"


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
        return order_of(self.pairs)[: top_n or None]


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
        scored = await services.engine.score(pairs, deadline=deadline)
        limits = [limit for limit in (token_limit, services.settings.max_tokens) if limit]
        results = checked_scores(scored.pairs, pairs, contents.places, min(limits, default=None))
        timings = Timings(
            queue=round(scored.queued_ms, 3),
            score=round(scored.scored_ms, 3),
            total=round(1e3 * (time.perf_counter() - started), 3),
        )
        return Scores(contents.documents, results, usage_of(results), timings, scored.built)

    return await call(request, work)


def order_of(pairs: Sequence[ScoredPair]) -> list[int]:
    """Places of pairs by raw score, of equal ones the first first."""
    return sorted(range(len(pairs)), key=lambda i: -pairs[i].raw)


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
    reranker = services_of(request).reranker
    if threshold is None:
        return reranker.threshold
    try:
        return resolve_threshold(threshold, reranker.thresholds)
    except ValueError as error:
        raise Unprocessable(f"threshold: {error}", param="threshold") from None


def told_text(document: Document) -> str | None:
    """What of a document goes back to a client: its texts, and never a picture."""
    return "\n".join(part for part in document.parts if isinstance(part, str)) or None


def answer_id(kind: str) -> str:
    """A new id of an answer."""
    return f"{kind}-{uuid.uuid4().hex}"


def checked_scores(
    results: Sequence[ScoredPair | Exception],
    pairs: Sequence[tuple[Query, Document]],
    places: Sequence[str],
    max_tokens: int | None,
) -> list[ScoredPair]:
    """The results, which must all be scores.

    Args:
        results: what the engine gave.
        pairs: what it was given.
        places: of the documents in the request.
        max_tokens: that a prompt may have.

    Raises:
        ServerError: one is none, or its prompt has more tokens; the message has its place.
    """
    scores: list[ScoredPair] = []
    for result, pair, place in zip(results, pairs, places, strict=True):
        if isinstance(result, Exception):
            raise refusal(result, place, *pair) from result
        if max_tokens is not None and result.num_tokens > max_tokens:
            raise TooLarge(
                f"{place}: its prompt has {result.num_tokens:,} tokens, above the limit of "
                f"{max_tokens:,}; nothing is cut here",
                param=place,
            )
        scores.append(result)
    return scores


def refusal(error: Exception, place: str, *subjects: Query | Document) -> Exception:
    """What a client is told of a pair without a score, or of a document without a prefix.

    Args:
        error: the engine's.
        place: of the document in the request.
        subjects: the document, and its query.
    """
    if isinstance(error, OutOfMemory):
        return OutOfMemory(f"{place}: {error.message}", param=place)
    message = f"{place}: {plain_message(error, *subjects)}"
    if isinstance(error, PromptTooLongError):
        return TooLarge(message, param=place)
    if isinstance(error, DocumentError):
        return Unprocessable(message, param=place)
    if isinstance(error, FloatingPointError):
        return NoScore(message, param=place)
    if isinstance(error, ValueError):  # the query has no place in the template
        return Unprocessable(plain_message(error, *subjects), param="query")
    return error


def plain_message(error: Exception, *subjects: Query | Document) -> str:
    """What a library's error says, without the places of files on this machine."""
    message = str(error)
    for subject in subjects:
        what = "the document" if isinstance(subject, Document) else "the query"
        names = [subject.name, *(picture.name for picture in subject.pictures)]
        paths = [picture.path for picture in subject.pictures if picture.path is not None]
        for name in [*names, *paths]:
            message = message.replace(name, what)
    return shown(message, MAX_ERROR)
