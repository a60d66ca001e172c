"""Thresholds against closed forms, and the guarantee against simulated dev splits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from ragvl.evaluation.estimation import (
    Recalls,
    adaptive_threshold,
    check_names,
    estimate_threshold,
    f1_threshold,
    precision_threshold,
)
from ragvl.reranker import ThresholdError


def recalls(correct: np.ndarray, erroneous: np.ndarray) -> Recalls:
    """One recall a question."""
    scores = [*correct, *erroneous]
    gold = [True] * len(correct) + [False] * len(erroneous)
    return Recalls([[s] for s in scores], [[g] for g in gold], [1] * len(scores))


@pytest.mark.slow
def test_adaptive_is_where_the_densities_cross() -> None:
    """Of two normal densities of one width that is midway; of two widths, a root of a quadratic."""
    rng = np.random.default_rng(0)
    correct, erroneous = rng.normal(3, 1, 20_000), rng.normal(-1, 1, 30_000)
    threshold = adaptive_threshold(recalls(expit(correct), expit(erroneous)))
    assert threshold == pytest.approx(expit(1.0), abs=0.02)
    wide = rng.normal(-1, 2, 30_000)
    # log densities equal: (x-3)^2 / 2 = (x+1)^2 / 8 + log 2
    roots = np.roots([3 / 8, -3.25, 9 / 2 - 1 / 8 - np.log(2)])
    (crossing,) = [root for root in roots if -1 < root < 3]
    threshold = adaptive_threshold(recalls(expit(correct), expit(wide)))
    assert threshold == pytest.approx(expit(crossing), abs=0.03)


@pytest.mark.parametrize(("far", "width"), [(8, 0.3), (8, 1.0), (12, 0.5)])
def test_adaptive_of_recalls_that_lie_far_apart(far: float, width: float) -> None:
    """Between them both densities are 0 in floating point; the crossing is midway all the same."""
    rng = np.random.default_rng(5)
    correct, erroneous = rng.normal(far, width, 300), rng.normal(-far, width, 300)
    threshold = adaptive_threshold(recalls(expit(correct), expit(erroneous)))
    assert abs(np.log(threshold / (1 - threshold))) < 0.15 * far


def test_f1_is_highest_at_the_threshold() -> None:
    rng = np.random.default_rng(1)
    gold = rng.random((300, 2)) < 0.4
    scores = expit(rng.normal(np.where(gold, 1.5, -1.5), 1.5))
    num_gold = gold.sum(1) + (rng.random(300) < 0.2)  # some were not among the recalls
    threshold = f1_threshold(Recalls(scores.tolist(), gold.tolist(), num_gold.tolist()))

    def f1(threshold: float) -> float:
        kept = scores >= threshold
        return 2 * (kept & gold).sum() / (kept.sum() + num_gold.sum())

    assert f1(threshold) == max(f1(score) for score in scores.ravel())
    assert threshold not in scores  # between two recalls, so that rounding does not decide


def population(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Questions of two recalls whose scores and errors hang together; overconfident at that."""
    hard = rng.normal(0, 1, (size, 1))
    truth = hard + rng.normal(0.5, 1, (size, 2))
    is_gold = rng.random((size, 2)) < expit(1.5 * truth)
    return expit(3 * truth + 1), is_gold


@pytest.mark.slow
def test_the_promised_precision_is_kept_as_often_as_promised() -> None:
    rng = np.random.default_rng(2)
    many_scores, many_gold = population(rng, 400_000)
    trials, broken, thresholds = 300, 0, []
    for _ in range(trials):
        scores, gold = population(rng, 400)
        dev = Recalls(scores.tolist(), gold.tolist(), [2] * 400)
        try:
            threshold = precision_threshold(dev, 0.8)
        except ThresholdError:
            continue
        thresholds.append(threshold)
        broken += many_gold[many_scores >= threshold].mean() < 0.8
    assert broken <= 0.1 * trials
    assert len(thresholds) > 0.9 * trials  # it does not promise by refusing
    kept = (many_scores >= np.median(thresholds)).mean()
    assert kept > 0.25  # nor by keeping next to nothing
    # no better than the truth allows: some lower threshold would break the promise
    lowest = min(
        t for t in expit(np.arange(-6, 12, 0.5)) if many_gold[many_scores >= t].mean() > 0.8
    )
    assert np.median(thresholds) >= lowest


