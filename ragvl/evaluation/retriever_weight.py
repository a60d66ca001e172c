"""Estimates how much the retriever's order counts when candidates are reranked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ragvl.evaluation.ranking import Ranking
from ragvl.reranker import ThresholdError, place_prior

MIN_QUESTIONS = 20  # that an estimate needs
# How far places are spread beside how far raw scores are: from hardly to almost alone
_RATIOS = (0.0, *(2 ** (step / 2) for step in range(-8, 9)))


def estimate_retriever_weight(rankings: Sequence[Ranking]) -> float:
    """The weight by which gold documents come first: the one of the highest mean reciprocal rank.

    Weights are tried by which places spread 0, 1/16, ..., 16 times as far as raw scores do, within
    a question. Of several that are as good, the one in their middle is taken, which is least likely
    to be so by luck.

    Args:
        rankings: of a dev split; those whose candidates are all gold, or none, tell nothing.

    Returns:
        The weight, in log-odds; see `place_prior`.

    Raises:
        ThresholdError: fewer than `MIN_QUESTIONS` tell anything.
    """
    telling = [ranking for ranking in rankings if _tells(ranking)]
    if len(telling) < MIN_QUESTIONS:
        raise ThresholdError(
            f"{len(telling)} questions have both gold and other documents among their candidates: "
            f"{MIN_QUESTIONS} are needed to estimate the retriever's weight"
        )
    raw = [[c.raw for c in ranking.retrieved if c.is_scored] for ranking in telling]
    places = [place_prior(len(ranking.retrieved), 1.0) for ranking in telling]
    unit = _spread(raw) / _spread(places)
    means = [
        np.mean([_reciprocal_rank(ranking, ratio * unit) for ranking in telling])
        for ratio in _RATIOS
    ]
    best = np.flatnonzero(np.isclose(means, max(means), rtol=0, atol=1e-9))
    return _RATIOS[best[len(best) // 2]] * unit


def _tells(ranking: Ranking) -> bool:
    gold = [c.id in ranking.question.gold for c in ranking.retrieved if c.is_scored]
    return any(gold) and not all(gold)


def _reciprocal_rank(ranking: Ranking, weight: float) -> float:
    reranked = replace(ranking, retriever_weight=weight).reranked
    gold = ranking.question.gold
    return next(1 / place for place, one in enumerate(reranked, start=1) if one.id in gold)


def _spread(values: Sequence[Sequence[float]]) -> float:
    """The standard deviation within a question."""
    return math.sqrt(float(np.mean([np.var(of_one) for of_one in values])))
