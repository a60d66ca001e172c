"""The GPU's benchmark of the operations at a small size on the CPU, and its goals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gpu_ops
import pytest
import torch
from tables import TABLES

from ragvl.ops.backends import OPERATIONS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    cases = list(gpu_ops.cases(CPU, small=True))
    found = gpu_ops.measure(cases, CPU, rounds=2, seconds=1e9)
    assert len(found["cases"]) == len(cases)
    machine = {"device": "Some GPU"}
    goals = gpu_ops.goals(found["cases"])
    return json.loads(json.dumps({**found, "machine": machine, "goals": goals}))


def test_every_operation_is_timed_against_torch(result: dict[str, Any]) -> None:
    assert {case["operation"] for case in result["cases"]} == set(OPERATIONS)
    for case in result["cases"]:
        methods = case["methods"]
        assert methods[case["baseline"]]["speedup"]["median"] == 1
        assert {"reference", "cpu"} < methods.keys()
        for figures in methods.values():
            assert figures["us"]["min"] > 0
            share = case["least_us"] / figures["us"]["median"]
            assert figures["share_of_limit"] == pytest.approx(share)
            assert not figures["captured"]
        assert ("peak_mib" in methods["cpu"]) == (
            case["operation"] == "visual_weighted_cross_entropy"
        )


def test_its_table_has_a_row_for_each_case(result: dict[str, Any]) -> None:
    tests = {"tests": 9, "failures": 1, "errors": 1, "skipped": 2}
    parts = {
        "gpu_ops_times": result,
        "gpu_ops_tests": {"tests": tests},
        "gpu_ops_sanitizer": {"sanitizer": {"memcheck": "clean"}},
    }
    table = TABLES["gpu_ops"](parts.get)
    for case in result["cases"]:
        assert f"| {case['operation']} | {case['case']} |" in table
    assert "5 passed, 2 failed, 2 skipped. compute-sanitizer: memcheck clean." in table
    assert "us (sdpa, " in table
    assert "Tests there" not in TABLES["gpu_ops"]({"gpu_ops_times": result}.get)


def test_operations_take_turns() -> None:
    first = [case.operation for case in gpu_ops.cases(CPU, small=True)][: len(OPERATIONS)]
    assert set(first) == set(OPERATIONS)


def test_nothing_is_begun_when_the_time_is_up() -> None:
    cases = list(gpu_ops.cases(CPU, small=True))[:2]
    found = gpu_ops.measure(cases, CPU, rounds=2, seconds=-1)
    assert found["cases"] == []
    assert found["left_out"] == [f"{case.operation}, {case.case}" for case in cases]


def _figures(us: float, share: float = 0.5, speedup: float = 1.0, mib: float = 1.0) -> dict:
    spread = {"median": us, "iqr": 0.0, "min": us, "max": us}
    return {
        "us": spread,
        "share_of_limit": share,
        "speedup": dict.fromkeys(spread, speedup),
        "peak_mib": mib,
    }


def _case(operation: str, case: str, size: int = 1, **methods: dict) -> dict[str, Any]:
    return {"operation": operation, "case": case, "bytes": size, "methods": methods}


def test_goals_are_about_the_faster_kernel() -> None:
    quick, slow = _figures(5.0, 0.9, 12.0, 2.0), _figures(9.0, 0.6, 3.0, 9.0)
    sdpa = {"sdpa, already concatenated": _figures(8), "sdpa, no padding": _figures(4)}
    loss = "visual_weighted_cross_entropy"
    measured = [
        _case("relevance_head", "a", triton=slow, cuda=quick),
        _case("relevance_head", "b", triton=slow),
        _case("prefix_attention", "even", triton=quick, **sdpa),
        _case(
            "prefix_attention",
            "ragged",
            triton=slow,
            **{"sdpa, already concatenated": sdpa["sdpa, already concatenated"]},
        ),
        _case("diffusion_noise", "16 MiB", 2 * 2**24, cuda=slow),
        _case("diffusion_noise", "256 MiB", 2 * 2**28, cuda=slow, triton=quick),
        _case(loss, "1, 100 % labelled", triton=quick, eager=_figures(50, mib=40)),
        _case(loss, "1, 5 % labelled", triton=slow, eager=_figures(50, mib=40)),
    ]
    found = {(g["of"], g["what"]): (g["found"], g["reached"]) for g in gpu_ops.goals(measured)}
    assert found == {
        ("relevance_head, a", "us"): (5.0, True),
        ("relevance_head, b", "us"): (9.0, False),
        ("prefix_attention, even", "rate of SDPA without padding"): (0.8, True),
        ("prefix_attention, even", "rate of padded SDPA"): (1.6, True),
        ("prefix_attention, ragged", "rate of padded SDPA"): (8 / 9, False),
        ("diffusion_noise, 256 MiB", "share of copy bandwidth"): (0.9, True),
        (f"{loss}, 1, 100 % labelled", "share of matrix rate"): (0.9, True),
        (f"{loss}, 1, 100 % labelled", "memory against eager"): (0.05, True),
        (f"{loss}, 1, 5 % labelled", "speed against eager"): (3.0, False),
    }
    tests = {"tests": 9, "failures": 1, "errors": 0, "problem": "stopped after 3 s"}
    parts = {
        "gpu_ops_times": {"goals": gpu_ops.goals(measured)},
        "gpu_ops_tests": {"goals": gpu_ops.test_goals(tests)},
    }
    table = TABLES["gpu_ops_goals"](parts.get)
    assert "| the operations' tests | failed, or not run | at most 0 | 2 | **missed** |" in table
    assert "| relevance_head, b | us | at most 8 | 9 | **missed** |" in table
    assert (
        "| diffusion_noise, 256 MiB | share of copy bandwidth | at least 0.85 | 0.9 | reached |"
        in table
    )


def test_the_sizes_that_a_gpu_gets_are_those_of_the_goals() -> None:
    meta = list(gpu_ops.cases(torch.device("cuda"), small=False))  # makes no tensor yet
    names = [f"{case.operation}, {case.case}" for case in meta]
    assert len(set(names)) == len(names)
    assert any("B=64, D=5120" in name for name in names)
    assert (
        sum(c.work.moved_bytes >= 2 * 256 * 2**20 for c in meta if c.operation == "diffusion_noise")
        >= 4
    )
    loss = [case for case in meta if case.operation == "visual_weighted_cross_entropy"]
    # three products of 8,192 rows, 2,048 columns and 151,655 words
    assert max(case.work.linear_flops for case in loss) == 3 * 2 * 8192 * 2048 * 151_655


@pytest.mark.skipif(torch.cuda.is_available(), reason="what it does without a GPU")
def test_checks_without_a_gpu_say_so() -> None:
    assert gpu_ops.sanitize(60) == {"memcheck": "not available", "racecheck": "not available"}
    tests = gpu_ops.run_tests(["tests/ops"], 1200)
    assert (tests["failures"], tests["errors"], tests["failed"]) == (0, 0, [])
    assert tests["skipped"] == tests["tests"] > 50
    assert "stopped after" in gpu_ops.run_tests(["tests/ops"], 0.01)["problem"]


def test_tests_that_are_stopped_still_count(tmp_path: Path) -> None:
    file = tmp_path / "test_gpu_slow.py"
    file.write_text(
        "import time, pytest\n"
        f"@pytest.mark.gpu\ndef test_gpu_a(): open({str(tmp_path / 'done')!r}, 'w')\n"
        "@pytest.mark.gpu\ndef test_gpu_b(): pass\n"
        "def pytest_runtest_setup(item): pass\n"
    )
    (tmp_path / "conftest.py").write_text(
        "import time\n"
        "def pytest_runtest_setup(item):\n"
        "    if item.name.endswith('b'): time.sleep(120)\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: x\n")
    tests = gpu_ops.run_tests([str(tmp_path)], 8)
    assert tests["problem"] == "stopped after 8 s"
    # As many as came to their end, which on a busy machine may be none
    assert tests.get("tests", 0) >= (tmp_path / "done").exists()
