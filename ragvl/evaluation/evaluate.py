"""Retrieves, reranks and answers a whole data set, and measures each stage: `ragvl evaluate`."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ragvl.arguments import checked_count
from ragvl.data.questions import POOLS, Pool, Question, QuestionSet
from ragvl.doctor import machine, versions
from ragvl.evaluation.answers import lemmatizer
from ragvl.evaluation.calibration import (
    ESTIMATED,
    Recalls,
    check_names,
    estimate_threshold,
)
from ragvl.evaluation.metrics import group_by_gold, median_figure
from ragvl.evaluation.stages import (
    Answers,
    Candidate,
    Models,
    Ranking,
    Relevances,
    embed_documents,
    retrieve,
    wrong_pictures,
)
from ragvl.evaluation.summary import answer_figures, pool_figures, usable
from ragvl.generator import Generator
from ragvl.identity import name_of
from ragvl.profiling.latency import time_stages
from ragvl.reranker import (
    Reranker,
    SavedThresholds,
    Threshold,
    ThresholdError,
    check_threshold,
    resolve_threshold,
)

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
        noise_ratio: the share of gold documents in whose place the retriever hands over wrong ones.
        skip: leave out so many questions, the first ones.
        num_questions: only so many, the first ones after those; None for all.
        num_timed: so many questions are run one by one, and timed.
        max_new_tokens: of an answer.
        seed: of the noise.
    """

    pools: Sequence[Pool] = POOLS
    num_candidates: int = 20
    top_k: int | None = None
    thresholds: Sequence[Threshold] = ("natural",)
    noise_ratio: float = 0.0
    skip: int = 0
    num_questions: int | None = None
    num_timed: int = 20
    max_new_tokens: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_candidates", "top_k", "num_questions", "max_new_tokens"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, checked_count(name, value))
        for threshold in self.thresholds:
            check_threshold(threshold)
        # Numpy's numbers are none to JSON
        thresholds = tuple(t if isinstance(t, str) else float(t) for t in self.thresholds)
        object.__setattr__(self, "thresholds", thresholds)
        if not self.pools or not self.thresholds or self.num_timed < 0 or self.skip < 0:
            raise ValueError(
                "expected at least one pool and one threshold, num_timed and skip >= 0"
            )
        if not 0 <= self.noise_ratio <= 1:
            raise ValueError(f"noise_ratio={self.noise_ratio}: expected a share from 0 to 1")

    def chosen(self, questions: Sequence[Question]) -> Sequence[Question]:
        """Those of the questions that are asked."""
        return questions[self.skip :][: self.num_questions]

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
            raise ValueError(
                "there are no answers to submit: evaluate with a generator, questions with known "
                "answers or without known documents"
            )
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
        ValueError: a threshold is not known or was estimated on one of these questions, no question
            is left, or there are no two documents to swap.
        DataError: a document cannot be read, and the data set is strict.
    """
    settings = settings or EvaluationSettings()
    started = time.perf_counter()
    questions = settings.chosen(source.questions)
    thresholds = _thresholds(settings, models.reranker, questions)
    swapped = wrong_pictures(source, settings.noise_ratio, settings.seed)
    top_k = settings.top_k_of(source)
    with ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        vectors = embed_documents(source, models.encoder, work, progress=progress)
        questions = _answerable(source, questions, vectors)
        rankings = rank_questions(
            source, questions, models, settings, vectors, work, swapped=swapped, progress=progress
        )
        evidence: dict[tuple[Pool, str], list[tuple[str, ...]]] = {}
        answers: dict[tuple[Pool, str], list[str]] = {}
        if models.generator is not None and any(q.answers or not q.gold for q in questions):
            evidence = _evidence(rankings, thresholds, top_k, vectors, swapped)
            answers = _answer_all(
                evidence, questions, source, models.generator, settings, work, progress
            )
    seconds = time.perf_counter() - started
    pools = {
        pool: {
            "num_documents": sum(
                sum(id in vectors for id in search.document_ids) for search in source.searches(pool)
            ),
            **pool_figures(found, thresholds, top_k),
            "answers": {
                name: answer_figures(source, questions, given)
                for (of, name), given in answers.items()
                if of == pool
            },
            "estimated_otherwise": _estimated_otherwise(pool, settings, models, top_k),
        }
        for pool, found in rankings.items()
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
    figures = {
        "data": source.name,
        "num_questions": len(questions),
        "categories": dict(Counter(question.category for question in questions)),
        "settings": {**asdict(settings), "top_k": top_k},
        "thresholds": thresholds,
        "estimated_on": _estimated_on(settings, models.reranker),
        "pools": pools,
        "latency_ms": latency_ms,
        "median_ms": {stage: asdict(median_figure(ms)) for stage, ms in latency_ms.items()},
        "seconds": seconds,
        "problems": dict(source.problems.counts),
        "lemmatizer": lemmatizer()[0] if source.answer_metric == "webqa" else None,
        "models": {
            "encoder": models.encoder.fingerprint,
            "reranker": models.reranker.mllm.fingerprint,
            "generator": models.generator and models.generator.mllm.fingerprint,
        },
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
    }
    return Evaluation(figures, rankings, answers, evidence, source)


def _answerable(
    source: QuestionSet, questions: Sequence[Question], vectors: Mapping[str, np.ndarray]
) -> list[Question]:
    """Those of the questions whose gold documents can all be read; the others are problems.

    As a gold document without a picture, so one with a broken picture leaves nothing to be found.
    """
    found = []
    for question in questions:
        broken = [id for id in question.gold if id not in vectors]
        if broken:
            source.problems.add(
                "gold picture broken", f"question {question.id!r}: document {broken[0]!r}"
            )
        else:
            found.append(question)
    if not found:
        raise ValueError(f"{source.name} has no question whose gold documents can all be read")
    return found


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
        settings: `num_candidates`, `top_k`, `skip` and `num_questions` count.
        work: see `evaluate`.
        progress: show progress bars.

    Returns:
        What to save with the model, and what it was estimated from.

    Raises:
        ValueError: no question has a gold document.
        ThresholdError: a name is none that can be estimated.
        DataError: a document cannot be read, and the data set is strict.
    """
    check_names(names)
    settings = settings or EvaluationSettings()
    questions = [question for question in settings.chosen(source.questions) if question.gold]
    if not questions:
        raise ValueError(f"no question of {source.name} has a gold document to calibrate by")
    top_k = settings.top_k_of(source)
    with ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        vectors = embed_documents(source, models.encoder, work, progress=progress)
        questions = _answerable(source, questions, vectors)
        one_pool = EvaluationSettings(pools=(pool,), num_candidates=settings.num_candidates)
        found = rank_questions(
            source, questions, models, one_pool, vectors, work, progress=progress
        )[pool]
    tops = [(ranking, usable(ranking.reranked)[:top_k]) for ranking in found]
    gold = [ranking.question.gold for ranking, _ in tops]
    recalls = Recalls(
        relevance=[[c.relevance for c in top] for _, top in tops],
        is_gold=[[c.id in ranking.question.gold for c in top] for ranking, top in tops],
        num_gold=[len(set(ids)) for ids in gold],
        groups=group_by_gold(gold),
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
        prompts=models.reranker.prompts_name,
        encoder=models.encoder.fingerprint,
        pool=pool,
        num_candidates=settings.num_candidates,
        top_k=top_k,
        data=source.name,
        questions=tuple(map(_question_name, questions)),
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
    *,
    swapped: Mapping[str, str] | None = None,
    progress: bool = True,
) -> dict[Pool, list[Ranking]]:
    """Candidates of each question and pool with their relevance; a pair is scored once.

    Args:
        source: the data.
        questions: what is asked.
        models: the stages.
        settings: `pools` and `num_candidates` count.
        vectors: of the documents.
        work: keeps relevance.
        swapped: documents in whose place others are handed over; see `wrong_pictures`.
        progress: show progress bars.
    """
    swapped = swapped or {}
    found = {
        pool: {
            asked: [(swapped.get(id, id), cosine) for id, cosine in hits if id in vectors]
            for asked, hits in retrieve(
                source, pool, questions, models.encoder, vectors, settings.num_candidates
            ).items()
        }
        for pool in settings.pools
    }
    relevance = Relevances(source, models.reranker, work)
    by_id = {question.id: question for question in questions}
    pairs = [
        (by_id[asked], id)
        for of_pool in found.values()
        for asked, hits in of_pool.items()
        for id, _ in hits
    ]
    relevance.compute(pairs, progress=progress)
    return {
        pool: [
            Ranking(
                question,
                [
                    Candidate(id, cosine, relevance(question, id))
                    for id, cosine in of_pool.get(question.id, ())
                ],
            )
            for question in questions
        ]
        for pool, of_pool in found.items()
    }


