"""Estimates thresholds on a dev split: adaptive, F1-optimal, and of guaranteed precision.

A *recall* is a document that reranking put among a question's first `top_k`: what a threshold is
there to keep or to drop. It is correct if it is gold, else erroneous.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit, logit
from scipy.stats import gaussian_kde

from ragvl.evaluation.metrics import group_by_gold
from ragvl.evaluation.result import RecallScores
from ragvl.reranker import ThresholdError, resolve_threshold

if TYPE_CHECKING:
    from ragvl.evaluation.ranking import Ranking

ESTIMATED = ("adaptive", "f1", "precision>=0.9")
MIN_RECALLS = 20  # correct ones, and erroneous ones, that an estimate needs
CONFIDENCE = 0.9
_PRECISION = re.compile(r"precision>=(0?\.\d*[1-9]\d*)")  # more than 0, less than 1
_MOST_LOG_ODDS = 17.0  # float32's sigmoid is 1 from about there
# Fixed beforehand, since a grid that looks at the data would void the guarantee
_GRID = np.arange(-6.0, 12.25, 0.5)


@dataclass(frozen=True)
class Recalls:
    """Recalls of a dev split.

    Attributes:
        relevance: of each question, its recalls' relevance.
        is_gold: whether each is gold.
        num_gold: how many gold documents each question has.
        groups: which questions depend on each other, since they share a gold document, by number;
            None if each is its own.
    """

    relevance: Sequence[Sequence[float]]
    is_gold: Sequence[Sequence[bool]]
    num_gold: Sequence[int]
    groups: Sequence[int] | None = None

    @classmethod
    def of(cls, rankings: Sequence[Ranking], top_k: int) -> Recalls:
        """The recalls of questions whose gold documents are known."""
        gold = [ranking.question.gold for ranking in rankings]
        tops = [ranking.recalls(top_k) for ranking in rankings]
        return cls(
            relevance=[[c.relevance for c in top] for top in tops],
            is_gold=[[c.id in ids for c in top] for top, ids in zip(tops, gold, strict=True)],
            num_gold=[len(set(ids)) for ids in gold],
            groups=group_by_gold(gold),
        )

    def scores(self) -> RecallScores:
        """Relevance of the correct recalls, and of the erroneous ones."""
        rows = zip(self.relevance, self.is_gold, strict=True)
        pairs = [pair for row in rows for pair in zip(*row, strict=True)]
        return RecallScores(
            correct=[score for score, gold in pairs if gold],
            erroneous=[score for score, gold in pairs if not gold],
        )

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """All recalls' log-odds and whether they are gold."""
        relevance = np.array([score for row in self.relevance for score in row], np.float64)
        is_gold = np.array([gold for row in self.is_gold for gold in row], bool)
        with np.errstate(divide="ignore"):
            log_odds = logit(relevance)
        return log_odds.clip(-_MOST_LOG_ODDS, _MOST_LOG_ODDS), is_gold


def estimate_threshold(name: str, recalls: Recalls) -> float:
    """The threshold called `name`: "adaptive", "f1", "precision>=P", or one that needs no data.

    Raises:
        ThresholdError: the recalls do not allow an estimate; the message says why.
    """
    if name == "adaptive":
        return adaptive_threshold(recalls)
    if name == "f1":
        return f1_threshold(recalls)
    if match := _PRECISION.fullmatch(name):
        return precision_threshold(recalls, float(match[1]))
    return resolve_threshold(name)


def check_names(names: Sequence[str]) -> None:
    """Refuses what `estimate_threshold` cannot estimate, before the work.

    Raises:
        ThresholdError: a name is none of those.
    """
    for name in names:
        if name not in ("adaptive", "f1") and not _PRECISION.fullmatch(name):
            raise ThresholdError(
                f"threshold={name!r} is none to estimate: expected adaptive, f1, or precision>=P "
                "with a number between 0 and 1, such as precision>=0.9"
            )


def adaptive_threshold(recalls: Recalls) -> float:
    """Where the densities of relevance of correct and of erroneous recalls cross (the paper, 3.2).

    Densities are Gaussian kernel estimates over log-odds; their crossing is that over relevance,
    since both are multiplied by the same slope, and log-odds have no edges for a kernel to spill
    over. Of several crossings between the two medians, the one that separates best.

    Raises:
        ThresholdError: too few recalls of a kind, no spread, or correct recalls are not the more
            relevant ones.
    """
    log_odds, is_gold = _checked(recalls)
    correct, erroneous = log_odds[is_gold], log_odds[~is_gold]
    low, high = float(np.median(erroneous)), float(np.median(correct))
    if low >= high:
        raise ThresholdError(
            f"correct recalls are not more relevant than erroneous ones: medians {expit(high):.3f} "
            f"and {expit(low):.3f}"
        )
    for kind, values in (("correct", correct), ("erroneous", erroneous)):
        if np.ptp(values) == 0:
            raise ThresholdError(f"all {kind} recalls have the same relevance, {expit(values[0])}")
    points = np.linspace(low, high, 2001)
    # Of their logarithms, since far from its recalls a density is 0 in floating point
    above = gaussian_kde(correct).logpdf(points) - gaussian_kde(erroneous).logpdf(points)
    rising = np.flatnonzero((above[:-1] < 0) & (above[1:] >= 0))
    if not len(rising):
        raise ThresholdError("the densities of correct and erroneous recalls do not cross")
    share = above[rising] / (above[rising] - above[rising + 1])
    crossings = points[rising] + share * (points[rising + 1] - points[rising])
    separated = [(correct >= x).mean() - (erroneous >= x).mean() for x in crossings]
    return float(expit(crossings[int(np.argmax(separated))]))


