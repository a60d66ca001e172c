"""The benchmark of a whole evaluation: every method scores alike, and each begins anew."""

from __future__ import annotations

import json
from pathlib import Path

import bench_evaluate
import common
import pytest
from baselines import SerialGenerate
from work_clock import work_clock


@pytest.mark.slow
def test_it_writes_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(bench_evaluate, "NUM_PLACES", 4)
    with work_clock():
        bench_evaluate.main(rounds=2)
    result = json.loads((tmp_path / "evaluate_cpu.json").read_text())
    assert result["num_documents"] <= 12
    assert result["num_pairs"] > result["num_questions"]
    for part in ("ranked", "whole"):
        methods = result[part]
        assert methods.keys() == bench_evaluate.METHODS.keys()
        assert methods["generate"]["speedup"]["median"] == 1
        assert methods["evaluate"]["speedup"]["median"] > 1
    for method, figures in result["whole"].items():
        assert figures["ms"]["min"] > result["ranked"][method]["ms"]["min"]


@pytest.mark.slow
def test_methods_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        SerialGenerate, "score", lambda _self, _query, documents: [0.5] * len(documents)
    )
    monkeypatch.setattr(bench_evaluate, "NUM_PLACES", 2)
    with pytest.raises(RuntimeError, match="relevances differ by"):
        bench_evaluate.measure(1, 2)
