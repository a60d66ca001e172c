"""Retrieves, reranks and answers a whole data set, and measures each stage: `ragvl evaluate`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ragvl.blocks import MapBlocks, here
from ragvl.data.questions import Pool, QuestionSet, refuse_pictures
from ragvl.doctor import machine, versions
from ragvl.evaluation.answering import Answers, Selection, answer_from, select_evidence
from ragvl.evaluation.answers import lemmatizer
from ragvl.evaluation.journal import work_folder
from ragvl.evaluation.latency import time_stages
from ragvl.evaluation.metrics import median_figure
from ragvl.evaluation.models import Models
from ragvl.evaluation.ranking import (
    Ranking,
    answerable,
    check_prompts,
    rank_questions,
    searched_documents,
    wrong_pictures,
)
from ragvl.evaluation.result import EvaluationResult, ModelFingerprints
from ragvl.evaluation.settings import EvaluationSettings
from ragvl.evaluation.summary import answer_figures, pool_result
from ragvl.evaluation.thresholds import estimated_on, estimated_otherwise, resolve_thresholds
from ragvl.evaluation.vectors import embed_documents
from ragvl.evaluation.works import evaluation_works


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and what it was measured of.

    Attributes:
        result: the figures.
        rankings: by pool, each question's candidates.
        answers: by selection, each question's answer.
        evidence: by selection, ids of the documents that each question was answered from.
        source: the data.
    """

    result: EvaluationResult
    rankings: dict[Pool, list[Ranking]]
    answers: dict[Selection, list[str]]
    evidence: dict[Selection, list[tuple[str, ...]]]
    source: QuestionSet

    def submission(self) -> Iterator[tuple[str, tuple[str, ...], str]]:
        """Each question's id, the documents kept at the first threshold, and its answer.

        Raises:
            ValueError: there was no generator.
        """
        selection = self.result.first_pool, self.result.first_threshold
        if selection not in self.answers:
            raise ValueError(
                "there are no answers to submit: evaluate with a generator, questions with known "
                "answers or without known documents"
            )
        for ranking, kept, text in zip(
            self.rankings[self.result.first_pool],
            self.evidence[selection],
            self.answers[selection],
            strict=True,
        ):
            yield ranking.question.id, kept, text


def evaluate(
    source: QuestionSet,
    models: Models,
    settings: EvaluationSettings | None = None,
    *,
    work: Path | None = None,
    map_blocks: MapBlocks | None = None,
    progress: bool = True,
) -> Evaluation:
    """Retrieves, reranks and answers the questions of `source`.

    Args:
        source: the data.
        models: the stages.
        settings: what is evaluated.
        work: a folder that keeps vectors, relevance and answers as they are computed; an evaluation
            that was broken off goes on from it, and another one of the same models and data reuses
            what fits. None keeps nothing.
        map_blocks: does `evaluation_works` of these models; in this process by default.
        progress: show progress bars.

    Raises:
        ValueError: a threshold is not known or was estimated on one of these questions, no question
            is left, there are no two documents to swap, or a question has a picture and neither the
            reranker's prompts nor a generator have a place for it.
        DocumentError: the reranker's prompts have no place for a document.
        DataError: a document cannot be read, and the data set is strict.
    """
    settings = settings or EvaluationSettings()
    top_k = settings.top_k_of(source)
    settings = replace(settings, top_k=top_k)
    started = time.perf_counter()
    questions = settings.select(source.questions)
    thresholds = resolve_thresholds(settings, models, questions)
    swapped = wrong_pictures(source, settings.noise_ratio, settings.seed)
    evidence: dict[Selection, list[tuple[str, ...]]] = {}
    answers: dict[Selection, list[str]] = {}
    check_prompts(source, questions, models.reranker)
    if models.generator is not None:
        refuse_pictures(questions)
    max_new_tokens = settings.max_new_tokens
    map_blocks = map_blocks or here(evaluation_works(models, max_new_tokens=max_new_tokens))
    with work_folder(work) as folder:
        vectors = embed_documents(
            source, models.encoders, folder, map_blocks=map_blocks, progress=progress
        )
        questions = answerable(source, questions, vectors)
        rankings = rank_questions(
            source,
            questions,
            models,
            vectors,
            folder,
            pools=settings.pools,
            num_candidates=settings.num_candidates,
            map_blocks=map_blocks,
            swapped=swapped,
            progress=progress,
        )
        if models.generator is not None and any(q.answers or not q.gold for q in questions):
            evidence = select_evidence(rankings, thresholds, top_k, vectors, swapped)
            answers = answer_from(
                evidence,
                questions,
                Answers(
                    source,
                    models.generator,
                    folder,
                    max_new_tokens=max_new_tokens,
                    map_blocks=map_blocks,
                ),
                progress=progress,
            )
    seconds = time.perf_counter() - started
    pools = {
        pool: pool_result(
            ranked,
            thresholds,
            top_k,
            num_candidates=settings.num_candidates,
            num_documents=sum(
                sum(id in vectors for id in search.document_ids) for search in source.searches(pool)
            ),
            answers={
                name: answer_figures(source, questions, texts)
                for (of, name), texts in answers.items()
                if of == pool
            },
            estimated_otherwise=estimated_otherwise(
                pool, settings, models, top_k, searched_documents(ranked)
            ),
        )
        for pool, ranked in rankings.items()
    }
    latency_ms = time_stages(
        source,
        questions[: settings.num_timed],
        models,
        pool=settings.pools[0],
        vectors=vectors,
        num_candidates=settings.num_candidates,
        top_k=top_k,
        threshold=next(iter(thresholds.values())),
        max_new_tokens=settings.max_new_tokens,
    )
    result = EvaluationResult(
        data=source.name,
        num_questions=len(questions),
        categories=dict(Counter(question.category for question in questions)),
        settings=settings,
        thresholds=thresholds,
        estimated_on=estimated_on(settings, models),
        pools=pools,
        latency_ms=latency_ms,
        median_ms={stage: median_figure(ms) for stage, ms in latency_ms.items()},
        seconds=seconds,
        problems=dict(source.problems.counts),
        lemmatizer=lemmatizer()[0] if source.answer_metric == "webqa" else None,
        models=ModelFingerprints(
            encoder=None if models.encoder is None else models.encoder.fingerprint,
            reranker=models.reranker.mllm.fingerprint,
            generator=None if models.generator is None else models.generator.mllm.fingerprint,
            text_encoder=None if models.text_encoder is None else models.text_encoder.fingerprint,
            fusion=models.fusion.name if len(models.encoders) > 1 else None,
            retriever_weight=models.retriever_weight or None,
        ),
        date=datetime.now(UTC).date().isoformat(),
        machine=machine(),
        versions=versions(),
    )
    return Evaluation(result, rankings, answers, evidence, source)
