"""Metrics against values worked out by hand, and intervals that hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragvl.evaluation.metrics import (
    difference,
    group_by_gold,
    median_figure,
    ranking_figures,
    ranking_gains,
    ratio,
    reliability,
    selection_figures,
)
from ragvl.evaluation.result import Figure

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
    # of nothing kept there is no precision
    assert [figure.value for figure in nothing.values()] == [None, 0, 0]


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
def test_figures_of_any_ranking(ranked: list[list[str]], data: st.DataObject) -> None:
    gold = [data.draw(st.sets(st.sampled_from("abcdef"), min_size=1)) for _ in ranked]
    figures = ranking_figures(ranked, gold, recall_at=range(1, 7))
    recalls = [figures[f"recall@{k}"].value for k in range(1, 7)]
    assert recalls == sorted(recalls)
    assert recalls[-1] == 1.0
    for figure in figures.values():
        assert 0 <= figure.value <= 1
        if len(set(group_by_gold(gold))) == 1:
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


@pytest.mark.slow
def test_intervals_narrow_with_the_root_of_the_number_of_questions() -> None:
    few, many = ratio([0, 1] * 50), ratio([0, 1] * 5000)
    widths = [figure.high - figure.low for figure in (few, many)]  # type: ignore[operator]
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.25)
    assert widths[0] == pytest.approx(2 * 1.96 * 0.05, rel=0.2)


def test_a_share_of_none_or_all_still_has_an_interval() -> None:
    """Clopper-Pearson's: of n without a miss, misses of a share p go unseen with (1 - p)^n."""
    for size in (2, 30, 1000):
        none, every = ratio([0] * size), ratio([1] * size)
        assert (none.low, every.high) == (0, 1)
        assert none.high is not None and every.low is not None
        assert (1 - none.high) ** size == pytest.approx(0.025)
        assert every.low == pytest.approx(1 - none.high)
    rare = sum(
        ratio(list(row)).low <= 0.97 for row in np.random.default_rng(1).random((300, 30)) < 0.97
    )
    assert rare >= 0.95 * 300  # the bootstrap alone would miss almost half


def test_questions_of_one_picture_count_as_one() -> None:
    gold = [("a",), ("b",), ("a", "c"), ("c",), ("d",), ()]
    assert group_by_gold(gold) == [0, 1, 0, 0, 2, 3]
    rng = np.random.default_rng(3)
    hits = (rng.random(100) < 0.5).repeat(5)  # five questions each, all right or all wrong
    own, grouped = ratio(hits), ratio(hits, None, np.arange(100).repeat(5))
    assert own.value == grouped.value
    assert grouped.num_questions == 500
    widths = [figure.high - figure.low for figure in (own, grouped)]
    assert widths[1] / widths[0] == pytest.approx(5**0.5, rel=0.15)


def test_intervals_of_linked_questions_hold_the_truth() -> None:
    rng = np.random.default_rng(6)
    missed = 0
    for _ in range(200):
        chance = rng.beta(1, 1, 60).repeat(5)
        figure = ratio(rng.random(300) < chance, None, np.arange(60).repeat(5))
        missed += not figure.low <= 0.5 <= figure.high
    assert missed <= 22


def test_a_gain_is_counted_question_by_question() -> None:
    gold = [(f"a{n}", f"b{n}") for n in range(60)]
    before = [["x", a] if n % 3 else [a] for n, (a, _) in enumerate(gold)]
    after = [[a, "x"] if n % 3 else [a] for n, (a, _) in enumerate(gold)]
    gains = ranking_gains(after, before, gold, recall_at=(1, 2))
    assert gains["recall@1"].value == pytest.approx(40 / 120)
    assert gains["recall@2"].value == 0
    assert (gains["recall@2"].low, gains["recall@2"].high) == (0, 0)
    assert 0 < gains["mrr"].low < 0.5 * 2 / 3 < gains["mrr"].high
    worse = ranking_gains(before, after, gold, recall_at=(1,))
    assert worse["recall@1"].value == pytest.approx(-40 / 120)


def test_the_difference_of_two_figures_by_hand() -> None:
    one, other = Figure(0.6, 0.5, 0.8, 9), Figure(0.3, 0.2, 0.35, 9)
    result = difference(one, other)
    assert result.value == pytest.approx(0.3)
    assert result.low == pytest.approx(0.3 - math.hypot(0.1, 0.05))
    assert result.high == pytest.approx(0.3 + math.hypot(0.2, 0.1))
    assert difference(one, Figure(None, None, None, 9)).value is None
    assert difference(one, Figure(0.5, None, None, 9)).low is None


def test_a_median_has_an_interval() -> None:
    result = median_figure(np.random.default_rng(2).normal(10, 1, 400).tolist())
    assert result.low < 10 < result.high
    assert result.high - result.low == pytest.approx(2 * 1.96 * 1.2533 / 20, rel=0.3)
    assert median_figure([3.0]).low is None


@pytest.mark.slow
def test_the_reliability_of_scores() -> None:
    relevance = [0.05, 0.15, 0.11, 0.97, 1.0, 0.95, 0.93]
    is_gold = [False, False, True, True, True, True, False]
    result = reliability(relevance, is_gold, [0, 0, 1, 1, 2, 2, 3])
    assert [of_bin.count for of_bin in result.bins] == [1, 2, 4]
    assert [of_bin.gold for of_bin in result.bins] == [0, 0.5, 0.75]
    assert result.bins[1].relevance == pytest.approx(0.13)
    by_hand = (1 * 0.05 + 2 * abs(0.13 - 0.5) + 4 * abs(3.85 / 4 - 0.75)) / 7
    assert result.error.value == pytest.approx(by_hand)
    assert 0 <= result.error.low <= result.error.high <= 1
    rng = np.random.default_rng(8)
    scores = rng.random(5000)
    honest = reliability(scores, rng.random(5000) < scores, range(5000))
    sure = reliability(scores, rng.random(5000) < scores**3, range(5000))
    assert honest.error.high < 0.05 < sure.error.low
    assert all(b.low <= b.gold <= b.high for b in honest.bins)
