"""Answers are judged as the data sets' own evaluation scripts judge them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragvl.evaluation.answers import (
    is_correct,
    lemmatizer,
    multimodalqa_em,
    multimodalqa_f1,
    webqa_accuracy,
)


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("Red", ["red"], True),
        ("the red.", ["a red"], True),
        ("dark red", ["red"], False),
        ("blue", ["red", "blue"], True),
        ("", ["red"], False),
        ("two  towers", ["Two Towers!"], True),
        ("red", [], False),
    ],
)
def test_exact_match(answer: str, accepted: list[str], right: bool) -> None:
    assert is_correct(answer, accepted) is right


@pytest.mark.parametrize(
    ("answer", "reference", "category", "expected"),
    [
        # F1 over the words of the category's list
        ("It is red.", "The roof is red.", "color", 1),
        ("red and blue", "red", "color", 2 * (1 / 2) * 1 / (1 / 2 + 1)),
        ("a crimson one", "red", "color", 0),
        ("It is round", "round and square", "shape", 2 * 1 * (1 / 2) / (1 + 1 / 2)),
        ("Yes, they do", "Yes.", "YesNo", 1),
        ("No", "Yes", "YesNo", 0),
        # the reference holds none of its category's words: all words count
        ("crimson", "crimson", "color", 1),
        ("deep crimson", "crimson", "color", 2 / 3),
        # numbers, in digits or in words
        ("There are two windows", "2", "number", 1),
        ("two or three", "three", "number", 2 / 3),
        ("07", "seven", "number", 1),
        ("many", "3", "number", 0),
        # recall of words elsewhere, whatever else is said
        ("the old church of Velmora", "church", "text", 1),
        ("church", "old church", "choose", 1 / 2),
        ("churches", "church", "Others", 1),  # base forms
        ("A", "A", "text", 1),  # a single letter is no article
        ("3.5 metres", "3.5", "text", 1),
        ("", "church", "text", 0),
    ],
)
def test_webqa_accuracy_by_category(
    answer: str, reference: str, category: str, expected: float
) -> None:
    assert webqa_accuracy(answer, [reference, "another"], category) == pytest.approx(expected)


def test_an_answer_that_nobody_knows_is_never_right() -> None:
    assert webqa_accuracy("red", [], "color") == 0
    assert multimodalqa_em("red", []) == multimodalqa_f1("red", []) == 0


@pytest.mark.parametrize(
    ("answer", "accepted", "em", "f1"),
    [
        ("The Red", ["red"], 1, 1),
        ("dark red", ["red"], 0, round(2 / 3, 2)),
        ("two", ["2"], 1, 1),
        ("two dogs", ["3 dogs"], 0, 0),  # a wrong number is wrong
        ("red, blue", ["blue", "red"], 1, 1),  # parts in any order
        ("red", ["red", "blue"], 0, 0.5),
        ("red, blue, green", ["red", "blue"], 0, round(2 / 3, 2)),
        ("Paris, France", ["Paris France"], 1, 1),  # one part is not cut at its comma
        ("twenty-one", ["twenty one"], 1, 1),
        ("", ["red"], 0, 0),
    ],
)
def test_multimodalqa_em_and_f1(answer: str, accepted: list[str], em: float, f1: float) -> None:
    assert multimodalqa_em(answer, accepted) == em
    assert multimodalqa_f1(answer, accepted) == pytest.approx(f1)


@given(st.text(max_size=30), st.lists(st.text(max_size=20), max_size=3))
def test_every_measure_is_a_share(answer: str, accepted: list[str]) -> None:
    for category in ("color", "shape", "number", "YesNo", "text", "choose", "Others"):
        assert 0 <= webqa_accuracy(answer, accepted, category) <= 1
    assert multimodalqa_em(answer, accepted) in (0, 1)
    assert 0 <= multimodalqa_f1(answer, accepted) <= 1
    if accepted:
        assert is_correct(accepted[0], accepted)
        assert multimodalqa_em(", ".join(accepted), accepted) == 1 or any(
            "," in part or not part.strip() for part in accepted
        )


def test_the_lemmatizer_says_which_it_is() -> None:
    name, lemmas = lemmatizer()
    assert name.startswith(("simplemma ", "spacy "))
    assert any(character.isdigit() for character in name)
    assert lemmas("houses doors") == ["house", "door"]
