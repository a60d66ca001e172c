from __future__ import annotations

import json
from pathlib import Path

import bench_training_step
import common
import pytest

from ragvl.profiling.costs import OVERHEAD_ARMS


@pytest.mark.slow
def test_it_writes_what_its_table_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    setups = [(0, False), (2, True)]
    monkeypatch.setattr(bench_training_step, "SETUPS", setups)
    bench_training_step.main(models=["tiny"], rounds=2)
    results = {p.stem: json.loads(p.read_text()) for p in tmp_path.glob("*.json")}
    cases = results["training_step_cpu"]["cases"]
    assert [(case["rank"], case["gradient_checkpointing"]) for case in cases] == setups
    header, _, *rows = bench_training_step.cost_table(results).splitlines()
    names = [cell.strip() for cell in header.split("|")]
    assert set(OVERHEAD_ARMS) <= set(names)
    (row,) = [row for row in rows if "| tiny | adapters of rank 2, checkpointing |" in row]
    cells = dict(zip(names, (cell.strip() for cell in row.split("|")), strict=True))
    assert cells["plain"].startswith("1.00x")
    token = cases[-1]["arms"]["token"]["speedup"]["median"]
    assert cells["token"].startswith(f"{1 / token:.2f}x")
