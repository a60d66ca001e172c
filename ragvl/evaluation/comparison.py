"""Sets two evaluations side by side."""

from __future__ import annotations

from ragvl.evaluation.metrics import difference
from ragvl.evaluation.result import (
    ComparedFigure,
    Comparison,
    EvaluationResult,
    Figure,
    Figures,
    PoolResult,
)

# Of an order, of documents kept
_COMPARED = ("recall@1", "recall@5", "recall@20", "mrr", "precision", "f1")


def compare(result: EvaluationResult, other: EvaluationResult) -> Comparison:
    """How far an evaluation's figures lie above another one's, of other data or other models."""
    pools = {}
    for pool, here in result.pools.items():
        if pool not in other.pools:
            continue
        own, theirs = _named_figures(here), _named_figures(other.pools[pool])
        rows = {
            name: ComparedFigure(figure, theirs[name], difference(figure, theirs[name]))
            for name, figure in own.items()
            if name in theirs
        }
        if rows:
            pools[str(pool)] = rows
    return Comparison(other.data, other.num_questions, pools)


def _named_figures(pool: PoolResult) -> dict[str, Figure]:
    """A pool's main figures under names that say what they are of."""
    named = _named(pool.retrieved, "retrieved") | _named(pool.reranked, "reranked")
    named |= _named(pool.reranker_alone, "by the reranker alone")
    for selection, figures in pool.kept.items():
        named |= _named(figures, f"kept by {selection}")
    for selection, answers in pool.answers.items():
        for name, figure in answers.measures.items():
            named[f"{name} of answers from {selection}"] = figure
    return named


def _named(figures: Figures, subject: str) -> dict[str, Figure]:
    return {f"{name}, {subject}": figures[name] for name in _COMPARED if name in figures}
