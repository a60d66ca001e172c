"""residual_rms_norm against the eager code of a Hugging Face layer.

As a script it prints a table of the CPU and writes benchmarks/results; under pytest it is a
pytest-benchmark suite of the same methods, on a GPU where there is one.
"""

from __future__ import annotations

from itertools import product
from typing import Annotated

import pytest
import torch
import typer
from common import backends_to_measure
from operation import CPU, DEVICE, DTYPES, Method, measure_operation, speed_table
from tables import Results
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ragvl.ops import residual_rms_norm

OPERATION = "residual_rms_norm"
BASELINE = "eager"
CASES = [(640, 896), (640, 2048), (640, 4096)]  # (rows, hidden size)


def methods(rows: int, dim: int, dtype: torch.dtype, device: torch.device) -> dict[str, Method]:
    """What to compare, by name; each gives the norm's result."""
    rng = torch.Generator(device).manual_seed(0)
    x, residual = torch.randn(2, 1, rows, dim, generator=rng, device=device).to(dtype)
    norm = LlamaRMSNorm(dim).to(device, dtype)

    def eager() -> Tensor:
        return norm(residual + x)

    result: dict[str, Method] = {BASELINE: eager}
    for backend in backends_to_measure(OPERATION, device, dtype):

        def fused(backend: str = backend) -> Tensor:
            return residual_rms_norm(x, residual, norm.weight.data, backend=backend)[1]

        result[backend] = fused
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", methods(1, 8, torch.float32, DEVICE))
def test_residual_rms_norm(benchmark, method: str, case: tuple[int, int], dtype: str) -> None:
    everyone = methods(*case, DTYPES[dtype], DEVICE)
    result = benchmark(everyone[method])
    torch.testing.assert_close(result, everyone["reference"]())


def table(results: Results) -> str:
    """Speed of the backends against a Hugging Face layer's own code."""
    return speed_table(
        results["residual_rms_norm_cpu"],
        {"rows": "rows", "hidden_size": "hidden", "dtype": "dtype"},
        ["reference", "cpu"],
        "Speed is against the sum and `LlamaRMSNorm`, one after the other",
    )


def main(
    rounds: Annotated[int, typer.Option(help="Samples of each method.")] = 15,
    threads: Annotated[int, typer.Option(help="Threads.")] = torch.get_num_threads(),
) -> None:
    """Measure, print a table and write benchmarks/results/residual_rms_norm_cpu.json."""
    cases = [
        {"rows": rows, "hidden_size": dim, "dtype": dtype}
        for (rows, dim), dtype in product(CASES, DTYPES)
    ]
    with torch.inference_mode():
        measure_operation(
            OPERATION,
            cases,
            lambda case: methods(case["rows"], case["hidden_size"], DTYPES[case["dtype"]], CPU),
            BASELINE,
            rounds=rounds,
            threads=threads,
        )


if __name__ == "__main__":
    typer.run(main)
