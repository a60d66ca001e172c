"""What an evaluation computes block by block, in this process or in others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from ragvl.blocks import Works
from ragvl.data.document import Document
from ragvl.data.images import DocumentError
from ragvl.data.query import Query
from ragvl.evaluation.models import Models
from ragvl.generator import Generator
from ragvl.mllm import PromptTooLongError
from ragvl.reranker import Reranker
from ragvl.retriever import encoding_works

SCORE, ANSWER = "score", "answer"

Pair = tuple[Query, Document | None]
"""A query and a document; None for one that cannot be read."""

Asked = tuple[str, list[Document] | None]
"""A question and the documents to answer it from; None if one of them cannot be read."""


def evaluation_works(models: Models, *, max_new_tokens: int = 32) -> Works:
    """Vectors by order, `SCORE` and, where there is a generator, `ANSWER`."""
    works = dict(encoding_works(models.encoders))
    works[SCORE] = partial(score_pairs, models.reranker)
    if models.generator is not None:
        works[ANSWER] = partial(answer_each, models.generator, max_new_tokens=max_new_tokens)
    return works


def score_pairs(reranker: Reranker, pairs: Sequence[Pair]) -> list[float]:
    """Raw scores; NaN where a document cannot be read or scored."""
    readable = [(query, document) for query, document in pairs if document is not None]
    raw = iter(reranker.score(readable, on_error="skip", progress=False, raw=True).tolist())
    return [math.nan if document is None else next(raw) for _, document in pairs]


def answer_each(
    generator: Generator, asked: Sequence[Asked], *, max_new_tokens: int
) -> list[str | None]:
    """Answers; None where documents cannot be read, or a prompt is too long.

    An answer from fewer documents would be another one.
    """
    readable = [(text, documents) for text, documents in asked if documents is not None]
    if len(readable) < len(asked):
        answers = iter(answer_each(generator, readable, max_new_tokens=max_new_tokens))
        return [None if documents is None else next(answers) for _, documents in asked]
    if not readable:
        return []
    texts, evidence = zip(*readable, strict=True)
    try:
        return list(
            generator.answer_batch(texts, evidence, max_new_tokens=max_new_tokens, progress=False)
        )
    except (PromptTooLongError, DocumentError):
        if len(asked) == 1:
            return [None]
        # One by one, so that only the culprit has no answer
        alone = (answer_each(generator, [one], max_new_tokens=max_new_tokens) for one in asked)
        return [answer for (answer,) in alone]
