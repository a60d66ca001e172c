"""Results are written and read without loss; what is no result is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ragvl.evaluation.result import (
    AnswerFigures,
    Figure,
    ResultFileError,
    from_json,
    read_evaluation,
    to_json,
)
from ragvl.output import json_text

SHIPPED = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize("name", ["demo", "charts", "captions", "places_unretrieved"])
def test_a_result_is_written_as_it_was_read(name: str) -> None:
    path = SHIPPED / f"{name}.json"
    assert json_text(to_json(read_evaluation(path))) == path.read_text()


def test_answers_without_a_known_one_are_an_empty_object() -> None:
    assert to_json(AnswerFigures({})) == {}
    assert from_json(AnswerFigures, {}) == AnswerFigures({})
    figure = Figure(0.5, None, None, 1)
    answers = AnswerFigures({"em": figure, "f1": figure}, {"text": figure})
    assert list(to_json(answers)) == ["em", "f1", "by_category"]
    assert from_json(AnswerFigures, to_json(answers)) == answers


def refused(content: str, tmp_path: Path) -> str:
    path = tmp_path / "result.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ResultFileError) as error:
        read_evaluation(path)
    message = str(error.value)
    assert message.startswith(f"{path} is not a result.json of `ragvl evaluate`: ")
    assert "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("", "JSON"),
        ("[1]", "should be an object"),
        ("[" * 10**5, "JSON"),
        ('{"arms": {}, "stage": "generator"}', "data"),  # an ablation's
        ("\xff", "JSON"),
    ],
)
def test_other_json_is_no_evaluation(content: str, place: str, tmp_path: Path) -> None:
    assert place in refused(content, tmp_path)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda result: result.pop("pools"), "pools"),
        (lambda result: result.update(num_questions=-2), "num_questions"),
        (lambda result: result.update(data=["x"]), "data"),
        (lambda result: result["settings"].update(noise_ratio=2), "settings"),
        (lambda result: result["pools"]["full"].update(kept=3), "pools.full.kept"),
        (
            lambda result: result["pools"]["full"]["retrieved"]["mrr"].update(value=float("nan")),
            "pools.full.retrieved.mrr.value",
        ),
        (lambda result: result["pools"]["full"]["answers"].update(gold=3), "answers.gold"),
    ],
)
def test_the_place_is_named(change: Callable[[Any], Any], place: str, tmp_path: Path) -> None:
    result = json.loads((SHIPPED / "demo.json").read_text())
    change(result)
    assert place in refused(json.dumps(result), tmp_path)
