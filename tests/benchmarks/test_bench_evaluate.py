"""The benchmark of a whole evaluation: every way scores alike, and each begins anew."""

from __future__ import annotations

import json
from pathlib import Path

import bench_evaluate
import common
import pytest
from baselines import SerialGenerate
from work_clock import work_clock


def test_it_writes_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(bench_evaluate, "NUM_PLACES", 8)
    with work_clock():
        bench_evaluate.main(rounds=2)
    result = json.loads((tmp_path / "evaluate_cpu.json").read_text())
    assert result["num_documents"] <= 24
    assert result["num_pairs"] > result["num_questions"]
    for part in ("ranked", "whole"):
        ways = result[part]
        assert set(ways) == {"generate", "one_pair", "evaluate"}
        assert ways["generate"]["speedup"]["median"] == 1
        assert ways["evaluate"]["speedup"]["median"] > 1
    for way, figures in result["whole"].items():
        assert figures["ms"]["min"] > result["ranked"][way]["ms"]["min"]


def test_ways_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        SerialGenerate, "score", lambda _self, _query, documents: [0.5] * len(documents)
    )
    monkeypatch.setattr(bench_evaluate, "NUM_PLACES", 4)
    with pytest.raises(RuntimeError, match="relevances differ by"):
        bench_evaluate.measure(None, 2)


def test_only_a_whole_run_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(bench_evaluate, "NUM_PLACES", 4)
    bench_evaluate.main(questions=1, rounds=2)
    assert not list(tmp_path.iterdir())