def _thresholds(
    settings: EvaluationSettings, reranker: Reranker, questions: Sequence[Question]
) -> dict[str, float]:
    saved = reranker.thresholds
    estimated = _estimated(settings)
    if estimated and saved is not None:
        own = set(map(_question_name, questions)).intersection(saved.questions)
        if own:
            raise ThresholdError(
                f"{', '.join(estimated)} were estimated on {saved.data}, and {len(own)} of its "
                "questions are asked here: they would be judged by their own threshold"
            )
    return {str(t): resolve_threshold(t, saved) for t in settings.thresholds}


def _question_name(question: Question) -> str:
    """Names a question whatever its data set is called."""
    return name_of("question", question.id, question.text)[:12]


def _estimated(settings: EvaluationSettings) -> list[str]:
    return [t for t in settings.thresholds if isinstance(t, str) and t != "natural"]


def _estimated_on(settings: EvaluationSettings, reranker: Reranker) -> dict[str, Any] | None:
    saved = reranker.thresholds
    if saved is None or not _estimated(settings):
        return None
    names = ("data", "pool", "num_candidates", "top_k")
    found = {name: getattr(saved, name) for name in names}
    return {**found, "num_questions": len(saved.questions), "refused": saved.refused}


def _estimated_otherwise(
    pool: Pool, settings: EvaluationSettings, models: Models, top_k: int
) -> list[str]:
    """In what the thresholds' estimation differs: where in anything, no precision is promised."""
    saved = models.reranker.thresholds
    if saved is None or not _estimated(settings):
        return []
    return saved.differs(
        pool=pool,
        num_candidates=settings.num_candidates,
        top_k=top_k,
        encoder=models.encoder.fingerprint,
    )


