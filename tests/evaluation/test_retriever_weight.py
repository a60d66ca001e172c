"""How much the retriever's score counts is estimated from known coefficients' choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragvl.data.questions import Question
from ragvl.evaluation.ranking import Candidate, Ranking
from ragvl.evaluation.retriever_weight import estimate_retriever_weight


def ranking(raw: Sequence[float], retrieved: Sequence[float], gold: Sequence[int]) -> Ranking:
    """Candidates `0`, `1`, ... with these scores."""
    question = Question("q", "Which?", (), "any", tuple(map(str, gold)), ())
    pairs = enumerate(zip(raw, retrieved, strict=True))
    return Ranking(question, [Candidate(str(i), score, log, log) for i, (log, score) in pairs])


def chosen(of_raw: float, of_retrieved: float, count: int = 2000, seed: int = 0) -> list[Ranking]:
    """Rankings whose gold is drawn with the softmax of so much of both scores."""
    rng = np.random.default_rng(seed)
    raw, retrieved = rng.normal(size=(count, 8)) * 3, rng.normal(size=(count, 8)) * 0.1
    totals = of_raw * raw + of_retrieved * retrieved
    gold = (totals + rng.gumbel(size=totals.shape)).argmax(axis=1)  # Gumbel's trick
    return [ranking(*rows, [one]) for *rows, one in zip(raw, retrieved, gold, strict=True)]


@pytest.mark.parametrize(("of_raw", "of_retrieved"), [(0.5, 10.0), (1.0, 5.0), (0.2, 20.0)])
def test_the_ratio_of_known_coefficients_is_found(of_raw: float, of_retrieved: float) -> None:
    estimated = estimate_retriever_weight(chosen(of_raw, of_retrieved))
    assert estimated == pytest.approx(of_retrieved / of_raw, rel=0.15)


@settings(max_examples=20, deadline=None)
@given(of_raw=st.floats(1e-2, 1e2), of_score=st.floats(1e-2, 1e2), shift=st.floats(-10, 10))
def test_units_do_not_matter(of_raw: float, of_score: float, shift: float) -> None:
    rankings = chosen(0.5, 10.0, 100)

    def in_units(one: Candidate) -> Candidate:
        return replace(one, raw=of_raw * one.raw + shift, score=of_score * one.score - shift)

    others = [replace(one, retrieved=[*map(in_units, one.retrieved)]) for one in rankings]
    expected = estimate_retriever_weight(rankings) * of_raw / of_score
    assert estimate_retriever_weight(others) == pytest.approx(expected, rel=1e-2)


def test_a_retriever_that_misleads_counts_nothing() -> None:
    assert estimate_retriever_weight(chosen(0.5, -10.0, 200)) == 0.0


def test_a_reranker_that_misleads_is_refused() -> None:
    with pytest.raises(ValueError, match="tell nothing of relevance"):
        estimate_retriever_weight(chosen(-0.5, 10.0, 200))


def test_scores_that_separate_everything_give_a_number() -> None:
    same = [ranking([3.0, 1.0, 0.0], [0.9, 0.2, 0.1], [0])] * 5
    assert 0 < estimate_retriever_weight(same) < np.inf


def test_what_tells_nothing_is_left_out() -> None:
    known = chosen(0.5, 10.0, 50)
    expected = estimate_retriever_weight(known)
    nothing = [
        ranking([], [], []),
        ranking([1.0, 2.0], [0.1, 0.2], []),
        ranking([1.0, 2.0], [0.1, 0.2], [0, 1]),
        ranking([1.0, np.nan], [0.1, 0.2], [1]),  # the gold one cannot be used
    ]
    assert estimate_retriever_weight([*nothing, *known]) == expected
    with pytest.raises(ValueError, match="no question has both gold and other documents"):
        estimate_retriever_weight(nothing)


def test_a_ranking_adds_the_weighted_score() -> None:
    one = ranking([2.0, 1.0, np.nan, 0.0], [0.1, 0.2, 9.0, 0.4], [0])
    ids = [[c.id for c in replace(one, retriever_weight=w).reranked] for w in (0.0, 6.0, 12.0)]
    assert ids == [["0", "1", "3", "2"], ["0", "3", "1", "2"], ["3", "1", "0", "2"]]
    assert replace(one, retriever_weight=12.0).by_reranker_alone == one
