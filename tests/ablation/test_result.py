"""What is kept of a run is checked before it is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ragvl.ablation.result import read_run
from ragvl.evaluation.result import ResultFileError, to_json

RUN = {
    "arm": "plain",
    "seed": 0,
    "measures": {"gold": 0.5},
    "num_questions": 3,
    "machine": {},
    "versions": {},
}


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
    path.write_text(json.dumps(RUN))
    assert to_json(read_run(path)) == RUN
    path.write_text(json.dumps(RUN | change))
    with pytest.raises(ResultFileError, match=next(iter(change))):
        read_run(path)
