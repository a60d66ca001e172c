"""Metrics against values worked out by hand, and intervals that hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragvl.evaluation.metrics import (
    calibration_bins,
    expected_calibration_error,
    ranking_figures,
    ratio,
    selection_figures,
)

RANKED = [["a", "b", "c"], ["d", "e", "f"]]
GOLD = [("b",), ("d", "x")]


def test_recall_counts_gold_documents_over_all_queries() -> None:
    figures = ranking_figures(RANKED, GOLD, recall_at=(1, 2, 100))
    assert figures["recall@1"].value == pytest.approx(1 / 3)  # d of b, d, x
    assert figures["recall@2"].value == pytest.approx(2 / 3)
    assert figures["recall@100"].value == pytest.approx(2 / 3)  # x was never retrieved


def test_mrr_and_ndcg() -> None:
    figures = ranking_figures(RANKED, GOLD, ndcg_at=2)
    assert figures["mrr"].value == pytest.approx((1 / 2 + 1) / 2)
    second = 1 / math.log2(3)
    assert figures["ndcg@2"].value == pytest.approx((second / 1 + 1 / (1 + second)) / 2)
    assert ranking_figures([["x"]], [("a",)])["mrr"].value == 0


def test_precision_recall_f1() -> None:
    figures = selection_figures([["a", "b"], ["d"]], GOLD)
    assert {name: figure.value for name, figure in figures.items()} == {
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
    }
    skewed = selection_figures([["b"], []], GOLD)
    assert (skewed["precision"].value, skewed["recall"].value) == (1.0, pytest.approx(1 / 3))
    assert skewed["f1"].value == pytest.approx(2 * (1 / 3) / (4 / 3))
    nothing = selection_figures([[], []], GOLD)
    assert [figure.value for figure in nothing.values()] == [0, 0, 0]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="2 queries, but gold for 1"):
        ranking_figures(RANKED, GOLD[:1])
    with pytest.raises(ValueError, match="at least 1 each"):
        ranking_figures(RANKED, GOLD, recall_at=(0, 1))
    with pytest.raises(ValueError, match="undefined"):
        ranking_figures(RANKED, [("b",), ()])
    with pytest.raises(ValueError, match="1 queries, but gold for 2"):
        selection_figures([["a"]], GOLD)
    with pytest.raises(ValueError, match="no queries"):
        selection_figures([], [])
    with pytest.raises(ValueError, match="2 parts of 1 wholes"):
        ratio([1, 2], [1])


@given(st.lists(st.permutations(list("abcdef")), min_size=1, max_size=5), st.data())
@settings(deadline=None)
def test_figures_of_any_ranking(ranked: list[list[str]], data: st.DataObject) -> None:
    gold = [data.draw(st.sets(st.sampled_from("abcdef"), min_size=1)) for _ in ranked]
    figures = ranking_figures(ranked, gold, recall_at=range(1, 7))
    recalls = [figures[f"recall@{k}"].value for k in range(1, 7)]
    assert recalls == sorted(recalls)
    assert recalls[-1] == 1.0
    for figure in figures.values():
        assert 0 <= figure.value <= 1
        if len(ranked) == 1:
            assert figure.low is None
        else:
            assert figure.low is not None and figure.high is not None
            assert 0 <= figure.low <= figure.high <= 1


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 200 samples of 150 questions, 95 % intervals should miss about ten times."""
    rng = np.random.default_rng(5)
    missed = 0
    for _ in range(200):
        sizes = rng.integers(1, 3, 150)
        figure = ratio(rng.binomial(sizes, 0.3), sizes)
        assert figure.low is not None and figure.high is not None
        missed += not figure.low <= 0.3 <= figure.high
    assert 2 <= missed <= 22  # 10.0 +- 4 standard deviations of Binomial(200, 0.05)


def test_intervals_narrow_with_the_root_of_the_number_of_questions() -> None:
    few, many = ratio([0, 1] * 50), ratio([0, 1] * 5000)
    widths = [figure.high - figure.low for figure in (few, many)]  # type: ignore[operator]
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.25)
    assert widths[0] == pytest.approx(2 * 1.96 * 0.05, rel=0.2)


def test_the_reliability_of_scores() -> None:
    relevance = [0.05, 0.15, 0.11, 0.97, 1.0, 0.95, 0.93]
    is_gold = [False, False, True, True, True, True, False]
    bins = calibration_bins(relevance, is_gold)
    assert [found["count"] for found in bins] == [1, 2, 4]
    assert [found["gold"] for found in bins] == [0, 0.5, 0.75]
    assert bins[1]["relevance"] == pytest.approx(0.13)
    by_hand = (1 * 0.05 + 2 * abs(0.13 - 0.5) + 4 * abs(3.85 / 4 - 0.75)) / 7
    assert expected_calibration_error(bins) == pytest.approx(by_hand)
