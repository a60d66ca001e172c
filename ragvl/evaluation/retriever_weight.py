"""Estimates how much the retriever's order counts when candidates are reranked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from ragvl.evaluation.ranking import Ranking
from ragvl.reranker import ThresholdError, place_prior

_Table = NDArray[np.float64]

MIN_QUESTIONS = 20  # that an estimate needs
_ANY = 0.05  # a share of questions
_NOTHING = 1e-9  # of the largest raw score: a spread of rounding alone
_MOST = 16.0  # where places spread so many times as far as raw scores, these hardly count


def estimate_retriever_weight(rankings: Sequence[Ranking]) -> float:
    """The weight by which gold documents are likeliest to come first.

    A conditional logit (McFadden, 1974): that a gold document comes first has the probability of
    gold documents in the softmax, over a question's candidates, of a raw - b ln(place); in a
    twentieth of the questions any candidate comes first, so that no single question decides. The a
    and b of the highest likelihood, neither below 0, give the weight b / a. A standard normal prior
    on both, in units of how far raw scores and ln(place) spread within a question, keeps them
    finite where one of them tells all.

    Args:
        rankings: of a dev split; those whose candidates are all gold, or none, tell nothing.

    Returns:
        The weight, in log-odds; see `place_prior`. At most one by which places spread 16 times as
        far as raw scores.

    Raises:
        ThresholdError: fewer than `MIN_QUESTIONS` tell anything.
    """
    telling = [ranking for ranking in rankings if _tells(ranking)]
    if len(telling) < MIN_QUESTIONS:
        raise ThresholdError(
            f"{len(telling)} questions have both gold and other documents among their candidates: "
            f"{MIN_QUESTIONS} are needed to estimate the retriever's weight"
        )
    raw, places, is_gold = _tables(telling)
    deviations = np.nanstd([raw, places], axis=2)
    differs = deviations[0] > _NOTHING * np.nanmax(np.abs(raw), axis=1)
    if not differs.any():
        return 0.0  # equal raw scores leave the retriever's order
    spreads = np.median(deviations[:, differs], axis=1)
    orders = np.stack([raw, places]) / spreads[:, None, None]
    of_raw, of_places = minimize(
        _loss, np.ones(2), args=(orders, is_gold), jac=True, bounds=[(0, None)] * 2
    ).x
    ratio = min(of_places / of_raw, _MOST) if of_raw else _MOST
    return float(ratio * spreads[0] / spreads[1]) if of_places else 0.0


def _tables(rankings: Sequence[Ranking]) -> tuple[_Table, _Table, NDArray[np.bool_]]:
    """(questions, candidates): raw scores, -ln(place), which are gold; NaN where none is scored."""
    shape = len(rankings), max(len(ranking.retrieved) for ranking in rankings)
    raw, is_gold = np.full(shape, np.nan), np.zeros(shape, bool)
    for row, ranking in enumerate(rankings):
        for place, one in enumerate(ranking.retrieved):
            if one.is_scored:
                raw[row, place], is_gold[row, place] = one.raw, one.id in ranking.question.gold
    finite = raw[np.isfinite(raw)]  # what is infinite counts as the farthest that is not
    raw = np.clip(raw, finite.min(initial=0), finite.max(initial=0))
    return raw, np.where(np.isnan(raw), np.nan, place_prior(shape[1], 1.0)), is_gold


def _tells(ranking: Ranking) -> bool:
    gold = [c.id in ranking.question.gold for c in ranking.retrieved if c.is_scored]
    return any(gold) and not all(gold)


def _loss(factors: _Table, orders: _Table, is_gold: NDArray[np.bool_]) -> tuple[float, _Table]:
    """The negative logarithm of likelihood and prior, and its gradient.

    Args:
        factors: (2,): of raw scores and of places.
        orders: (2, questions, candidates): both, NaN where none is scored.
        is_gold: (questions, candidates): which are gold.
    """
    scored = np.nan_to_num(orders)
    totals = np.where(np.isnan(orders[0]), -np.inf, np.tensordot(factors, scored, 1))
    of_gold = np.where(is_gold, totals, -np.inf)
    share = np.exp(logsumexp(of_gold, axis=1) - logsumexp(totals, axis=1))
    of_any = is_gold.sum(axis=1) / (totals > -np.inf).sum(axis=1)
    likelihood = (1 - _ANY) * share + _ANY * of_any
    loss = factors @ factors / 2 - np.log(likelihood).sum()
    surplus = softmax(totals, axis=1) - softmax(of_gold, axis=1)
    surplus *= ((1 - _ANY) * share / likelihood)[:, None]
    return float(loss), np.tensordot(scored, surplus, 2) + factors
