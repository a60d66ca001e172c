"""Retrieves, reranks and answers a whole data set, and measures each stage: `ragvl evaluate`."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ragvl.data.questions import POOLS, Pool, Question, QuestionSet
from ragvl.doctor import machine, versions
from ragvl.evaluation.answers import lemmatizer
from ragvl.evaluation.calibration import ESTIMATED, Recalls, estimate_threshold
from ragvl.evaluation.figures import answer_figures, pool_figures, usable
from ragvl.evaluation.journal import Journal, depending_on
from ragvl.evaluation.latency import time_stages
from ragvl.evaluation.stages import (
    Candidate,
    Evidence,
    Models,
    Ranking,
    answer,
    embed_documents,
    retrieve,
    score,
    wrong_pictures,
)
from ragvl.generator import Generator
from ragvl.reranker import Reranker, SavedThresholds, Threshold, ThresholdError, resolve_threshold

RETRIEVED, GOLD, NOTHING = "retrieved", "gold", "none"  # what is answered from, besides thresholds


@dataclass(frozen=True)
class EvaluationSettings:
    """What is evaluated.

    Args:
        pools: what is retrieved from: "full", every document; "gold", those that answer some
            question, as RagVL's release does.
        num_candidates: how many documents the retriever hands over.
        top_k: how many are kept at most; None is 1 for MultimodalQA and captions, else 2.
        thresholds: from what relevance; the first is the one that wrong cases are shown of.
        noise_ratio: the share of gold documents in whose place the generator sees wrong ones.
        num_questions: only so many, the first ones; None for all.
        num_timed: so many questions are run one by one, and timed.
        max_new_tokens: of an answer.
        seed: of the noise.
    """

    pools: Sequence[Pool] = POOLS
    num_candidates: int = 20
    top_k: int | None = None
    thresholds: Sequence[Threshold] = ("natural",)
    noise_ratio: float = 0.0
    num_questions: int | None = None
    num_timed: int = 20
    max_new_tokens: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_candidates", "top_k", "num_questions", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: it must be at least 1")
        if not self.pools or not self.thresholds or self.num_timed < 0:
            raise ValueError("expected at least one pool and one threshold, and num_timed >= 0")
        if not 0 <= self.noise_ratio <= 1:
            raise ValueError(f"noise_ratio={self.noise_ratio}: expected a share from 0 to 1")

    def top_k_of(self, source: QuestionSet) -> int:
        """`top_k`, or what the paper takes."""
        if self.top_k is not None:
            return self.top_k
        return 1 if source.answer_metric == "multimodalqa" or source.template == "retrieval" else 2


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        figures: everything for JSON; see docs/evaluation.md.
        rankings: by pool, each question's candidates.
        answers: by pool and what was answered from, each question's answer.
        evidence: the same, the ids of the documents.
        source: the data.
    """

    figures: dict[str, Any]
    rankings: dict[Pool, list[Ranking]]
    answers: dict[tuple[Pool, str], list[str]]
    evidence: dict[tuple[Pool, str], list[tuple[str, ...]]]
    source: QuestionSet

    def submission(self) -> Iterator[tuple[str, tuple[str, ...], str]]:
        """Each question's id, the documents kept at the first threshold, and its answer.

        Raises:
            ValueError: there was no generator.
        """
        way = self.figures["settings"]["pools"][0], next(iter(self.figures["thresholds"]))
        if way not in self.answers:
            raise ValueError("there are no answers to submit: evaluate with a generator")
        for ranking, kept, text in zip(
            self.rankings[way[0]], self.evidence[way], self.answers[way], strict=True
        ):
            yield ranking.question.id, kept, text


