"""Turns rankings and answers into the figures of a result."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from ragvl.data.questions import Question, QuestionSet
from ragvl.evaluation.answering import RETRIEVED
from ragvl.evaluation.answers import answer_metrics
from ragvl.evaluation.estimation import Recalls
from ragvl.evaluation.metrics import (
    chance_figures,
    group_by_gold,
    ranking_figures,
    ranking_gains,
    ratio,
    reliability,
    selection_figures,
)
from ragvl.evaluation.ranking import Ranking, searched_documents
from ragvl.evaluation.result import AnswerFigures, Figures, PoolResult, Reliability
from ragvl.retriever import ORDERS

RECALL_AT = (1, 2, 5, 10, 20)


def pool_result(
    rankings: Sequence[Ranking],
    thresholds: Mapping[str, float],
    top_k: int,
    *,
    num_candidates: int,
    num_documents: int,
    answers: Mapping[str, AnswerFigures],
    estimated_otherwise: Sequence[str],
) -> PoolResult:
    """How well a pool's documents were retrieved, reranked, kept and separated.

    Args:
        rankings: of every question; where no gold document is known, a ranking counts for nothing.
        thresholds: by name.
        top_k: how many documents are kept at most.
        num_candidates: how many documents the retriever hands over.
        num_documents: see `PoolResult`.
        answers: see `PoolResult`.
        estimated_otherwise: see `PoolResult`.
    """
    result = PoolResult(
        num_documents=num_documents,
        searched_documents=searched_documents(rankings) or None,
        answers=dict(answers),
        estimated_otherwise=list(estimated_otherwise),
    )
    known = [ranking for ranking in rankings if ranking.question.gold]
    if not known:
        return result
    gold = [ranking.question.gold for ranking in known]
    retrieved = [[c.id for c in ranking.retrieved] for ranking in known]
    reranked = _reranked(known)
    by_reranker = [ranking.by_reranker_alone for ranking in known if ranking.retriever_weight]
    best = [_gold_first(ids, own) for ids, own in zip(retrieved, gold, strict=True)]
    alone = {
        order: [ranking.alone.get(order, ()) for ranking in known]
        for order in ORDERS
        if any(order in ranking.alone for ranking in known)
    }
    kept = {name: [r.kept(top_k, limit) for r in known] for name, limit in thresholds.items()}
    kept[RETRIEVED] = [tuple(ids[:top_k]) for ids in retrieved]
    return replace(
        result,
        retrieved=ranking_figures(retrieved, gold, recall_at=RECALL_AT),
        alone={
            order: ranking_figures(ids, gold, recall_at=RECALL_AT) for order, ids in alone.items()
        },
        chance=_chance(known, num_candidates),
        ceiling=ranking_figures(best, gold, recall_at=RECALL_AT),
        reranked=ranking_figures(reranked, gold, recall_at=RECALL_AT),
        reranker_alone=ranking_figures(_reranked(by_reranker), gold, recall_at=RECALL_AT)
        if by_reranker
        else {},
        gain=ranking_gains(reranked, retrieved, gold, recall_at=RECALL_AT),
        kept={name: selection_figures(ids, gold) for name, ids in kept.items()},
        reliability=_reliability(known),
        recalls=Recalls.of(known, top_k).scores(),
    )


def _reranked(rankings: Sequence[Ranking]) -> list[list[str]]:
    return [[candidate.id for candidate in ranking.reranked] for ranking in rankings]


def _gold_first(ids: Sequence[str], gold: Collection[str]) -> list[str]:
    return sorted(ids, key=lambda id: id not in gold)


def _chance(known: Sequence[Ranking], num_candidates: int) -> Figures:
    if not any(ranking.num_documents for ranking in known):
        return {}
    return chance_figures(
        [ranking.num_documents for ranking in known],
        [ranking.question.gold for ranking in known],
        num_candidates,
        recall_at=RECALL_AT,
    )


def answer_figures(
    source: QuestionSet, questions: Sequence[Question], answers: Sequence[str]
) -> AnswerFigures:
    """Each measure over all questions whose answer is known, and the main one by category."""
    known = [(q, a) for q, a in zip(questions, answers, strict=True) if q.answers]
    if not known:
        return AnswerFigures({})
    measures = {
        name: [measure(a, q) for q, a in known] for name, measure in answer_metrics(source).items()
    }
    groups = group_by_gold([question.gold for question, _ in known])
    main = next(iter(measures.values()))
    by_category: dict[str, list[tuple[float, int]]] = {}
    for (question, _), value, group in zip(known, main, groups, strict=True):
        by_category.setdefault(question.category, []).append((value, group))
    return AnswerFigures(
        {name: ratio(values, None, groups) for name, values in measures.items()},
        {
            category: ratio([v for v, _ in rows], None, [g for _, g in rows])
            for category, rows in by_category.items()
        },
    )


def _reliability(known: Sequence[Ranking]) -> Reliability | None:
    groups = group_by_gold([ranking.question.gold for ranking in known])
    pairs = [
        (c.relevance, c.id in ranking.question.gold, group)
        for ranking, group in zip(known, groups, strict=True)
        for c in ranking.retrieved
        if c.is_scored
    ]
    return reliability(*zip(*pairs, strict=True)) if pairs else None
