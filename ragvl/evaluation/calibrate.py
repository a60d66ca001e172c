"""Estimates a reranker's thresholds on a data set: `ragvl calibrate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ragvl.blocks import here
from ragvl.data.questions import Pool, QuestionSet, question_name
from ragvl.evaluation.estimation import ESTIMATED, Recalls, check_names, estimate_threshold
from ragvl.evaluation.journal import work_folder
from ragvl.evaluation.models import Models
from ragvl.evaluation.ranking import (
    answerable,
    check_prompts,
    estimate_fusion,
    rank_questions,
    searched_documents,
)
from ragvl.evaluation.retriever_weight import estimate_retriever_weight
from ragvl.evaluation.settings import EvaluationSettings
from ragvl.evaluation.vectors import embed_documents
from ragvl.evaluation.works import evaluation_works
from ragvl.reranker import RETRIEVER_WEIGHT, SavedThresholds, ThresholdError


def calibrate(
    source: QuestionSet,
    models: Models,
    *,
    names: Sequence[str] = ESTIMATED,
    pool: Pool = "full",
    settings: EvaluationSettings | None = None,
    weigh: bool = False,
    weigh_retriever: bool = False,
    work: Path | None = None,
    progress: bool = True,
) -> tuple[SavedThresholds, Recalls]:
    """Estimates thresholds on a dev split; see `estimate_threshold`.

    Args:
        source: the dev split.
        models: retriever and reranker.
        names: which thresholds.
        pool: what is retrieved from.
        settings: `num_candidates`, `top_k`, `skip` and `num_questions` count.
        weigh: first estimate the weight of the pictures' order among two, in place of the models'
            fusion.
        weigh_retriever: first estimate how much the retriever's order counts in reranking, in place
            of the models' `retriever_weight`.
        work: see `evaluate`.
        progress: show progress bars.

    Returns:
        What to save with the model, and what it was estimated from.

    Raises:
        ValueError: no question has a gold document, or there is one encoder only to weigh.
        ThresholdError: a name is none that can be estimated.
        DocumentError: the reranker's prompts have no place for a document.
        DataError: a document cannot be read, and the data set is strict.
    """
    check_names(names)
    settings = settings or EvaluationSettings()
    questions = [question for question in settings.select(source.questions) if question.gold]
    if not questions:
        raise ValueError(f"no question of {source.name} has a gold document to calibrate by")
    top_k = settings.top_k_of(source)
    check_prompts(source, questions, models.reranker)
    map_blocks = here(evaluation_works(models))
    with work_folder(work) as folder:
        vectors = embed_documents(
            source, models.encoders, folder, map_blocks=map_blocks, progress=progress
        )
        questions = answerable(source, questions, vectors)
        if weigh:
            fusion = estimate_fusion(source, pool, questions, vectors)
            models = replace(models, fusion=fusion).by_saved_weight()
        rankings = rank_questions(
            source,
            questions,
            models,
            vectors,
            folder,
            pools=(pool,),
            num_candidates=settings.num_candidates,
            map_blocks=map_blocks,
            progress=progress,
        )[pool]
    values, refused = {}, {}
    weight = models.retriever_weight
    own = tuple(question_name(q.id, q.text) for q in questions)
    weighed_on: tuple[str, ...] = ()
    before = models.reranker.thresholds
    if before is not None and not weigh_retriever and weight == before.retriever_weight > 0:
        before.warn_of_another_search(searched_documents(rankings), weight=weight)
        weighed_on = before.weight_questions or before.questions
    if weigh_retriever:
        try:
            weight = estimate_retriever_weight(rankings)
        except ThresholdError as error:
            weight, refused[RETRIEVER_WEIGHT] = 0.0, str(error)
    rankings = [replace(ranking, retriever_weight=weight) for ranking in rankings]
    recalls = Recalls.of(rankings, top_k)
    for name in names:
        try:
            values[name] = estimate_threshold(name, recalls)
        except ThresholdError as error:
            refused[name] = str(error)
    saved = SavedThresholds(
        model=models.reranker.weights,
        template=models.reranker.template_name,
        prompts=models.reranker.prompts_name,
        encoder=models.retriever_name,
        pool=pool,
        num_candidates=settings.num_candidates,
        top_k=top_k,
        data=source.name,
        questions=own,
        values=values,
        refused=refused,
        fusion=models.fusion.name if len(models.encoders) > 1 else None,
        retriever_weight=weight,
        num_documents=searched_documents(rankings),
        weight_questions=() if weighed_on == own else weighed_on,
    )
    return saved, recalls
