from __future__ import annotations

import json
from pathlib import Path

import bench_training_step
import common
import pytest
from tables import TABLES

from ragvl.evaluation.overhead import OVERHEAD_ARMS


def test_it_writes_what_its_table_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    bench_training_step.main(models=["tiny", "tiny-internvl"], rounds=2)
    name = f"training_step_{bench_training_step.DEVICE.type}"
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert [(case["model"], case["rank"]) for case in result["cases"]] == [
        ("tiny", 0), ("tiny", 16), ("tiny-internvl", 0), ("tiny-internvl", 16),
    ]  # fmt: skip
    table = TABLES["training_step"](lambda asked: result if asked == name else None)
    for arm in OVERHEAD_ARMS:
        assert f"| {arm} | " in table
    assert "tiny-internvl, adapters of rank 16" in table
    assert "| plain | 1.00x, " in table
