"""The thresholds of an evaluation, and how their estimation differs from it."""

from __future__ import annotations

from collections.abc import Sequence

from ragvl.data.questions import Pool, Question, question_name
from ragvl.evaluation.models import Models
from ragvl.evaluation.result import EstimatedOn
from ragvl.evaluation.settings import EvaluationSettings
from ragvl.reranker import RETRIEVER_WEIGHT, ThresholdError, resolve_threshold


def resolve_thresholds(
    settings: EvaluationSettings, models: Models, questions: Sequence[Question]
) -> dict[str, float]:
    """From what relevance a document is kept, by name.

    Raises:
        ThresholdError: a threshold is not known; or it, or the retriever's weight, was estimated on
            one of these questions.
    """
    saved = models.reranker.thresholds
    estimated = _estimated(settings, models)
    if estimated and saved is not None:
        asked = {question_name(q.id, q.text) for q in questions}
        if own := asked.intersection(saved.questions):
            raise ThresholdError(
                f"{', '.join(estimated)}: estimated on {saved.data}, of which {len(own)} questions "
                "are asked here: they would be judged by their own estimates"
            )
        own = asked.intersection(saved.weight_questions)
        if own and RETRIEVER_WEIGHT in estimated:
            raise ThresholdError(
                f"{RETRIEVER_WEIGHT}: estimated before {saved.data}, on {len(own)} questions that "
                "are asked here: they would be judged by their own estimate"
            )
    return {str(t): resolve_threshold(t, saved) for t in settings.thresholds}


def estimated_on(settings: EvaluationSettings, models: Models) -> EstimatedOn | None:
    """What thresholds and the retriever's weight were estimated on; None where nothing was."""
    saved = models.reranker.thresholds
    if saved is None or not _estimated(settings, models):
        return None
    return EstimatedOn(
        data=saved.data,
        pool=saved.pool,
        num_candidates=saved.num_candidates,
        top_k=saved.top_k,
        num_questions=len(saved.questions),
        refused=saved.refused,
        num_documents=saved.num_documents or None,
    )


def estimated_otherwise(
    pool: Pool, settings: EvaluationSettings, models: Models, top_k: int, num_documents: int
) -> list[str]:
    """In what the estimation differs; see `PoolResult`.

    Args:
        pool: what is retrieved from.
        settings: the evaluation's.
        models: the models.
        top_k: how many documents are kept at most.
        num_documents: among how many a question is searched.
    """
    saved = models.reranker.thresholds
    if saved is None or not _estimated(settings, models):
        return []
    differing = []
    if settings.estimated_thresholds:
        differing = saved.differs(
            pool=pool,
            num_candidates=settings.num_candidates,
            top_k=top_k,
            encoder=models.retriever_name,
            retriever_weight=models.retriever_weight,
        )
    return differing + ["num_documents"] * (not saved.is_alike(num_documents))


def _estimated(settings: EvaluationSettings, models: Models) -> list[str]:
    """Names of what was estimated on a dev split, of all that is used here."""
    weight = models.reranker.saved_weight(models.retriever_name)
    is_estimated = weight > 0 and weight == models.retriever_weight
    return settings.estimated_thresholds + [RETRIEVER_WEIGHT] * is_estimated
