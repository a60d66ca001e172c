"""One order of two."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragvl.retriever import ReciprocalRank, WeightedSum, estimate_weight, fuse, parse_fusion
from ragvl.retriever.fusion import Order, OrderHits


def found(scores: dict[str, float], size: int | None = None) -> OrderHits:
    hits = sorted(scores.items(), key=lambda hit: -hit[1])
    return OrderHits(hits, size or len(hits), scores.__contains__)


def orders(picture: dict[str, float], caption: dict[str, float]) -> dict[Order, OrderHits]:
    return {"picture": found(picture), "caption": found(caption)}


def test_reciprocal_ranks_are_summed():
    both = orders({"a": 0.9, "b": 0.5, "c": 0.1}, {"c": 0.4, "b": 0.3, "a": 0.2})
    scores = dict(fuse(both, ReciprocalRank(k=1), 3))
    assert scores == pytest.approx({"a": 1 / 2 + 1 / 4, "b": 2 / 3, "c": 1 / 2 + 1 / 4})
    ids = [id for id, _ in fuse(both, ReciprocalRank(k=1), 3)]
    assert ids == ["c", "a", "b"], "of documents that count alike the captions' first comes first"


def test_weighted_sums_are_of_standardised_scores():
    picture, caption = {"a": 3.0, "b": 1.0, "c": -1.0}, {"a": 0.0, "b": 0.2, "c": 0.1}

    def standard(scores: dict[str, float]) -> np.ndarray:
        values = np.array([scores[id] for id in "abc"])
        return (values - values.mean()) / values.std()

    expected = 0.3 * standard(picture) + 0.7 * standard(caption)
    scores = dict(fuse(orders(picture, caption), WeightedSum(0.3), 3))
    np.testing.assert_allclose([scores[id] for id in "abc"], expected)


@settings(max_examples=30)
@given(
    st.lists(st.integers(-100, 100), min_size=2, max_size=30, unique=True),
    st.randoms(use_true_random=False),
)
def test_the_whole_weight_is_one_order(values, random):
    picture = {str(i): value for i, value in enumerate(values)}
    caption = {str(i): value for i, value in enumerate(random.sample(values, len(values)))}
    both = orders(picture, caption)
    for weight, order in ((1, "picture"), (0, "caption")):
        fused = [id for id, _ in fuse(both, WeightedSum(weight), len(values))]
        assert fused == [id for id, _ in both[order].hits]


@pytest.mark.parametrize("fusion", [ReciprocalRank(), WeightedSum(0.5)])
class TestDocumentsOfOneOrder:
    def test_none_is_lost(self, fusion):
        both = orders({"a": 0.3, "p": 0.2}, {"a": 0.3, "c": 0.2})
        assert {id for id, _ in fuse(both, fusion, 10)} == {"a", "p", "c"}

    def test_missing_counts_neither_for_nor_against(self, fusion):
        """A picture without a caption lies between those whose captions fit best and worst."""
        picture = {id: 0.5 - 0.01 * place for place, id in enumerate("abcdx")}
        captions = {"a": 0.9, "b": 0.8, "c": 0.2, "d": 0.1}
        middle = {**picture, "x": picture["c"]}  # as good a picture as the one in the middle
        ids = [id for id, _ in fuse(orders(middle, captions), fusion, 5)]
        assert ids.index("a") < ids.index("x") < ids.index("d")

    def test_one_order_alone_stays_as_it_is(self, fusion):
        alone = {"picture": found({"a": 0.3, "b": 0.2, "c": 0.1})}
        assert fuse(alone, fusion, 2) == [("a", 0.3), ("b", 0.2)]

    def test_what_was_searched_and_not_found_counts_least(self, fusion):
        picture = OrderHits([("a", 0.9), ("b", 0.1)], 100, holds="abz".__contains__)
        caption = found({"a": 0.5, "z": 0.5, "b": 0.5})
        scores = dict(fuse({"picture": picture, "caption": caption}, fusion, 3))
        assert scores["z"] <= scores["b"] < scores["a"]


def test_equal_scores_say_nothing():
    both = orders({"a": 0.5, "b": 0.5}, {"b": 0.9, "a": 0.1})
    assert fuse(both, WeightedSum(0.9), 1)[0][0] == "b"


@pytest.mark.parametrize("best", ["picture", "caption"])
def test_the_weight_goes_to_the_order_that_finds(best):
    rng = np.random.default_rng(0)
    ids = [str(i) for i in range(50)]
    questions, gold = [], []
    for i in range(30):
        noise, good = (dict(zip(ids, rng.normal(size=50), strict=True)) for _ in range(2))
        good[ids[i]] += 4
        both = (good, noise) if best == "picture" else (noise, good)
        questions.append(orders(*both))
        gold.append([ids[i]])
    weight = estimate_weight(questions, gold).weight
    assert weight >= 0.6 if best == "picture" else weight <= 0.4

    def found_first(weight: float) -> int:
        fusion = WeightedSum(weight)
        return sum(fuse(q, fusion, 1)[0][0] in g for q, g in zip(questions, gold, strict=True))

    assert found_first(weight) >= max(found_first(0), found_first(1))


def test_the_middle_of_equally_good_weights_is_taken():
    agree = {"a": 0.9, "b": 0.1}
    assert estimate_weight([orders(agree, agree)], [["a"]]) == WeightedSum(0.5)


def test_names():
    weights = (0, 0.35, 1 / 3, 1)
    for fusion in (ReciprocalRank(), ReciprocalRank(12.5), *map(WeightedSum, weights)):
        assert parse_fusion(fusion.name) == fusion
    assert WeightedSum(1).name == WeightedSum(1.0).name
    for text in ("mean", "1.5", "-0.1", "nan", "", "rrf:", "rrf:-1", "rrf:much"):
        with pytest.raises(ValueError, match="expected rrf, or the weight"):
            parse_fusion(text)
    with pytest.raises(ValueError, match="k=-1"):
        ReciprocalRank(-1)
    with pytest.raises(ValueError, match="weight=2"):
        WeightedSum(2)
    with pytest.raises(ValueError, match="gold document"):
        estimate_weight([orders({"a": 1}, {"a": 1})], [[]])