def evaluate(
    source: QuestionSet,
    models: Models,
    settings: EvaluationSettings | None = None,
    *,
    work: Path | None = None,
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
        progress: show progress bars.

    Raises:
        ValueError: a threshold is not known or was estimated on these questions, or no question
            has a gold document or an answer.
        DataError: a document cannot be read, and the data set is strict.
    """
    settings = settings or EvaluationSettings()
    started = time.perf_counter()
    thresholds = _thresholds(settings, models.reranker, source)
    questions = list(source.questions)[: settings.num_questions]
    top_k = settings.top_k_of(source)
    with ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        vectors = embed_documents(source, models.encoder, work, progress=progress)
        rankings = rank_questions(source, questions, models, settings, vectors, work, progress)
        evidence: dict[tuple[Pool, str], list[tuple[str, ...]]] = {}
        answers: dict[tuple[Pool, str], list[str]] = {}
        if models.generator is not None and any(q.answers or not q.gold for q in questions):
            evidence = _evidence(rankings, thresholds, top_k, source, settings, vectors)
            answers = _answer_all(
                evidence, questions, source, models.generator, settings, work, progress
            )
    seconds = time.perf_counter() - started
    pools = {
        pool: {
            "num_documents": sum(len(search.document_ids) for search in source.searches(pool)),
            **pool_figures(found, thresholds, top_k),
            "answers": {
                name: answer_figures(source, questions, given)
                for (of, name), given in answers.items()
                if of == pool
            },
        }
        for pool, found in rankings.items()
    }
    figures = {
        "data": source.name,
        "num_questions": len(questions),
        "categories": dict(Counter(question.category for question in questions)),
        "settings": {**asdict(settings), "top_k": top_k},
        "thresholds": thresholds,
        "estimated_on": _estimated_on(settings, models.reranker),
        "pools": pools,
        "latency_ms": time_stages(
            source,
            questions[: settings.num_timed],
            models,
            pool=settings.pools[0],
            vectors=vectors,
            num_candidates=settings.num_candidates,
            top_k=top_k,
            threshold=next(iter(thresholds.values())),
            max_new_tokens=settings.max_new_tokens,
        ),
        "seconds": seconds,
        "problems": dict(source.problems.counts),
        "lemmatizer": lemmatizer()[0] if source.answer_metric == "webqa" else None,
        "models": {
            "encoder": models.encoder.fingerprint,
            "reranker": models.reranker.mllm.fingerprint,
            "generator": models.generator and models.generator.mllm.fingerprint,
        },
        "machine": machine(),
        "versions": versions(),
    }
    return Evaluation(figures, rankings, answers, evidence, source)


def calibrate(
    source: QuestionSet,
    models: Models,
    *,
    names: Sequence[str] = ESTIMATED,
    pool: Pool = "full",
    settings: EvaluationSettings | None = None,
    work: Path | None = None,
    progress: bool = True,
) -> tuple[SavedThresholds, Recalls]:
    """Estimates thresholds on a dev split; see `estimate_threshold`.

    Args:
        source: the dev split.
        models: retriever and reranker.
        names: which thresholds.
        pool: what is retrieved from.
        settings: `num_candidates`, `top_k` and `num_questions` count.
        work: see `evaluate`.
        progress: show progress bars.

    Returns:
        What to save with the model, and what it was estimated from.

    Raises:
        ValueError: no question has a gold document.
        DataError: a document cannot be read, and the data set is strict.
    """
    settings = settings or EvaluationSettings()
    questions = [q for q in source.questions if q.gold][: settings.num_questions]
    if not questions:
        raise ValueError(f"no question of {source.name} has a gold document to calibrate by")
    top_k = settings.top_k_of(source)
    with ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        vectors = embed_documents(source, models.encoder, work, progress=progress)
        one_pool = EvaluationSettings(pools=(pool,), num_candidates=settings.num_candidates)
        found = rank_questions(source, questions, models, one_pool, vectors, work, progress)[pool]
    tops = [(ranking, usable(ranking.reranked)[:top_k]) for ranking in found]
    recalls = Recalls(
        relevance=[[c.relevance for c in top] for _, top in tops],
        is_gold=[[c.id in ranking.question.gold for c in top] for ranking, top in tops],
        num_gold=[len(ranking.question.gold) for ranking, _ in tops],
    )
    values, refused = {}, {}
    for name in names:
        try:
            values[name] = estimate_threshold(name, recalls)
        except ThresholdError as error:
            refused[name] = str(error)
    saved = SavedThresholds(
        model=models.reranker.weights,
        template=models.reranker.template_name,
        top_k=top_k,
        data=source.name,
        num_questions=len(questions),
        values=values,
        refused=refused,
    )
    return saved, recalls


def rank_questions(
    source: QuestionSet,
    questions: Sequence[Question],
    models: Models,
    settings: EvaluationSettings,
    vectors: Mapping[str, np.ndarray],
    work: Path,
    progress: bool = True,
) -> dict[Pool, list[Ranking]]:
    """Candidates of each question and pool with their relevance; a pair is scored once."""
    found = {
        pool: retrieve(source, pool, questions, models.encoder, vectors, settings.num_candidates)
        for pool in settings.pools
    }
    name = depending_on(
        source.name, models.reranker.mllm.fingerprint, models.reranker.template_name
    )
    journal: Journal[tuple[str, str]] = Journal(work / f"relevance-{name}.jsonl")
    by_id = {question.id: question for question in questions}
    pairs = [
        (by_id[asked], id)
        for of_pool in found.values()
        for asked, hits in of_pool.items()
        for id, _ in hits
    ]
    score(source, pairs, models.reranker, journal, progress=progress)
    return {
        pool: [
            Ranking(
                question,
                [
                    Candidate(id, cosine, journal[question.id, id])
                    for id, cosine in of_pool.get(question.id, ())
                ],
            )
            for question in questions
        ]
        for pool, of_pool in found.items()
    }


def _thresholds(
    settings: EvaluationSettings, reranker: Reranker, source: QuestionSet
) -> dict[str, float]:
    saved = reranker.thresholds
    estimated = _estimated(settings)
    if estimated and saved is not None and saved.data == source.name:
        raise ThresholdError(
            f"{', '.join(estimated)} were estimated on {saved.data}, and would be judged by the "
            "same questions: evaluate another split"
        )
    return {str(t): resolve_threshold(t, saved) for t in settings.thresholds}


def _estimated(settings: EvaluationSettings) -> list[str]:
    return [t for t in settings.thresholds if isinstance(t, str) and t != "natural"]


def _estimated_on(settings: EvaluationSettings, reranker: Reranker) -> dict[str, Any] | None:
    saved = reranker.thresholds
    if saved is None or not _estimated(settings):
        return None
    return {"data": saved.data, "num_questions": saved.num_questions}


# --- answers ------------------------------------------------------------------------------------


def _evidence(
    rankings: Mapping[Pool, Sequence[Ranking]],
    thresholds: Mapping[str, float],
    top_k: int,
    source: QuestionSet,
    settings: EvaluationSettings,
    vectors: Mapping[str, np.ndarray],
) -> dict[tuple[Pool, str], list[tuple[str, ...]]]:
    """What each question is answered from: ids, by pool and way of choosing."""
    swapped = wrong_pictures(source, settings.noise_ratio, settings.seed)

    def shown(ids: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(swapped.get(id, id) for id in ids if id in vectors))

    found: dict[tuple[Pool, str], list[tuple[str, ...]]] = {}
    for pool, ranked in rankings.items():
        found[pool, RETRIEVED] = [shown([c.id for c in r.retrieved[:top_k]]) for r in ranked]
        for name, threshold in thresholds.items():
            found[pool, name] = [shown(r.kept(top_k, threshold)) for r in ranked]
        found[pool, GOLD] = [shown(r.question.gold) for r in ranked]
        found[pool, NOTHING] = [()] * len(ranked)
    return found


def _answer_all(
    evidence: Mapping[tuple[Pool, str], Sequence[tuple[str, ...]]],
    questions: Sequence[Question],
    source: QuestionSet,
    generator: Generator,
    settings: EvaluationSettings,
    work: Path,
    progress: bool,
) -> dict[tuple[Pool, str], list[str]]:
    name = depending_on(source.name, generator.mllm.fingerprint, settings.max_new_tokens)
    journal: Journal[Evidence] = Journal(work / f"answers-{name}.jsonl")
    wanted = [
        (question.id, ids)
        for of_way in evidence.values()
        for question, ids in zip(questions, of_way, strict=True)
    ]
    answer(
        source,
        wanted,
        generator,
        journal,
        max_new_tokens=settings.max_new_tokens,
        progress=progress,
    )
    return {
        way: [journal[question.id, ids] for question, ids in zip(questions, found, strict=True)]
        for way, found in evidence.items()
    }
