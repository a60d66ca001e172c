"""How well documents are retrieved and ranked, each figure with its 95 % interval.

Every figure here is a ratio of two sums over questions, as the paper counts: recall@k is gold
documents found over gold documents there are, so that a question with two of them weighs twice. The
interval is the percentile bootstrap's, over groups of questions that share a gold document: five
captions of one picture tell less than five pictures.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap

from ragvl.evaluation.result import Figure, Reliability, ReliabilityBin

_RESAMPLES = 1000
_SEED = 0  # the same answers have the same interval
_TAIL = 0.025


def ratio(
    parts: Sequence[float],
    wholes: Sequence[float] | None = None,
    groups: Sequence[int] | None = None,
    *,
    is_share: bool = True,
) -> Figure:
    """The sum of `parts` over the sum of `wholes`, one of each for each question.

    A bootstrap knows no luck that it has not seen: of a share of 0 or 1 the interval is
    Clopper-Pearson's of as many groups.

    Args:
        parts: what counts.
        wholes: what it is a share of; 1 a question by default, which gives the mean of `parts`.
        groups: which questions depend on each other, by number; each is its own by default.
        is_share: it lies in 0..1; a difference does not.

    Raises:
        ValueError: nothing is given, or the lengths differ.
    """
    over = np.asarray(parts, np.float64)
    under = np.ones_like(over) if wholes is None else np.asarray(wholes, np.float64)
    if len(over) != len(under) or not len(over):
        raise ValueError(f"{len(over)} parts of {len(under)} wholes: expected as many, at least 1")
    if groups is not None:
        _, numbers = np.unique(np.asarray(groups), return_inverse=True)
        over = np.bincount(numbers, over).astype(np.float64)
        under = np.bincount(numbers, under).astype(np.float64)
    num_questions, total = len(parts), under.sum()
    if not total:
        return Figure(None, None, None, num_questions)
    value = float(over.sum() / total)
    counted = int((under > 0).sum())
    if counted < 2:
        return Figure(value, None, None, num_questions)
    if is_share and value in (0.0, 1.0):
        width = 1 - _TAIL ** (1 / counted)
        return Figure(value, value and 1 - width, value or width, num_questions)
    low, high = _percentiles(over, under)
    return Figure(value, low, high, num_questions)


def _percentiles(over: np.ndarray, under: np.ndarray) -> tuple[float, float]:
    def share(parts: np.ndarray, wholes: np.ndarray, axis: int = -1) -> np.ndarray:
        total = wholes.sum(axis)
        nothing = np.full_like(total, np.nan)  # drawn without any whole: it says nothing
        return np.divide(parts.sum(axis), total, out=nothing, where=total > 0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # where all draws are alike
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
    low, high = np.nanquantile(resampled.bootstrap_distribution, [_TAIL, 1 - _TAIL])
    return float(low), float(high)


def difference(one: Figure, other: Figure) -> Figure:
    """How far a figure lies above another of other questions, from the ends of both.

    Newcombe's square-and-add interval (Statistics in Medicine 17, 1998).
    """
    if one.value is None or other.value is None:
        return Figure(None, None, None, 0)
    gap = one.value - other.value
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return Figure(gap, None, None, 0)
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    return Figure(gap, gap - below, gap + above, 0)


def median_figure(values: Sequence[float]) -> Figure:
    """The median with its bootstrap interval."""
    samples = np.asarray(values, np.float64)
    if len(samples) < 2:
        return Figure(float(np.median(samples)), None, None, len(samples))
    resampled = bootstrap(
        (samples,), np.median, method="percentile", rng=np.random.default_rng(_SEED)
    )
    low, high = map(float, resampled.confidence_interval)
    return Figure(float(np.median(samples)), low, high, len(samples))


def group_by_gold(gold: Sequence[Collection[str]]) -> list[int]:
    """A number for each question; those that share a gold document, or are linked so, share it."""
    parents = list(range(len(gold)))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    first: dict[str, int] = {}
    for number, ids in enumerate(gold):
        for id in ids:
            parents[root(number)] = root(first.setdefault(id, number))
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(number), len(numbers)) for number in range(len(gold))]


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
    groups = group_by_gold(gold)
    return {
        name: ratio(parts, wholes, groups)
        for name, (parts, wholes) in _ranking_parts(ranked, gold, recall_at, ndcg_at).items()
    }


def chance_figures(
    num_documents: Sequence[int],
    gold: Sequence[Collection[str]],
    num_candidates: int,
    *,
    recall_at: Sequence[int] = (1, 2, 5, 10, 20),
    ndcg_at: int = 10,
) -> dict[str, Figure]:
    """`ranking_figures` of the first `num_candidates` in a random order, as they are on average.

    They are exact, so that they have no interval.

    Args:
        num_documents: for each question, how many there are to order, gold ones included; where
            there is none, none is found.
        gold: for each question, the ids of its relevant documents, at least one.
        num_candidates: of how many the order is known.
        recall_at: see `ranking_figures`.
        ndcg_at: see `ranking_figures`.
    """
    _check(num_documents, gold)
    kinds = Counter(zip(num_documents, (len(set(ids)) for ids in gold), strict=True))
    sizes = sum(size * count for (_, size), count in kinds.items())
    sums: dict[str, float] = dict.fromkeys(
        [*(f"recall@{k}" for k in recall_at), "mrr", f"ndcg@{ndcg_at}"], 0.0
    )
    for (total, size), count in kinds.items():
        if not total:
            continue
        known = min(num_candidates, total)
        for k in recall_at:
            sums[f"recall@{k}"] += count * size * min(k, known) / total / sizes
        sums["mrr"] += count * _chance_of_first(total, size, known) / len(gold)
        discounts = _gain([True] * min(ndcg_at, known)) / _gain([True] * min(size, ndcg_at))
        sums[f"ndcg@{ndcg_at}"] += count * size / total * discounts / len(gold)
    return {name: Figure(value, None, None, len(gold)) for name, value in sums.items()}


def _chance_of_first(total: int, size: int, known: int) -> float:
    """The mean reciprocal place of the first of `size` documents among `total`; 0 past `known`."""
    mean, none_before = 0.0, 1.0
    for place in range(1, min(known, total - size + 1) + 1):
        here = size / (total - place + 1)
        mean += none_before * here / place
        none_before *= 1 - here
    return mean


def ranking_gains(
    ranked: Sequence[Sequence[str]],
    before: Sequence[Sequence[str]],
    gold: Sequence[Collection[str]],
    *,
    recall_at: Sequence[int] = (1, 2, 5, 10, 20),
    ndcg_at: int = 10,
) -> dict[str, Figure]:
    """How far `ranking_figures` of one order lie above those of another, question by question."""
    groups = group_by_gold(gold)
    after = _ranking_parts(ranked, gold, recall_at, ndcg_at)
    gains = {}
    for name, (old, wholes) in _ranking_parts(before, gold, recall_at, ndcg_at).items():
        change = [new - was for new, was in zip(after[name][0], old, strict=True)]
        gains[name] = ratio(change, wholes, groups, is_share=False)
    return gains


def _ranking_parts(
    ranked: Sequence[Sequence[str]],
    gold: Sequence[Collection[str]],
    recall_at: Sequence[int],
    ndcg_at: int,
) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """For each figure, each question's part and whole."""
    _check(ranked, gold)
    if min(*recall_at, ndcg_at) < 1:
        raise ValueError(f"recall_at={tuple(recall_at)}, ndcg_at={ndcg_at}: at least 1 each")
    sizes = [len(set(relevant)) for relevant in gold]
    if not all(sizes):
        raise ValueError("a question has no gold document, so its recall is undefined")
    ones = [1] * len(sizes)
    hits = [[id in relevant for id in ids] for ids, relevant in zip(ranked, gold, strict=True)]
    parts: dict[str, tuple[Sequence[float], Sequence[float]]] = {
        f"recall@{k}": ([sum(row[:k]) for row in hits], sizes) for k in recall_at
    }
    parts["mrr"] = [1 / (row.index(True) + 1) if any(row) else 0 for row in hits], ones
    parts[f"ndcg@{ndcg_at}"] = (
        [
            _gain(row[:ndcg_at]) / _gain([True] * min(size, ndcg_at))
            for row, size in zip(hits, sizes, strict=True)
        ],
        ones,
    )
    return parts


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
    groups = group_by_gold(gold)
    return {
        "precision": ratio(hits, num_kept, groups),
        "recall": ratio(hits, num_gold, groups),
        "f1": ratio([2 * count for count in hits], both, groups),  # 2PR / (P + R)
    }


