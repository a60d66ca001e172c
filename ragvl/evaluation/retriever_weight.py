"""Estimates how much the retriever's score counts when candidates are reranked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from ragvl.evaluation.ranking import Ranking

_PENALTY = 1e-3  # keeps coefficients finite where the two scores tell gold documents without error


def estimate_retriever_weight(rankings: Sequence[Ranking]) -> float:
    """How much of the retriever's score to add to a raw one for gold documents to come first.

    A conditional logit model (McFadden 1974): among its candidates a question's gold documents are
    chosen with the softmax of `a * raw + b * retrieved`, whose coefficients of the highest
    likelihood are found; the weight is b / a. It is 0 where the retriever's score tells nothing
    that the reranker's does not.

    Args:
        rankings: of a dev split. Those whose candidates are all gold, or none, tell nothing.

    Raises:
        ValueError: none tells anything, or the reranker's scores tell nothing of relevance, so that
            the retriever's order is the best.
    """
    questions = [row for ranking in rankings if (row := _scores(ranking)) is not None]
    if not questions:
        raise ValueError(
            "no question has both gold and other documents among its candidates to estimate the "
            "retriever's weight by"
        )
    scales = np.concatenate([scores for scores, _ in questions]).std(axis=0)
    scales[scales == 0] = 1.0
    standard = [((scores - scores.mean(axis=0)) / scales, gold) for scores, gold in questions]
    of_reranker, of_retriever = _fitted(standard) / scales
    if of_reranker <= 0:
        raise ValueError(
            "the reranker's scores tell nothing of relevance here that the retriever's do not: no "
            "weight makes its order better than the retriever's"
        )
    return float(max(0.0, of_retriever / of_reranker))


def _scores(ranking: Ranking) -> tuple[np.ndarray, np.ndarray] | None:
    """Of each candidate, (candidates, 2), the raw and the retriever's score; and which are gold."""
    candidates = [candidate for candidate in ranking.retrieved if candidate.is_scored]
    gold = np.array([candidate.id in ranking.question.gold for candidate in candidates], bool)
    if gold.all() or not gold.any():
        return None
    return np.array([(c.raw, c.score) for c in candidates], np.float64), gold


def _fitted(questions: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Coefficients (2,) of the highest likelihood."""
    shape = len(questions), max(len(gold) for _, gold in questions)
    padded, is_there, is_gold = np.zeros((*shape, 2)), np.zeros(shape, bool), np.zeros(shape, bool)
    for row, (scores, gold) in enumerate(questions):
        padded[row, : len(gold)] = scores
        is_there[row, : len(gold)] = True
        is_gold[row, : len(gold)] = gold

    def loss(coefficients: np.ndarray) -> float:
        totals = padded @ coefficients
        likelihoods = logsumexp(totals, axis=1, b=is_gold) - logsumexp(totals, axis=1, b=is_there)
        return float(_PENALTY * (coefficients**2).sum() - likelihoods.mean())

    return minimize(loss, np.ones(2), method="BFGS").x