@pytest.mark.parametrize(("pictures", "each"), [(60, 5), (100, 5), (30, 10), (200, 1)])
def test_the_promise_is_kept_where_questions_share_pictures(pictures: int, each: int) -> None:
    """Questions about one picture are right or wrong together; precision is 0.78 everywhere."""
    rng = np.random.default_rng(9)
    promised = 0
    for _ in range(200):
        good = rng.random(pictures) < 0.78
        gold = good.repeat(each)[:, None]
        dev = Recalls(
            rng.random((pictures * each, 1)).tolist(),
            gold.tolist(),
            [1] * len(gold),
            groups=np.arange(pictures).repeat(each).tolist(),
        )
        try:
            precision_threshold(dev, 0.8)
            promised += 1
        except ThresholdError:
            pass
    assert promised <= 0.1 * 200


def test_groups_of_one_change_nothing() -> None:
    rng = np.random.default_rng(7)
    scores, gold = population(rng, 400)
    alone = Recalls(scores.tolist(), gold.tolist(), [2] * 400)
    grouped = Recalls(scores.tolist(), gold.tolist(), [2] * 400, groups=range(400))
    assert precision_threshold(alone, 0.8) == precision_threshold(grouped, 0.8)


def test_names_are_checked_before_the_work() -> None:
    check_names(["adaptive", "f1", "precision>=0.9", "precision>=.85"])
    for wrong in ("adaptve", "precision>=90%", "precision>=0", "precision>=.0", "precision>=1.0"):
        with pytest.raises(ThresholdError, match="none to estimate"):
            check_names(["f1", wrong])


def test_scores_without_meaning_are_promised_nothing() -> None:
    """Precision is 0.5 at every threshold: whoever promises 0.6 is wrong."""
    rng = np.random.default_rng(3)
    promised = 0
    for _ in range(200):
        gold = rng.random((300, 2)) < 0.5
        dev = Recalls(rng.random((300, 2)).tolist(), gold.tolist(), [1] * 300)
        try:
            precision_threshold(dev, 0.55)
            promised += 1
        except ThresholdError:
            pass
    assert promised <= 0.1 * 200


def test_estimates_refuse_too_little_or_one_sided_data() -> None:
    rng = np.random.default_rng(4)
    good, bad = expit(rng.normal(2, 1, 100)), expit(rng.normal(-2, 1, 100))
    for name in ("adaptive", "f1", "precision>=0.9"):
        assert 0 <= estimate_threshold(name, recalls(good, bad)) <= 1
        with pytest.raises(ThresholdError, match="100 correct and 0 erroneous"):
            estimate_threshold(name, recalls(good, bad[:0]))
        with pytest.raises(ThresholdError, match=r"5 correct and 100 erroneous.*at least 20"):
            estimate_threshold(name, recalls(good[:5], bad))
    with pytest.raises(ThresholdError, match="not more relevant"):
        adaptive_threshold(recalls(bad, good))
    with pytest.raises(ThresholdError, match="same relevance"):
        adaptive_threshold(recalls(np.ones(30), bad))
    with pytest.raises(ThresholdError, match=r"precision of 0\.999"):
        precision_threshold(recalls(good, bad), 0.999)
    with pytest.raises(ThresholdError, match="not known"):
        estimate_threshold("precision>=90", recalls(good, bad))
    with pytest.raises(ValueError, match=r"at_least=1\.5"):
        precision_threshold(recalls(good, bad), 1.5)
    assert estimate_threshold("natural", recalls(good, bad)) == 0.5


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 0.999, 1.0]))
def test_any_scores_give_a_probability_or_a_reason(seed: int, tie: float) -> None:
    rng = np.random.default_rng(seed)
    gold = rng.random((80, 2)) < rng.random()
    scores = np.where(rng.random((80, 2)) < rng.random(), tie, rng.random((80, 2)))
    dev = Recalls(scores.tolist(), gold.tolist(), gold.sum(1).tolist())
    for name in ("adaptive", "f1", "precision>=0.7"):
        try:
            assert 0 <= estimate_threshold(name, dev) <= 1
        except ThresholdError as error:
            assert len(str(error)) > 20
