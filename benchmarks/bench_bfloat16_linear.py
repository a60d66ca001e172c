"""bfloat16_linear against torch's own product.

As a script it prints a table of the CPU and writes benchmarks/results; under pytest it is a
pytest-benchmark suite of the same methods.
"""

from __future__ import annotations

from typing import Annotated

import pytest
import torch
import torch.nn.functional as F
import typer
from operation import Method, measure_operation, speed_table
from tables import Result, Results, unmeasured
from torch import Tensor

from ragvl.ops import bfloat16_linear

OPERATION = "bfloat16_linear"
BASELINE = "linear"
CASES = [(640, 512, 512), (640, 512, 1536), (640, 1536, 512), (640, 896, 4864), (32, 896, 4864)]


def methods(rows: int, inputs: int, outputs: int) -> dict[str, Method]:
    """What to compare, by name, on the same inputs."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=rng).bfloat16()
    weight = (torch.randn(outputs, inputs, generator=rng) / inputs**0.5).bfloat16()

    def linear() -> Tensor:
        return F.linear(x, weight)

    def own() -> Tensor:
        return bfloat16_linear(x, weight, backend="cpu")

    return {BASELINE: linear, "cpu": own}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", [BASELINE, "cpu"])
def test_bfloat16_linear(benchmark, method: str, case: tuple[int, int, int]) -> None:
    everyone = methods(*case)
    result, expected = benchmark(everyone[method]).float(), everyone[BASELINE]().float()
    assert (result - expected).norm() <= 0.01 * expected.norm()


def table(results: Results) -> str:
    """Speed against torch's product."""
    keys = {"rows": "rows", "inputs": "inputs", "outputs": "outputs"}
    if (result := results.get("bfloat16_linear_cpu")) is None:
        return unmeasured([*keys.values(), "cpu"])
    return speed_table(
        result, keys, ["cpu"], "Speed is against `torch.nn.functional.linear` in bfloat16"
    )


def _methods(case: Result) -> dict[str, Method]:
    return methods(case["rows"], case["inputs"], case["outputs"])


def main(
    rounds: Annotated[int, typer.Option(help="Samples of each method.")] = 15,
    threads: Annotated[int, typer.Option(help="Threads.")] = torch.get_num_threads(),
) -> None:
    """Measure, print a table and write benchmarks/results/bfloat16_linear_cpu.json."""
    cases = [
        {"rows": rows, "inputs": inputs, "outputs": outputs} for rows, inputs, outputs in CASES
    ]
    with torch.inference_mode():
        measure_operation(OPERATION, cases, _methods, BASELINE, rounds=rounds, threads=threads)


if __name__ == "__main__":
    typer.run(main)
