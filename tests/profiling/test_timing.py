from __future__ import annotations

import pytest
import torch
from work_clock import HandClock

from ragvl.profiling import timing
from ragvl.profiling.timing import compare, peak_mib, spread, time_in_turn


def test_spread():
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {
        "median": 3.0,
        "iqr": 2.0,
        "min": 1.0,
        "max": 5.0,
    }


@pytest.fixture
def clock(monkeypatch):
    clock = HandClock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    return clock


def test_methods_take_turns_and_are_compared_round_by_round(clock):
    order = []
    samples = time_in_turn(
        {
            # the machine is slower from round to round, for both alike
            "slow": lambda: (order.append("slow"), clock.take(0.004 * len(order))),
            "fast": lambda: (order.append("fast"), clock.take(0.001 * (len(order) - 1))),
        },
        rounds=3,
        warmup=0,
    )
    assert order == ["slow", "fast"] * 3
    assert samples["slow"] == pytest.approx([4, 12, 20])
    compared = compare(samples, "slow")
    assert compared["slow"]["ms"]["median"] == pytest.approx(12)
    assert compared["slow"]["speedup"]["median"] == 1.0
    assert compared["fast"]["speedup"] == pytest.approx({"median": 4, "iqr": 0, "min": 4, "max": 4})


def test_short_methods_are_called_often_enough(clock):
    calls = []
    samples = time_in_turn(
        {"short": lambda: (calls.append(0), clock.take(1e-5))}, rounds=2, sample_ms=0.5
    )
    assert len(calls) == 1 + 1 + 2 * 51  # to warm up, to learn how long one takes, two samples
    assert samples["short"] == pytest.approx([0.01, 0.01])


@pytest.mark.parametrize("methods", [{}, {"only": lambda: None}])
def test_time_in_turn_returns_one_sample_a_round(methods):
    samples = time_in_turn(methods, rounds=4)
    assert [len(times) for times in samples.values()] == [4] * len(methods)


def test_peak_memory_counts_what_is_freed_again() -> None:
    peak = peak_mib(lambda: torch.ones(64 * 2**18), torch.device("cpu"))  # 64 MiB of float32
    if peak is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert 60 < peak < 80
    assert peak_mib(lambda: None, torch.device("cpu")) < 4