def reliability(
    relevance: Sequence[float],
    is_gold: Sequence[bool],
    groups: Sequence[int],
    *,
    num_bins: int = 10,
) -> Reliability:
    """A reliability diagram's bins, and the expected calibration error.

    Args:
        relevance: of each pair.
        is_gold: whether its document is gold.
        groups: which pairs depend on each other, by number.
        num_bins: of equal width.
    """
    scores, hits = np.asarray(relevance, float), np.asarray(is_gold, float)
    numbers = np.asarray(groups)
    bins = np.minimum((scores * num_bins).astype(int), num_bins - 1)
    filled = []
    for number in np.unique(bins):
        here = bins == number
        share = ratio(hits[here].tolist(), None, numbers[here].tolist())
        assert share.value is not None  # a bin that is filled has pairs
        filled.append(
            ReliabilityBin(
                float(scores[here].mean()), share.value, share.low, share.high, int(here.sum())
            )
        )
    # Of each group, by how much each bin is too confident in all, and how many pairs it has
    shape = int(numbers.max()) + 1, num_bins
    excess = np.bincount(numbers * num_bins + bins, scores - hits, shape[0] * num_bins)
    counts = np.bincount(numbers, minlength=shape[0])

    def error(excess: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return np.abs(excess).sum(-1) / counts

    excess = excess.reshape(shape)
    value = float(error(excess.sum(0), counts.sum()))
    if shape[0] < 2:
        return Reliability(filled, Figure(value, None, None, shape[0]))
    drawn = np.random.default_rng(_SEED).multinomial(
        shape[0], np.full(shape[0], 1 / shape[0]), _RESAMPLES
    )
    low, high = np.quantile(error(drawn @ excess, drawn @ counts), [_TAIL, 1 - _TAIL])
    return Reliability(filled, Figure(value, float(low), float(high), shape[0]))


def _gain(hits: Sequence[bool]) -> float:
    return sum(1 / math.log2(rank + 2) for rank, hit in enumerate(hits) if hit)


def _check(results: Sequence[object], gold: Sequence[object]) -> None:
    if len(results) != len(gold):
        raise ValueError(f"results for {len(results)} queries, but gold for {len(gold)}")
    if not len(results):
        raise ValueError("no queries")
