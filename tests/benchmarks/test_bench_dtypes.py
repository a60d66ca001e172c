"""The benchmark of dtypes at a small size: what is measured, and its table."""

from __future__ import annotations

import bench_dtypes
import pytest

from ragvl.ops.int8_linear import slow_products_problem


@pytest.mark.slow
@pytest.mark.skipif(slow_products_problem() is not None, reason="this CPU has no VNNI")
def test_each_dtype_is_timed_and_held_against_its_products() -> None:
    result = bench_dtypes.run("tiny", num_documents=2, rounds=2)
    dtypes = result["dtypes"]
    assert list(dtypes) == ["float32", "bfloat16", "int8"]
    assert dtypes["float32"]["score_difference"]["max"] == 0
    for dtype in ("bfloat16", "int8"):
        assert 0 < dtypes[dtype]["score_difference"]["mean"] < 0.1
        assert dtypes[dtype]["weight_bytes"] < dtypes["float32"]["weight_bytes"]
    for figures in dtypes.values():
        assert 0 < figures["flops_per_second"]["warm"] < figures["peak_flops_per_second"]
        assert abs(sum(figures["shares"].values()) - 1) < 1e-9
    assert {goal["of"] for goal in result["goals"]} == set(dtypes)
    machine = {"device": "A CPU", "cpu kernels": "amx"}
    table = bench_dtypes.dtypes_table({"dtypes_amx": {**result, "machine": machine}})
    assert "A CPU (amx): a llava" in table
    assert '| `dtype="int8"` |' in table
    assert "| int8 | speed over float32, warm | at least 3 |" in table


def test_what_was_not_measured_is_not_in_the_table() -> None:
    assert "not measured" in bench_dtypes.dtypes_table({})
