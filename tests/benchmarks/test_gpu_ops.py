"""The GPU's benchmark of the operations at a small size on the CPU, and its goals."""

from __future__ import annotations

import json
from typing import Any

import gpu_ops
import pytest
import torch
from roofline import Peaks

from ragvl.ops.backends import OPERATIONS

CPU = torch.device("cpu")
PEAKS = Peaks(1e11, 1e10)
ON_GPUS = {name for name, backends in OPERATIONS.items() if "triton" in backends}


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    cases = list(gpu_ops.cases(CPU, small=True))
    measured = gpu_ops.measure(cases, CPU, PEAKS, rounds=2, seconds=1e9)
    assert len(measured["cases"]) == len(cases)
    machine = {"device": "Some GPU"}
    goals = gpu_ops.goals(measured["cases"])
    return json.loads(json.dumps({**measured, "machine": machine, "goals": goals}))


@pytest.mark.slow
def test_every_operation_is_timed_against_torch(result: dict[str, Any]) -> None:
    assert {case["operation"] for case in result["cases"]} == ON_GPUS
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


@pytest.mark.slow
def test_its_table_has_a_row_for_each_case(result: dict[str, Any]) -> None:
    tests = {"tests": 9, "failures": 1, "errors": 1, "skipped": 2}
    table = gpu_ops.speed_table({"gpu_ops": result, "gpu_tests_ops": {"tests": tests}})
    for case in result["cases"]:
        assert f"| {case['operation']} | {case['case']} |" in table
    assert "5 passed, 2 failed, 2 skipped." in table
    assert "us (sdpa, " in table
    assert "Tests there" not in gpu_ops.speed_table({"gpu_ops": result})


def test_operations_take_turns() -> None:
    first = [case.operation for case in gpu_ops.cases(CPU, small=True)][: len(ON_GPUS)]
    assert set(first) == ON_GPUS


def test_nothing_is_begun_when_the_time_is_up() -> None:
    cases = list(gpu_ops.cases(CPU, small=True))[:2]
    result = gpu_ops.measure(cases, CPU, PEAKS, rounds=2, seconds=-1)
    assert result["cases"] == []
    assert result["left_out"] == [f"{case.operation}, {case.case}" for case in cases]


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
    goals = gpu_ops.goals(measured)
    assert {(g["of"], g["what"]): (g["value"], g["reached"]) for g in goals} == {
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
    table = gpu_ops.goals_table({"gpu_ops": {"goals": goals}})
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
