from __future__ import annotations

import json

import bench_prefix_attention
import bench_relevance_head
import common
import operation
import pytest
import torch
from tables import TABLES


def test_every_case_is_timed_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    threads = torch.get_num_threads()
    cases = [{"size": 8, "dtype": "float32"}, {"size": 1 << 20, "dtype": "float32"}]
    operation.measure_operation(
        "sum",
        cases,
        lambda case: {
            "once": torch.ones(case["size"]).sum,
            "nine times": torch.ones(9 * case["size"]).sum,
        },
        "nine times",
        rounds=3,
        threads=threads,
        sample_ms=1,
        batch=7,
    )
    found = json.loads((tmp_path / f"sum_{operation.DEVICE.type}.json").read_text())
    assert (found["rounds"], found["batch"], found["baseline"]) == (3, 7, "nine times")
    assert [{key: case[key] for key in cases[0]} for case in found["cases"]] == cases
    assert found["cases"][1]["methods"]["once"]["speedup"]["median"] > 2
    assert found["cases"][1]["methods"]["nine times"]["speedup"]["median"] == 1


@pytest.mark.parametrize(
    ("bench", "case"),
    [(bench_relevance_head, (2, 64)), (bench_prefix_attention, ("tiny", 40))],
    ids=["relevance_head", "prefix_attention"],
)
def test_an_operations_benchmark_writes_what_its_table_reads(bench, case, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "CASES", [case])
    bench.main(rounds=2, threads=torch.get_num_threads())

    def load(name):
        path = tmp_path / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    table = TABLES[bench.OPERATION](load)
    for dtype in operation.DTYPES:
        assert f"| {case[0]} | {case[1]} | {dtype} |" in table
