"""Fair timing, and how much memory a call takes."""

from __future__ import annotations

import ctypes
import gc
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, TypedDict

import torch


class Spread(TypedDict):
    """Median, interquartile range, lowest and highest of samples."""

    median: float
    iqr: float
    min: float
    max: float


class Timing(TypedDict):
    """A method's milliseconds and its speedup over a baseline, over rounds."""

    ms: Spread
    speedup: Spread


def spread(samples: list[float]) -> Spread:
    """The spread of at least two samples."""
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return {"median": median, "iqr": high - low, "min": min(samples), "max": max(samples)}


def time_in_turn(
    methods: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warmup: int = 1,
    sample_ms: float = 0.0,
    device: torch.device | None = None,
) -> dict[str, list[float]]:
    """Milliseconds per call of each method in each round.

    The methods take turns within a round, so that what else the machine does in a while hits them
    alike and their ratio round by round is fair.

    Args:
        methods: a name and what to call for each.
        rounds: how many samples each method gets.
        warmup: calls of each method before the first round, not measured.
        sample_ms: about how long one sample should last; a method that takes microseconds is
            called as often as that needs. 0: one call.
        device: where the work is done; a GPU is waited for before the clock is read.
    """

    def wait() -> None:
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)

    def time_calls(method: Callable[[], Any], calls: int) -> float:
        wait()
        start = perf_counter()
        for _ in range(calls):
            method()
        wait()
        return (perf_counter() - start) * 1e3 / calls

    calls = {}
    for name, method in methods.items():
        for _ in range(warmup):
            method()
        calls[name] = 1 + int(sample_ms / time_calls(method, 1)) if sample_ms else 1
    samples: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            samples[name].append(time_calls(method, calls[name]))
    return samples


def compare(samples: dict[str, list[float]], baseline: str) -> dict[str, Timing]:
    """For each method its milliseconds and its speedup over `baseline`."""
    return {
        name: {
            "ms": spread(times),
            "speedup": spread([b / t for b, t in zip(samples[baseline], times, strict=True)]),
        }
        for name, times in samples.items()
    }


def peak_mib(call: Callable[[], object], device: torch.device) -> float | None:
    """The most memory that `call` takes above what was held before, in MiB.

    On a GPU what torch allocates there; on the CPU the process's resident memory, which only Linux
    tells (elsewhere None).
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory goes back, or it would not count as taken
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    except (AttributeError, OSError):
        return None
    before = _resident_kib("VmRSS")
    call()
    return (_resident_kib("VmHWM") - before) / 2**10


def _resident_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
