"""How much the retriever's order counts: by what gold documents come first on a dev split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from ragvl.data.questions import Question
from ragvl.evaluation.ranking import Candidate, Ranking
from ragvl.evaluation.retriever_weight import MIN_QUESTIONS, estimate_retriever_weight
from ragvl.reranker import ThresholdError, place_prior, relevance_order


def ranking(raw: Sequence[float], gold: Sequence[int]) -> Ranking:
    """Candidates `0`, `1`, ... of these raw scores, in the retriever's order."""
    question = Question("q", "Which?", (), "any", tuple(map(str, gold)), ())
    return Ranking(question, [Candidate(str(i), -i, one, one) for i, one in enumerate(raw)])


def drawn(of_raw: float, of_places: float, count: int = 300, seed: int = 0) -> list[Ranking]:
    """Rankings whose gold is drawn with the softmax of so much of raw scores and of log-places."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(count, 10)) * 2
    totals = of_raw * raw + np.array(place_prior(10, of_places))
    gold = (totals + rng.gumbel(size=totals.shape)).argmax(axis=1)  # Gumbel's trick
    return [ranking(scores, [one]) for scores, one in zip(raw, gold, strict=True)]


def mrr(rankings: Sequence[Ranking], weight: float) -> float:
    ranks = []
    for one in rankings:
        ids = [candidate.id for candidate in replace(one, retriever_weight=weight).reranked]
        ranks.append(1 / (1 + ids.index(one.question.gold[0])))
    return float(np.mean(ranks))


def test_places_add_their_logarithm_and_the_order_is_of_the_sum() -> None:
    assert place_prior(3, 2.0) == pytest.approx([0, -2 * math.log(2), -2 * math.log(3)])
    assert place_prior(2, 0.0) == [0, 0]
    raw = [0.0, 1.0, math.nan, 1.5]
    assert relevance_order(raw) == [3, 1, 0, 2]
    assert relevance_order(raw, place_prior(4, 1.0)) == [1, 3, 0, 2]
    assert relevance_order(raw, place_prior(4, 9.0)) == [0, 1, 3, 2]
    one = ranking(raw, [0])
    for weight in (0.0, 1.0, 9.0):
        weighed = replace(one, retriever_weight=weight)
        order = relevance_order(raw, place_prior(4, weight))
        assert [candidate.id for candidate in weighed.reranked] == list(map(str, order))
        assert weighed.by_reranker_alone == one


@pytest.mark.parametrize(("of_raw", "of_places"), [(1.0, 1.0), (0.3, 1.5), (2.0, 0.5)])
def test_the_estimate_is_about_as_good_as_what_the_gold_was_drawn_by(
    of_raw: float, of_places: float
) -> None:
    estimated = estimate_retriever_weight(drawn(of_raw, of_places))
    unseen = drawn(of_raw, of_places, 2000, seed=1)
    assert mrr(unseen, estimated) > mrr(unseen, of_places / of_raw) - 0.01
    assert mrr(unseen, estimated) > max(mrr(unseen, 0), mrr(unseen, 1e6)) - 0.01


@pytest.mark.parametrize(("of_raw", "of_places"), [(1.0, 1.0), (0.3, 1.5), (2.0, 0.5)])
def test_the_estimate_is_near_what_the_gold_was_drawn_by(of_raw: float, of_places: float) -> None:
    estimated = estimate_retriever_weight(drawn(of_raw, of_places, 10_000))
    assert estimated == pytest.approx(of_places / of_raw, rel=0.1)


def test_no_other_weight_is_likelier() -> None:
    rng = np.random.default_rng(3)
    rankings = []
    for _ in range(60):  # several gold ones, lists of any length, pictures that cannot be used
        raw = rng.normal(size=rng.integers(4, 30)) * 3
        gold = rng.permutation(len(raw))[: rng.integers(1, 3)]
        raw[gold] += 2
        raw[rng.permutation(np.delete(np.arange(len(raw)), gold))[0]] = math.nan
        rankings.append(ranking(raw, gold.tolist()))
    rows = [([c.raw for c in one.retrieved], one.question.gold) for one in rankings]
    spreads = [
        np.median([np.nanstd(raw) for raw, _ in rows]),
        np.median([np.std(np.log1p(np.flatnonzero(~np.isnan(raw)))) for raw, _ in rows]),
    ]

    def likelihood(of_raw: float, of_places: float) -> float:
        prior = ((of_raw * spreads[0]) ** 2 + (of_places * spreads[1]) ** 2) / 2
        logs = []
        for raw, gold in rows:
            shares = {
                str(i): math.exp(of_raw * one - of_places * math.log(i + 1))
                for i, one in enumerate(raw)
                if not math.isnan(one)
            }
            share = sum(shares[id] for id in gold) / sum(shares.values())
            logs.append(math.log(0.95 * share + 0.05 * len(gold) / len(shares)))
        return sum(logs) - prior

    def best(weight: float) -> float:
        loss = minimize_scalar(
            lambda of_raw: -likelihood(of_raw, weight * of_raw), bounds=(0, 3), method="bounded"
        )
        return -loss.fun

    weight = estimate_retriever_weight(rankings)
    assert weight > 0
    for other in (0.0, 0.8, 0.95, 1.05, 1.25, 4.0):
        assert best(other * weight) < best(weight)


@settings(max_examples=20, deadline=None)
@given(scale=st.sampled_from([0.25, 0.5, 4.0, 64.0]), seed=st.integers(0, 99))
def test_raw_scores_of_any_scale_and_shift_are_weighed_alike(scale: float, seed: int) -> None:
    rankings = drawn(1.0, 1.0, 40)
    shifts = np.random.default_rng(seed).integers(-8, 9, size=len(rankings))

    def moved(one: Ranking, shift: int) -> Ranking:
        raw = [scale * candidate.raw + int(shift) for candidate in one.retrieved]
        return ranking(raw, [int(id) for id in one.question.gold])

    others = [moved(*pair) for pair in zip(rankings, shifts, strict=True)]
    expected = scale * estimate_retriever_weight(rankings)
    assert estimate_retriever_weight(others) == pytest.approx(expected, rel=1e-6)


def test_whoever_tells_nothing_gives_way() -> None:
    rankings = drawn(0.0, 1.5)  # raw scores tell nothing
    weight = estimate_retriever_weight(rankings)
    assert mrr(rankings, weight) >= mrr(rankings, 1e9) > mrr(rankings, 0) + 0.1
    constant = [ranking([0.1] * 10, [int(one.question.gold[0])]) for one in rankings]
    weight = estimate_retriever_weight(constant)
    assert mrr(constant, weight) == mrr(constant, 1.0), "equal scores leave the retriever's order"
    sure = drawn(50.0, 0.0)  # the reranker knows everything
    assert mrr(sure, estimate_retriever_weight(sure)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("raw", [-20.0, -100.0, -1e6, -math.inf, math.inf])
def test_one_question_does_not_decide(raw: float, seed: int) -> None:
    """One gold document that is misjudged by far, or that no number can say how far."""
    rankings = drawn(1.0, 1.0, 60, seed)
    scores = [one.raw for one in rankings[0].retrieved]
    gold = int(rankings[0].question.gold[0])
    scores[gold if raw < 0 else (gold + 1) % 10] = raw
    expected = estimate_retriever_weight(rankings)
    estimated = estimate_retriever_weight([ranking(scores, [gold]), *rankings[1:]])
    assert estimated == pytest.approx(expected, rel=0.3)


def test_scores_that_differ_by_rounding_alone_leave_the_order() -> None:
    rng = np.random.default_rng(0)
    rankings = [
        ranking((0.3 + rng.integers(-1, 2, 10) * 2**-54).tolist(), [gold])
        for gold in rng.integers(0, 10, 30).tolist()
    ]
    assert estimate_retriever_weight(rankings) == 0


def test_questions_that_tell_nothing_do_not_count() -> None:
    telling = drawn(1.0, 1.0, MIN_QUESTIONS)
    others = [
        ranking([], []),
        ranking([1.0, 2.0], []),
        ranking([1.0, 2.0], [0, 1]),
        ranking([1.0, math.nan], [1]),  # the gold one cannot be used
    ]
    expected = estimate_retriever_weight(telling)
    assert estimate_retriever_weight([*others, *telling]) == expected
    with pytest.raises(ThresholdError, match="19 questions have both gold and other documents"):
        estimate_retriever_weight([*others, *telling[1:]])
