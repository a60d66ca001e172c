"""How well documents are found, each figure with its 95 % interval.

Every figure here is a ratio of two sums over questions, as the paper counts: recall@k is gold
documents found over gold documents there are, so that a question with two of them weighs twice. The
interval is the percentile bootstrap's, over questions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

_RESAMPLES = 1000
_SEED = 0  # the same answers have the same interval


@dataclass(frozen=True)
class Figure:
    """A share with its 95 % interval.

    Attributes:
        value: the share; 0 where it would divide by nothing.
        low: the interval's lower end; None for fewer than two questions.
        high: its upper end.
        num_questions: over how many questions.
    """

    value: float
    low: float | None
    high: float | None
    num_questions: int


def ratio(parts: Sequence[float], wholes: Sequence[float] | None = None) -> Figure:
    """The sum of `parts` over the sum of `wholes`, one of each for each question.

    Args:
        parts: what counts.
        wholes: what it is a share of; 1 a question by default, which gives the mean of `parts`.

    Raises:
        ValueError: nothing is given, or the lengths differ.
    """
    over = np.asarray(parts, np.float64)
    under = np.ones_like(over) if wholes is None else np.asarray(wholes, np.float64)
    if len(over) != len(under) or not len(over):
        raise ValueError(f"{len(over)} parts of {len(under)} wholes: expected as many, at least 1")

    def share(parts: np.ndarray, wholes: np.ndarray, axis: int = -1) -> np.ndarray:
        total = wholes.sum(axis)
        return np.divide(parts.sum(axis), total, out=np.zeros_like(total), where=total > 0)

    value = float(share(over[None], under[None])[0])
    if len(over) < 2:
        return Figure(value, None, None, len(over))
    resampled = bootstrap(
        (over, under),
        share,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(1, 10**7 // len(over)),
        method="percentile",
        rng=np.random.default_rng(_SEED),
    )
    low, high = map(float, resampled.confidence_interval)
    return Figure(value, low, high, len(over))


def ranking_figures(
    ranked: Sequence[Sequence[str]],
    gold: Sequence[Collection[str]],
    *,
    recall_at: Sequence[int] = (1, 2, 5, 10, 20),
    ndcg_at: int = 10,
) -> dict[str, Figure]:
    """recall@k, mrr (of the first gold document) and ndcg@k.

    Args:
        ranked: for each question, document ids, best first.
        gold: for each question, the ids of its relevant documents, at least one.
        recall_at: the numbers of documents that are looked at.
        ndcg_at: the same for nDCG.

    Raises:
        ValueError: the lengths differ, a k is below 1, or a question has no gold document.
    """
    _check(ranked, gold)
    if min(*recall_at, ndcg_at) < 1:
        raise ValueError(f"recall_at={tuple(recall_at)}, ndcg_at={ndcg_at}: at least 1 each")
    sizes = [len(set(relevant)) for relevant in gold]
    if not all(sizes):
        raise ValueError("a question has no gold document, so its recall is undefined")
    hits = [[id in relevant for id in ids] for ids, relevant in zip(ranked, gold, strict=True)]
    figures = {f"recall@{k}": ratio([sum(row[:k]) for row in hits], sizes) for k in recall_at}
    figures["mrr"] = ratio([1 / (row.index(True) + 1) if any(row) else 0 for row in hits])
    figures[f"ndcg@{ndcg_at}"] = ratio(
        [
            _gain(row[:ndcg_at]) / _gain([True] * min(size, ndcg_at))
            for row, size in zip(hits, sizes, strict=True)
        ]
    )
    return figures


def selection_figures(
    kept: Sequence[Collection[str]], gold: Sequence[Collection[str]]
) -> dict[str, Figure]:
    """precision, recall and f1 of the documents kept for the generator.

    Args:
        kept: for each question, the ids that were kept; may be empty.
        gold: for each question, the ids of its relevant documents.

    Raises:
        ValueError: the lengths differ.
    """
    _check(kept, gold)
    hits = [len(set(ids) & set(relevant)) for ids, relevant in zip(kept, gold, strict=True)]
    num_kept = [len(set(ids)) for ids in kept]
    num_gold = [len(set(relevant)) for relevant in gold]
    both = [count + total for count, total in zip(num_kept, num_gold, strict=True)]
    return {
        "precision": ratio(hits, num_kept),
        "recall": ratio(hits, num_gold),
        "f1": ratio([2 * count for count in hits], both),  # 2PR / (P + R)
    }


def calibration_bins(
    relevance: Sequence[float], is_gold: Sequence[bool], *, num_bins: int = 10
) -> list[dict[str, float]]:
    """A reliability diagram: of pairs with like relevance, how many are gold.

    Returns:
        For each bin of equal width that holds any pair: its mean relevance, its share of gold
        documents, and its number of pairs.
    """
    scores, hits = np.asarray(relevance, float), np.asarray(is_gold, bool)
    bins = np.minimum((scores * num_bins).astype(int), num_bins - 1)
    return [
        {
            "relevance": float(scores[bins == number].mean()),
            "gold": float(hits[bins == number].mean()),
            "count": int((bins == number).sum()),
        }
        for number in range(num_bins)
        if (bins == number).any()
    ]


def expected_calibration_error(bins: Sequence[dict[str, float]]) -> float:
    """The mean distance between relevance and share of gold, each bin by its number of pairs."""
    total = sum(found["count"] for found in bins)
    return sum(found["count"] * abs(found["relevance"] - found["gold"]) for found in bins) / total


def _gain(hits: Sequence[bool]) -> float:
    return sum(1 / math.log2(rank + 2) for rank, hit in enumerate(hits) if hit)


def _check(found: Sequence[object], gold: Sequence[object]) -> None:
    if len(found) != len(gold):
        raise ValueError(f"results for {len(found)} queries, but gold for {len(gold)}")
    if not len(found):
        raise ValueError("no queries")