# --- answers ------------------------------------------------------------------------------------


def _evidence(
    rankings: Mapping[Pool, Sequence[Ranking]],
    thresholds: Mapping[str, float],
    top_k: int,
    vectors: Mapping[str, np.ndarray],
    swapped: Mapping[str, str],
) -> dict[tuple[Pool, str], list[tuple[str, ...]]]:
    """What each question is answered from: ids, by pool and way of choosing."""
    found: dict[tuple[Pool, str], list[tuple[str, ...]]] = {}
    for pool, ranked in rankings.items():
        found[pool, RETRIEVED] = [tuple(c.id for c in r.retrieved[:top_k]) for r in ranked]
        for name, threshold in thresholds.items():
            found[pool, name] = [r.kept(top_k, threshold) for r in ranked]
        found[pool, GOLD] = [
            tuple(dict.fromkeys(swapped.get(id, id) for id in r.question.gold)) for r in ranked
        ]
        found[pool, NOTHING] = [()] * len(ranked)
    return {
        way: [tuple(id for id in ids if id in vectors) for ids in of_way]
        for way, of_way in found.items()
    }


def _answer_all(
    evidence: Mapping[tuple[Pool, str], Sequence[tuple[str, ...]]],
    questions: Sequence[Question],
    source: QuestionSet,
    generator: Generator,
    settings: EvaluationSettings,
    work: Path,
    progress: bool,
) -> dict[tuple[Pool, str], list[str]]:
    answers = Answers(source, generator, work, max_new_tokens=settings.max_new_tokens)
    wanted = [
        (question, ids)
        for of_way in evidence.values()
        for question, ids in zip(questions, of_way, strict=True)
    ]
    answers.compute(wanted, progress=progress)
    return {
        way: [answers(question, ids) for question, ids in zip(questions, found, strict=True)]
        for way, found in evidence.items()
    }
