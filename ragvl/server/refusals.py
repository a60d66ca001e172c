"""What a client is told of a pair without a score, or of a document without a prefix."""

from __future__ import annotations

from collections.abc import Sequence

from ragvl.data.document import Document
from ragvl.data.images import DocumentError
from ragvl.data.query import Query
from ragvl.messages import MAX_ERROR, shown
from ragvl.mllm import PromptTooLongError
from ragvl.reranker import ScoredPair
from ragvl.server.errors import OutOfMemory, ServerError, TooLarge, Unprocessable


class NoScore(ServerError):
    """The model gave no number for a pair."""

    status, kind = 500, "no_score"


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
            message = message.replace(f"the {name}", what).replace(name, what)
    return shown(message, MAX_ERROR)
