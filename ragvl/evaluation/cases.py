"""Questions of an evaluation to look at, with what each stage made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ragvl.data.questions import Question
from ragvl.evaluation.answers import answer_metrics
from ragvl.evaluation.evaluate import Evaluation
from ragvl.evaluation.ranking import Candidate, Ranking

NUM_CASES = 12
_CANDIDATES_SHOWN = 8


@dataclass(frozen=True)
class Case:
    """One question, its documents and its answers.

    Attributes:
        question: the question.
        retrieved: its first candidates in the retriever's order.
        reranked: the same number in the reranker's.
        kept: ids of those kept, from which the generator answers.
        gold: gold documents that were not retrieved.
        answers: by what they are from, with how right each is; empty without a generator.
    """

    question: Question
    retrieved: Sequence[Candidate]
    reranked: Sequence[Candidate]
    kept: frozenset[str]
    gold: Sequence[str]
    answers: Mapping[str, tuple[str, float | None]]


def pick_cases(
    evaluation: Evaluation, which: Literal["wrong", "mixed"], count: int = NUM_CASES
) -> list[Case]:
    """Questions to look at, of mixed categories, from the first pool at the first threshold.

    Args:
        evaluation: what was measured.
        which: "wrong": answered wrongly or, without answers, without all gold documents kept.
        count: at most so many.
    """
    by_category: dict[str, list[Case]] = {}
    for number, ranking in enumerate(evaluation.rankings[evaluation.result.first_pool]):
        case = _case(evaluation, number, ranking)
        if which == "mixed" or _is_wrong(case, evaluation.result.first_threshold):
            by_category.setdefault(ranking.question.category, []).append(case)
    longest = max(map(len, by_category.values()), default=0)
    groups = by_category.values()
    mixed = [group[turn] for turn in range(longest) for group in groups if turn < len(group)]
    return mixed[:count]


def draw_cases(evaluation: Evaluation, count: int, *, seed: int) -> list[Case]:
    """Questions to look at, drawn at random from the first pool, in their order there.

    Args:
        evaluation: what was measured.
        count: at most so many.
        seed: the same seed draws the same ones.
    """
    rankings = evaluation.rankings[evaluation.result.first_pool]
    order = np.random.default_rng(seed).permutation(len(rankings))
    return [
        _case(evaluation, number, rankings[number]) for number in sorted(order[:count].tolist())
    ]


def _case(evaluation: Evaluation, number: int, ranking: Ranking) -> Case:
    result, question = evaluation.result, ranking.question
    threshold = result.thresholds[result.first_threshold]
    kept = ranking.kept(result.settings.top_k_of(evaluation.source), threshold)
    measure = next(iter(answer_metrics(evaluation.source).values()))
    answers = {
        name: (texts[number], measure(texts[number], question) if question.answers else None)
        for (pool, name), texts in evaluation.answers.items()
        if pool == result.first_pool
    }
    retrieved = {candidate.id for candidate in ranking.retrieved}
    return Case(
        question=question,
        retrieved=ranking.retrieved[:_CANDIDATES_SHOWN],
        reranked=ranking.reranked[:_CANDIDATES_SHOWN],
        kept=frozenset(kept),
        gold=[id for id in question.gold if id not in retrieved],
        answers=answers,
    )


def _is_wrong(case: Case, threshold: str) -> bool:
    _, right = case.answers.get(threshold, ("", None))
    if right is not None:
        return right < 1
    return not case.kept.issuperset(case.question.gold)