def f1_threshold(recalls: Recalls) -> float:
    """The relevance at which F1 of what is kept is highest; midway to the next recall below.

    Raises:
        ThresholdError: too few recalls of a kind.
    """
    log_odds, is_gold = _checked(recalls)
    order = np.argsort(-log_odds, kind="stable")
    values, hits = log_odds[order], np.cumsum(is_gold[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + sum(recalls.num_gold))
    last_of_its_value = np.append(values[:-1] > values[1:], True)
    best = int(np.argmax(np.where(last_of_its_value, f1, -1)))
    below = values[best + 1] if best + 1 < len(values) else -np.inf
    return float((expit(values[best]) + expit(below)) / 2)


def precision_threshold(
    recalls: Recalls, at_least: float, *, confidence: float = CONFIDENCE
) -> float:
    """The lowest threshold whose precision is at least `at_least`, with probability `confidence`.

    The probability is over dev splits: if groups of questions are drawn independently from one
    population, then of all the times that this is called, at most 1 - `confidence` give a threshold
    at which the precision over the population (gold documents kept over documents kept, where a
    group counts as one question) is lower. Nothing is assumed of scores, nor of the recalls of one
    group, which depend on each other. The promise is about this model, this population, this pool
    and this number of candidates and of documents kept.

    Conformal risk control in the manner of Learn then Test (Angelopoulos et al., arXiv 2110.01052):
    each threshold of a fixed grid is tested at level (1 - confidence) / size, with the betting test
    for a bounded mean of Waudby-Smith and Ramdas (arXiv 2010.09686).

    Raises:
        ThresholdError: too few recalls of a kind, or no threshold passes.
        ValueError: a number is not between 0 and 1.
    """
    if not 0 < at_least < 1 or not 0 < confidence < 1:
        raise ValueError(f"at_least={at_least}, confidence={confidence}: expected 0 to 1")
    _checked(recalls)
    num_questions = len(recalls.relevance)
    top_k = max(map(len, recalls.relevance))
    scores = np.full((num_questions, top_k), -1.0)
    is_gold = np.zeros((num_questions, top_k), bool)
    for row, (relevance, hits) in enumerate(zip(recalls.relevance, recalls.is_gold, strict=True)):
        scores[row, : len(relevance)], is_gold[row, : len(hits)] = relevance, hits
    groups = np.arange(num_questions) if recalls.groups is None else np.array(recalls.groups)
    _, groups, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(sizes))
    level = (1 - confidence) / len(_GRID)
    for threshold in expit(_GRID):
        kept = scores >= threshold
        # In 0..1; its mean is above `at_least` just if precision is
        gain = at_least + ((is_gold & kept) - at_least * kept).sum(1) / top_k
        if _mean_is_above((np.bincount(groups, gain) / sizes)[order], at_least, level):
            return float(threshold)
    raise ThresholdError(
        f"no threshold has a precision of {at_least} with a confidence of {confidence}, from "
        f"{num_questions} questions about {len(order)} pictures or groups of them: take more, or "
        "promise less"
    )


def _mean_is_above(values: np.ndarray, bound: float, level: float) -> bool:
    """Whether values in 0..1 show, at that level, that their mean is above `bound`.

    A gambler who bets a share of the capital on each value being above the bound, and sizes the bet
    by the values before, seldom gets rich if the mean is not.
    """
    counts = np.arange(1, len(values) + 1)
    means = (0.5 + values.cumsum()) / (counts + 1)
    variances = (0.25 + ((values - means) ** 2).cumsum()) / (counts + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    bets = np.sqrt(2 * np.log(1 / level) / (before * len(values))).clip(max=0.75 / bound)
    capital = np.log1p(bets * (values - bound)).cumsum()
    return bool(capital.max() >= np.log(1 / level))


def _checked(recalls: Recalls) -> tuple[np.ndarray, np.ndarray]:
    log_odds, is_gold = recalls.flat()
    correct, erroneous = int(is_gold.sum()), int((~is_gold).sum())
    if min(correct, erroneous) < MIN_RECALLS:
        raise ThresholdError(
            f"{correct} correct and {erroneous} erroneous recalls; an estimate needs at least "
            f"{MIN_RECALLS} of each: take more dev questions"
        )
    return log_odds, is_gold
