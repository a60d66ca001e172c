"""Metrics against values worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragvl.evaluation.metrics import precision_recall_f1, recall_at_k

RANKED = [["a", "b", "c"], ["d", "e", "f"]]
GOLD = [("b",), ("d", "x")]


def test_recall_counts_gold_documents_over_all_queries() -> None:
    assert recall_at_k(RANKED, GOLD, 1) == pytest.approx(1 / 3)  # d of b, d, x
    assert recall_at_k(RANKED, GOLD, 2) == pytest.approx(2 / 3)
    assert recall_at_k(RANKED, GOLD, 100) == pytest.approx(2 / 3)  # x was never retrieved


def test_precision_recall_f1() -> None:
    result = precision_recall_f1([["a", "b"], ["d"]], GOLD)
    assert result.precision == pytest.approx(2 / 3)
    assert result.recall == pytest.approx(2 / 3)
    assert result.f1 == pytest.approx(2 / 3)
    skewed = precision_recall_f1([["b"], []], GOLD)
    assert (skewed.precision, skewed.recall) == (1.0, pytest.approx(1 / 3))
    assert skewed.f1 == pytest.approx(2 * (1 / 3) / (4 / 3))


def test_nothing_kept_is_zero_and_not_an_error() -> None:
    result = precision_recall_f1([[], []], GOLD)
    assert (result.precision, result.recall, result.f1) == (0.0, 0.0, 0.0)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="2 queries, but gold for 1"):
        recall_at_k(RANKED, GOLD[:1], 1)
    with pytest.raises(ValueError, match="k=0"):
        recall_at_k(RANKED, GOLD, 0)
    with pytest.raises(ValueError, match="undefined"):
        recall_at_k(RANKED, [(), ()], 1)
    with pytest.raises(ValueError, match="1 queries, but gold for 2"):
        precision_recall_f1([["a"]], GOLD)


@given(st.lists(st.permutations(list("abcdef")), min_size=1, max_size=5), st.data())
def test_recall_grows_with_k_up_to_one(ranked: list[list[str]], data: st.DataObject) -> None:
    gold = [data.draw(st.sets(st.sampled_from("abcdef"), min_size=1)) for _ in ranked]
    recalls = [recall_at_k(ranked, gold, k) for k in range(1, 7)]
    assert recalls == sorted(recalls)
    assert recalls[-1] == 1.0
