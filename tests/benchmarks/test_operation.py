from __future__ import annotations

import json

import bench_diffusion_noise
import bench_prefix_attention
import bench_relevance_head
import bench_visual_weighted_cross_entropy
import common
import operation
import pytest
import torch
from work_clock import HandClock

from ragvl.profiling import timing


def written(folder):
    """The results in `folder`, by name."""
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_every_case_is_timed_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    clock = HandClock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    threads = torch.get_num_threads()
    cases = [{"size": 8, "dtype": "float32"}, {"size": 1 << 20, "dtype": "float32"}]
    operation.measure_operation(
        "sum",
        cases,
        lambda case: {
            "once": lambda: clock.take(1e-9 * case["size"]),
            "nine times": lambda: clock.take(9e-9 * case["size"]),
        },
        "nine times",
        rounds=3,
        threads=threads,
        sample_ms=1,
        memory=True,
        batch=7,
    )
    result = written(tmp_path)["sum_cpu"]
    assert (result["rounds"], result["batch"], result["baseline"]) == (3, 7, "nine times")
    assert [{key: case[key] for key in cases[0]} for case in result["cases"]] == cases
    for case in result["cases"]:
        methods = case["methods"]
        assert methods["once"]["ms"]["median"] == pytest.approx(1e-6 * case["size"])
        assert methods["once"]["speedup"]["median"] == pytest.approx(9)
        assert methods["nine times"]["speedup"]["median"] == 1
        assert all(figures["peak_mib"] >= 0 for figures in methods.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bench", "case"),
    [
        (bench_relevance_head, (2, 64)),
        (bench_prefix_attention, ("tiny", 40)),
        (bench_diffusion_noise, (8, 64)),
    ],
    ids=lambda value: getattr(value, "OPERATION", ""),
)
def test_an_operations_benchmark_writes_what_its_table_reads(bench, case, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "CASES", [case])
    bench.main(rounds=2, threads=torch.get_num_threads())

    table = bench.table(written(tmp_path))
    for dtype in operation.DTYPES:
        assert f"| {case[0]} | {case[1]} | {dtype} |" in table


def test_the_loss_benchmark_writes_what_its_table_reads(tmp_path, monkeypatch):
    bench = bench_visual_weighted_cross_entropy
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "SIZE", bench._SMALL)
    bench.main(rounds=2, threads=torch.get_num_threads())
    table = bench.table(written(tmp_path))
    for labelled, head in bench.CASES:
        assert f"| {labelled} | {head} |" in table
