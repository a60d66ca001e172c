from __future__ import annotations

import json
import time

import common
import pytest
import torch


def test_spread():
    assert common.spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {
        "median": 3.0,
        "iqr": 2.0,
        "min": 1.0,
        "max": 5.0,
    }


def test_methods_take_turns_and_are_compared_round_by_round():
    order = []
    samples = common.time_in_turn(
        {
            "slow": lambda: (order.append("slow"), time.sleep(0.004)),
            "fast": lambda: (order.append("fast"), time.sleep(0.001)),
        },
        rounds=3,
        warmup=0,
    )
    assert order == ["slow", "fast"] * 3
    compared = common.compare(samples, "slow")
    assert compared["slow"]["ms"]["min"] >= 4.0
    assert compared["slow"]["speedup"]["median"] == 1.0
    assert compared["fast"]["speedup"]["median"] > 1.5


def test_short_methods_are_called_often_enough():
    calls = []
    samples = common.time_in_turn({"short": lambda: calls.append(0)}, rounds=2, sample_ms=0.5)
    assert len(calls) > 20
    assert max(samples["short"]) < 0.5


def test_a_saved_result_says_where_it_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    record = json.loads(common.save("name", {"rounds": 3}, torch.device("cpu")).read_text())
    assert record["rounds"] == 3
    assert record["machine"]["device"].startswith(record["machine"]["cpu"])
    assert record["versions"]["torch"] == torch.__version__
    assert record["commit"]


@pytest.mark.parametrize("methods", [{}, {"only": lambda: None}])
def test_time_in_turn_returns_one_sample_a_round(methods):
    samples = common.time_in_turn(methods, rounds=4)
    assert [len(times) for times in samples.values()] == [4] * len(methods)


def test_peak_memory_counts_what_is_freed_again() -> None:
    peak = common.peak_mib(lambda: torch.ones(64 * 2**18), torch.device("cpu"))  # 64 MiB of float32
    if peak is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert 60 < peak < 80
    assert common.peak_mib(lambda: None, torch.device("cpu")) < 4
