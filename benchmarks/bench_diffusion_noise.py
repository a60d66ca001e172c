"""diffusion_noise against eager code: clone, draw, multiply, add, write where marked.

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

from ragvl.ops import diffusion_noise
from ragvl.ops.diffusion_noise import alphas_cumprod

OPERATION = "diffusion_noise"
BASELINE = "eager"
MARKED = 0.75  # the share of rows that are visual tokens
# (rows, hidden size)
CASES = [(1024, 2048), (4096, 2048)]


def methods(
    rows: int, dim: int, dtype: torch.dtype, device: torch.device, share: float = MARKED
) -> dict[str, Method]:
    """What to compare, by name; of a share of 1 no row is marked, since all are meant."""
    x = torch.randn(rows, dim, device=device).to(dtype)
    marked = None if share == 1 else torch.arange(rows, device=device) < share * rows
    kept = alphas_cumprod()[500]
    signal, scale = kept.sqrt().item(), (1 - kept).sqrt().item()

    def eager() -> Tensor:
        if marked is None:
            return signal * x + scale * torch.randn_like(x)
        noised = x.clone()
        visual = x[marked]
        noised[marked] = signal * visual + scale * torch.randn_like(visual)
        return noised

    calls: dict[str, Method] = {BASELINE: eager, "copy alone": x.clone}
    for backend in backends_to_measure(OPERATION, device, dtype):

        def fused(backend: str = backend) -> Tensor:
            return diffusion_noise(x, marked, seed=1, backend=backend)

        calls[backend] = fused
    return calls


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", methods(8, 8, torch.float32, DEVICE))
def test_diffusion_noise(benchmark, method: str, case: tuple[int, int], dtype: str) -> None:
    result = benchmark(methods(*case, DTYPES[dtype], DEVICE)[method])
    assert result.shape == case


def table(results: Results) -> str:
    """Speed of the backends against eager code."""
    result = results["diffusion_noise_cpu"]
    return speed_table(
        result,
        {"rows": "rows", "hidden_size": "hidden", "dtype": "dtype"},
        ["copy alone", "reference", "cpu"],
        f"Speed is against clone, `randn_like`, multiply, add and masked write, "
        f"{100 * result['marked']:.0f} % of the rows marked",
    )


def main(
    rounds: Annotated[int, typer.Option(help="Samples of each method.")] = 11,
    threads: Annotated[int, typer.Option(help="Threads.")] = torch.get_num_threads(),
) -> None:
    """Measure, print a table and write benchmarks/results/diffusion_noise_cpu.json."""
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
            sample_ms=50,
            marked=MARKED,
        )


if __name__ == "__main__":
    typer.run(main)
