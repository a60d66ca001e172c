"""Turns rankings and answers into figures, ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ragvl.data.questions import Question, QuestionSet
from ragvl.evaluation.answers import answer_metrics
from ragvl.evaluation.metrics import (
    Figure,
    difference,
    group_by_gold,
    ranking_figures,
    ranking_gains,
    ratio,
    reliability,
    selection_figures,
)
from ragvl.evaluation.stages import Candidate, Ranking

RECALL_AT = (1, 2, 5, 10, 20)
# Of an order, of documents kept: what two evaluations are compared by
_COMPARED = ("recall@1", "recall@5", "recall@20", "mrr", "precision", "f1")


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
    orders = {
        "retrieved": [[c.id for c in ranking.retrieved] for ranking in known],
        "reranked": [[c.id for c in ranking.reranked] for ranking in known],
    }
    figures: dict[str, Any] = {
        name: _plain(ranking_figures(ids, gold, recall_at=RECALL_AT))
        for name, ids in orders.items()
    }
    gains = ranking_gains(orders["reranked"], orders["retrieved"], gold, recall_at=RECALL_AT)
    figures["gain"] = _plain(gains)
    kept = {name: [r.kept(top_k, limit) for r in known] for name, limit in thresholds.items()}
    kept["retrieved"] = [tuple(c.id for c in r.retrieved[:top_k]) for r in known]
    figures["kept"] = {name: _plain(selection_figures(ids, gold)) for name, ids in kept.items()}
    pairs = [
        (c.relevance, c.id in ranking.question.gold, group)
        for ranking, group in zip(known, group_by_gold(gold), strict=True)
        for c in usable(ranking.retrieved)
    ]
    tops = [
        (c.relevance, c.id in r.question.gold) for r in known for c in usable(r.reranked)[:top_k]
    ]
    if pairs:
        figures["reliability"] = asdict(reliability(*zip(*pairs, strict=True)))
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
    groups = group_by_gold([question.gold for question, _ in known])
    main = next(iter(measures.values()))
    by_category: dict[str, list[tuple[float, int]]] = {}
    for (question, _), value, group in zip(known, main, groups, strict=True):
        by_category.setdefault(question.category, []).append((value, group))
    return {
        **_plain({name: ratio(values, None, groups) for name, values in measures.items()}),
        "by_category": {
            category: asdict(ratio([v for v, _ in rows], None, [g for _, g in rows]))
            for category, rows in by_category.items()
        },
    }


def compare_figures(figures: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """How far an evaluation's figures lie above another one's, of other data or other models.

    Args:
        figures: an evaluation's.
        other: what it is compared with: another's.

    Returns:
        By pool and by name, the figures that both have, each with its interval.
    """
    pools = {}
    for pool, found in figures["pools"].items():
        own = _named(found)
        theirs = _named(other["pools"].get(pool, {}))
        if shared := [name for name in own if name in theirs]:
            pools[pool] = {
                name: {
                    "here": own[name],
                    "there": theirs[name],
                    "change": asdict(difference(own[name], theirs[name])),
                }
                for name in shared
            }
    return {"data": other["data"], "num_questions": other["num_questions"], "pools": pools}


def _named(found: Mapping[str, Any]) -> dict[str, Any]:
    """A pool's main figures under names that say what they are of."""
    named: dict[str, Any] = {}
    for order in ("retrieved", "reranked"):
        figures = found.get(order, {})
        named |= {f"{name}, {order}": figures[name] for name in _COMPARED if name in figures}
    for way, figures in found.get("kept", {}).items():
        named |= {f"{name}, kept by {way}": figures[name] for name in _COMPARED if name in figures}
    for way, measures in found.get("answers", {}).items():
        for name, figure in measures.items():
            if name != "by_category":
                named[f"{name} of answers from {way}"] = figure
    return named


def _plain(figures: Mapping[str, Figure]) -> dict[str, dict[str, Any]]:
    return {name: asdict(figure) for name, figure in figures.items()}


def usable(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those whose picture could be used."""
    return [candidate for candidate in candidates if not math.isnan(candidate.relevance)]
