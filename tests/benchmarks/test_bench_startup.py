"""The benchmark of starting, on its lightest processes."""

from __future__ import annotations

import sys

import bench_startup
import pytest


@pytest.mark.slow
def test_processes_are_measured_against_torch() -> None:
    measured = bench_startup.measure(2, ["python", bench_startup.HELP])
    assert list(measured) == ["python", bench_startup.TORCH, bench_startup.HELP]
    assert measured[bench_startup.TORCH]["of_torch"]["median"] == 1
    light = measured["python"]["seconds"]["max"]
    assert 0 < light < measured[bench_startup.TORCH]["seconds"]["min"]
    result = {
        "rounds": 2,
        "packages": ["scipy"],
        "processes": measured,
        "machine": {"device": "Some CPU"},
    }
    table = bench_startup.startup_table({"startup_cpu": result})
    assert "| ragvl --help | 0." in table and "were: scipy." in table


def test_a_process_that_fails_is_no_sample() -> None:
    with pytest.raises(Exception, match="returned non-zero exit status 3"):
        bench_startup.cpu_seconds(["-c", "raise SystemExit(3)"])


def test_packages_are_those_of_the_environment_that_is_measured() -> None:
    assert "scipy" in bench_startup.packages_there(sys.executable)
