"""How well documents are found."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


def recall_at_k(ranked: Sequence[Sequence[str]], gold: Sequence[Collection[str]], k: int) -> float:
    """The share of all gold documents that stand among the first `k` of their query's ranking.

    Summed over queries before dividing, as the paper counts it: a question with two gold
    documents weighs twice.

    Args:
        ranked: for each query, document ids, best first.
        gold: for each query, the ids of its relevant documents.
        k: how many of `ranked` count.

    Raises:
        ValueError: the lengths differ, `k` is below 1, or nothing is gold.
    """
    if k < 1:
        raise ValueError(f"k={k}: it must be at least 1")
    _check_lengths(ranked, gold)
    total = sum(len(relevant) for relevant in gold)
    if not total:
        raise ValueError("no query has a gold document, so recall is undefined")
    found = sum(
        len(set(ids[:k]) & set(relevant)) for ids, relevant in zip(ranked, gold, strict=True)
    )
    return found / total


@dataclass(frozen=True)
class PrecisionRecallF1:
    """Of the documents kept for the generator; each is 0 where it would divide by nothing."""

    precision: float
    recall: float
    f1: float


def precision_recall_f1(
    kept: Sequence[Collection[str]], gold: Sequence[Collection[str]]
) -> PrecisionRecallF1:
    """Precision, recall and F1 of kept documents, summed over queries (micro), as in the paper.

    Args:
        kept: for each query, the ids that were kept; may be empty.
        gold: for each query, the ids of its relevant documents.

    Raises:
        ValueError: the lengths differ.
    """
    _check_lengths(kept, gold)
    hits = sum(len(set(ids) & set(relevant)) for ids, relevant in zip(kept, gold, strict=True))
    num_kept = sum(len(set(ids)) for ids in kept)
    num_gold = sum(len(set(relevant)) for relevant in gold)
    precision = hits / num_kept if num_kept else 0.0
    recall = hits / num_gold if num_gold else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return PrecisionRecallF1(precision, recall, f1)


def _check_lengths(found: Sequence[object], gold: Sequence[object]) -> None:
    if len(found) != len(gold):
        raise ValueError(f"results for {len(found)} queries, but gold for {len(gold)}")
