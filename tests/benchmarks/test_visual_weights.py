"""What tells first tokens of answers from the others, on gaps that are made up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plots import visual_weights as plot
from tables import NOT_MEASURED
from visual_weights import PLACES, SHOWN, figures, first_tokens, visual_weights_table

from ragvl.training.examples import IGNORE
from ragvl.training.noise import NoiseSettings

CLAMP = NoiseSettings()
IS_FIRST = np.array([True, False, False, True, False])


def test_an_answers_first_token_is_its_first_labelled_one() -> None:
    labels = torch.tensor([[IGNORE, 7, 8, 9], [IGNORE, IGNORE, IGNORE, 5], [IGNORE, 3, 4, IGNORE]])
    assert first_tokens(labels).tolist() == [True, False, False, True, True, False]


@pytest.mark.parametrize(
    ("gaps", "told_apart", "ratio", "at_floor"),
    [
        ([9.0, 0.1, -2.0, 4.0, 1.5], 1.0, 4.5 / (3.5 / 3), (0.0, 2 / 3)),
        ([0.1, 9.0, 4.0, -2.0, 1.5], 0.0, 1 / (10.5 / 3), (1.0, 0.0)),
        ([0.5] * 5, 0.5, 1.0, (1.0, 1.0)),
    ],
)
def test_figures(
    gaps: list[float], told_apart: float, ratio: float, at_floor: tuple[float, float]
) -> None:
    measured = figures(np.array(gaps), IS_FIRST, CLAMP)
    assert measured["told_apart"] == pytest.approx(told_apart)
    assert measured["weight_ratio"] == pytest.approx(ratio)
    assert (measured["first"]["at_floor"], measured["others"]["at_floor"]) == at_floor
    assert measured["first"]["gap"] == pytest.approx((gaps[0] + gaps[3]) / 2)


def test_the_table_and_the_plot() -> None:
    assert NOT_MEASURED in visual_weights_table({})
    assert plot({}) is None
    measured = figures(np.array([9.0, 0.1, -2.0, 4.0, 1.5]), IS_FIRST, CLAMP)
    noises = [
        {"place": place, "timestep": timestep, **measured, "told_apart_by_log_probability": 0.75}
        for place in PLACES
        for timestep in (100, *SHOWN)
    ]
    result = {
        "questions": 2,
        "tokens": {"first": 2, "others": 3},
        "feature_std": 2.5,
        "clamp": [1.0, 5.0],
        "noises": noises,
    }
    text = visual_weights_table({"visual_weights": result})
    assert text.count("\n| tokens, ") == len(SHOWN) * (len(PLACES) - 1)
    assert "| 6.50 | -0.13 | 100 % | 75 % | 0 %, 50 % | 67 %, 0 % | 3.86 |" in text
    drawn = plot({"visual_weights": result})
    assert drawn is not None and all(place in drawn for place in PLACES)
