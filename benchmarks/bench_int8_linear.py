"""int8_linear against torch's own products.

As a script it prints a table of the CPU and writes benchmarks/results; under pytest it is a
pytest-benchmark suite of the same methods.
"""

from __future__ import annotations

from itertools import product
from typing import Annotated

import pytest
import torch
import torch.nn.functional as F
import typer
from operation import DTYPES, Method, measure_operation, speed_table
from tables import Result, Results, unmeasured
from torch import Tensor

from ragvl.ops import Int8Weight, int8_linear

OPERATION = "int8_linear"
BASELINE = "linear"
CASES = [(620, 512, 512), (620, 512, 1408), (620, 1408, 512), (620, 896, 4864), (20, 896, 4864)]


def methods(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> dict[str, Method]:
    """What to compare, by name: with the same inputs the product in `dtype` and in 8 bits."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=rng).to(dtype)
    weight = (torch.randn(outputs, inputs, generator=rng) / inputs**0.5).to(dtype)
    rounded = Int8Weight.of(weight)

    def linear() -> Tensor:
        return F.linear(x, weight)

    def eight_bits() -> Tensor:
        return int8_linear(x, rounded, backend="cpu")

    return {BASELINE: linear, "cpu": eight_bits}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", [BASELINE, "cpu"])
def test_int8_linear(benchmark, method: str, case: tuple[int, int, int], dtype: str) -> None:
    everyone = methods(*case, DTYPES[dtype])
    result, expected = benchmark(everyone[method]).float(), everyone[BASELINE]().float()
    assert (result - expected).norm() <= 0.02 * expected.norm()


def table(results: Results) -> str:
    """Speed against torch's product in the inputs' dtype."""
    keys = {"rows": "rows", "inputs": "inputs", "outputs": "outputs", "dtype": "dtype"}
    if (result := results.get("int8_linear_cpu")) is None:
        return unmeasured([*keys.values(), "cpu"])
    return speed_table(
        result, keys, ["cpu"], "Speed is against `torch.nn.functional.linear` in the same dtype"
    )


def _methods(case: Result) -> dict[str, Method]:
    return methods(case["rows"], case["inputs"], case["outputs"], DTYPES[case["dtype"]])


def main(
    rounds: Annotated[int, typer.Option(help="Samples of each method.")] = 15,
    threads: Annotated[int, typer.Option(help="Threads.")] = torch.get_num_threads(),
) -> None:
    """Measure, print a table and write benchmarks/results/int8_linear_cpu.json."""
    cases = [
        {"rows": rows, "inputs": inputs, "outputs": outputs, "dtype": dtype}
        for (rows, inputs, outputs), dtype in product(CASES, DTYPES)
    ]
    with torch.inference_mode():
        measure_operation(OPERATION, cases, _methods, BASELINE, rounds=rounds, threads=threads)


if __name__ == "__main__":
    typer.run(main)
