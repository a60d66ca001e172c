from __future__ import annotations

import json
from pathlib import Path

import bench_training_step
import common
import pytest
from tables import TABLES

from ragvl.profiling.overhead import OVERHEAD_ARMS


def test_it_writes_what_its_table_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    bench_training_step.main(models=["tiny", "tiny-internvl"], rounds=2)
    name = "training_step_cpu"
    result = json.loads((tmp_path / f"{name}.json").read_text())
    setups = [(0, False), (16, False), (16, True)]
    assert [
        (case["model"], case["rank"], case["gradient_checkpointing"]) for case in result["cases"]
    ] == [(model, *setup) for model in ("tiny", "tiny-internvl") for setup in setups]
    lines = TABLES["training_step"](lambda asked: result if asked == name else None).splitlines()
    header = [cell.strip() for cell in lines[0].split("|")]
    assert set(OVERHEAD_ARMS) <= set(header)
    row = next(
        line for line in lines if "| tiny-internvl | adapters of rank 16, checkpointing |" in line
    )
    cells = dict(zip(header, (cell.strip() for cell in row.split("|")), strict=True))
    assert cells["plain"].startswith("1.00x")
    token = result["cases"][-1]["arms"]["token"]["speedup"]["median"]
    assert cells["token"].startswith(f"{1 / token:.2f}x")
