"""How long each stage takes, one question at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ragvl.data.questions import Pool, Question, QuestionSet
from ragvl.evaluation.models import Models
from ragvl.evaluation.vectors import DocumentVectors
from ragvl.reranker import place_prior
from ragvl.retriever import search_fused


def time_stages(
    source: QuestionSet,
    questions: Sequence[Question],
    models: Models,
    *,
    pool: Pool,
    vectors: DocumentVectors,
    num_candidates: int,
    top_k: int,
    threshold: float,
    max_new_tokens: int,
) -> dict[str, list[float]]:
    """Milliseconds of each question in each stage.

    "rerank, cold" is of documents never seen before, "rerank, warm" of known ones.

    Args:
        source: the data.
        questions: each is timed; the first one runs once more before, which is not measured.
        models: the stages.
        pool: what is retrieved from.
        vectors: of its documents.
        num_candidates: how many documents are reranked.
        top_k: how many are kept at most.
        threshold: from what relevance.
        max_new_tokens: of an answer.
    """
    ids = [id for id in source.document_ids(pool) if id in vectors]
    if not questions or not ids:
        return {}
    views = vectors.views(ids)
    samples: dict[str, list[float]] = {}

    def clock(stage: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        value = call()
        samples.setdefault(stage, []).append(1e3 * (time.perf_counter() - started))
        return value

    def run(question: Question) -> None:
        (hits,) = clock(
            "retrieve",
            lambda: search_fused(views, models.fusion, [question.query], num_candidates),
        )
        documents = list(source.documents(ids=[id for id, _ in hits]))
        order = place_prior(len(hits), models.retriever_weight)
        prior = {id: of_one for (id, _), of_one in zip(hits, order, strict=True)}

        def rerank() -> Any:
            return models.reranker.rank(
                question.query,
                documents,
                prior=[prior[document.id] for document in documents],
                threshold=threshold,
                on_error="skip",
                progress=False,
            )

        models.reranker.prefix_cache.clear()
        clock("rerank, cold", rerank)
        ranked = clock("rerank, warm", rerank)
        if models.generator is not None:
            kept = [result.document for result in ranked[:top_k] if result.kept]
            generate = models.generator.answer
            clock("generate", lambda: generate(question.text, kept, max_new_tokens=max_new_tokens))

    run(questions[0])
    samples.clear()
    for question in questions:
        run(question)
    return samples
