"""Turns rankings and answers into figures, ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ragvl.data.questions import Question, QuestionSet
from ragvl.evaluation.answers import answer_metrics
from ragvl.evaluation.metrics import (
    Figure,
    calibration_bins,
    expected_calibration_error,
    ranking_figures,
    ratio,
    selection_figures,
)
from ragvl.evaluation.stages import Candidate, Ranking

RECALL_AT = (1, 2, 5, 10, 20)


def pool_figures(
    rankings: Sequence[Ranking], thresholds: Mapping[str, float], top_k: int
) -> dict[str, Any]:
    """How well a pool's documents were found, kept, and told apart.

    Args:
        rankings: those of questions without known gold documents do not count.
        thresholds: by name.
        top_k: how many documents are kept at most.
    """
    known = [ranking for ranking in rankings if ranking.question.gold]
    if not known:
        return {}
    gold = [ranking.question.gold for ranking in known]
    orders: dict[str, Callable[[Ranking], Sequence[Candidate]]] = {
        "retrieved": lambda ranking: ranking.retrieved,
        "reranked": lambda ranking: ranking.reranked,
    }
    figures: dict[str, Any] = {
        name: _plain(
            ranking_figures([[c.id for c in order(r)] for r in known], gold, recall_at=RECALL_AT)
        )
        for name, order in orders.items()
    }
    kept = {name: [r.kept(top_k, limit) for r in known] for name, limit in thresholds.items()}
    kept["retrieved"] = [tuple(c.id for c in r.retrieved[:top_k]) for r in known]
    figures["kept"] = {name: _plain(selection_figures(ids, gold)) for name, ids in kept.items()}
    pairs = [(c.relevance, c.id in r.question.gold) for r in known for c in usable(r.retrieved)]
    tops = [
        (c.relevance, c.id in r.question.gold) for r in known for c in usable(r.reranked)[:top_k]
    ]
    if pairs:
        bins = calibration_bins(*zip(*pairs, strict=True))
        figures["reliability"] = {"bins": bins, "error": expected_calibration_error(bins)}
    figures["recalls"] = {
        "correct": [relevance for relevance, is_gold in tops if is_gold],
        "erroneous": [relevance for relevance, is_gold in tops if not is_gold],
    }
    return figures


def answer_figures(
    source: QuestionSet, questions: Sequence[Question], answers: Sequence[str]
) -> dict[str, Any]:
    """Each measure over all questions whose answer is known, and the main one by category."""
    known = [(q, a) for q, a in zip(questions, answers, strict=True) if q.answers]
    if not known:
        return {}
    measures = {
        name: [measure(a, q) for q, a in known] for name, measure in answer_metrics(source).items()
    }
    main = next(iter(measures.values()))
    by_category: dict[str, list[float]] = {}
    for (question, _), value in zip(known, main, strict=True):
        by_category.setdefault(question.category, []).append(value)
    return {
        **_plain({name: ratio(values) for name, values in measures.items()}),
        "by_category": _plain({name: ratio(values) for name, values in by_category.items()}),
    }


def _plain(figures: Mapping[str, Figure]) -> dict[str, dict[str, Any]]:
    return {name: asdict(figure) for name, figure in figures.items()}


def usable(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those whose picture could be used."""
    return [candidate for candidate in candidates if not math.isnan(candidate.relevance)]
