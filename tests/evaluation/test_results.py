"""Results of earlier runs are checked; what is wrong is one line with the file's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ragvl.evaluation.results import ResultFileError, read_ablation_run, read_evaluation

SHIPPED = Path(__file__).parents[2] / "benchmarks" / "results"


def run() -> dict[str, Any]:
    found = {"arm": "plain", "seed": 0, "measures": {"gold": 0.5}, "num_questions": 3}
    return {**found, "machine": {}, "versions": {}}


@pytest.mark.parametrize("name", ["demo", "charts", "captions"])
def test_shipped_results_are_read(name: str) -> None:
    path = SHIPPED / f"{name}.json"
    assert read_evaluation(path) == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("", "JSON"),
        ("[1]", "should be an object"),
        ("[" * 10**5, "JSON"),
        ('{"data": "x", "num_questions": 2}', "pools"),
        ('{"data": "x", "num_questions": -2, "pools": {}}', "num_questions"),
        ('{"data": ["x"], "num_questions": 2, "pools": {}}', "data"),
        ('{"data": "x", "num_questions": 2, "pools": {"full": {"kept": 3}}}', "pools.full.kept"),
        (
            '{"data": "x", "num_questions": 2, "pools": {"full": {"retrieved": {"mrr": '
            '{"value": NaN, "low": 0, "high": 0}}}}}',
            "pools.full.retrieved.mrr.value",
        ),
        ('{"arms": {}, "stage": "generator"}', "data"),  # an ablation's
        ("\xff", "JSON"),
    ],
)
def test_other_json_is_no_evaluation(content: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ResultFileError) as error:
        read_evaluation(path)
    message = str(error.value)
    assert message.startswith(f"{path} is not a result.json of `ragvl evaluate`: ")
    assert place in message and "\n" not in message and len(message) < 500


@pytest.mark.parametrize(
    "change",
    [
        {"measures": {}},
        {"measures": {"gold": None}},
        {"measures": [0.5]},
        {"num_questions": 0},
        {"machine": None},
        {"training": {"samples": 1}},
    ],
)
def test_other_json_is_no_run_of_an_ablation(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run()))
    assert read_ablation_run(path) == run()
    path.write_text(json.dumps(run() | change))
    with pytest.raises(ResultFileError, match=next(iter(change))):
        read_ablation_run(path)
