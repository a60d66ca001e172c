"""relevance_head against what it replaces: eager code with two rows of the head.

Beside it stands what nobody needs to compute, the last position's product with the vocabulary.

As a script it prints a table of the CPU and writes benchmarks/results; under pytest it is a
pytest-benchmark suite of the same methods, on a GPU where there is one.
"""

from __future__ import annotations

from itertools import product
from typing import Annotated

import pytest
import torch
import torch.nn.functional as F
import typer
from common import backends_to_measure
from operation import CPU, DEVICE, DTYPES, Method, measure_operation, speed_table
from tables import Result, Results
from torch import Tensor

from ragvl.ops import relevance_head

OPERATION = "relevance_head"
VOCABULARY = 32_000  # LLaMA's; newer models' are up to eight times as large
TOKENS = 16  # per prompt: the rows between those that are gathered
BASELINE = "eager, two rows"
PRODUCT = "vocabulary product"
CASES = [(1, 2048), (20, 896), (20, 4096), (100, 4096)]  # (batch, hidden size)


def methods(
    batch: int,
    dim: int,
    dtype: torch.dtype,
    device: torch.device,
    vocabulary_size: int = VOCABULARY,
) -> dict[str, Method]:
    """What to compare, by name: the methods without the operation, then each backend that is here.

    With a `vocabulary_size` of 0 the product with the vocabulary, which is large, is left out.
    """
    rng = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device=device, dtype=dtype)

    hidden, norm_weight = normal(batch * TOKENS, dim), normal(dim)
    vocabulary = normal(max(vocabulary_size, 2), dim) / dim**0.5
    answers = torch.tensor([0, 1], device=device)
    last_index = torch.arange(1, batch + 1, device=device) * TOKENS - 1
    head_rows = vocabulary[answers]
    # What a model keeps for the operation, whose C++ kernels read float32.
    parameters = norm_weight.float(), head_rows.float()

    def normed() -> Tensor:
        return F.rms_norm(hidden[last_index], (dim,), norm_weight, 1e-6)

    def vocabulary_product() -> Tensor:
        return (normed() @ vocabulary.T)[:, answers].float().softmax(-1)[:, 0]

    def two_rows() -> Tensor:
        return (normed() @ head_rows.T).float().softmax(-1)[:, 0]

    calls: dict[str, Method] = {BASELINE: two_rows}
    if vocabulary_size:
        calls[PRODUCT] = vocabulary_product
    for backend in backends_to_measure(OPERATION, device, dtype):

        def fused(backend: str = backend) -> Tensor:
            return relevance_head(hidden, last_index, *parameters, backend=backend)[1]

        calls[backend] = fused
    return calls


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", methods(1, 8, torch.float32, DEVICE))
def test_relevance_head(benchmark, method: str, case: tuple[int, int], dtype: str) -> None:
    everyone = methods(*case, DTYPES[dtype], DEVICE)
    result = benchmark(everyone[method])
    torch.testing.assert_close(result, everyone["reference"](), rtol=0, atol=2e-2)


def table(results: Results) -> str:
    """Speed of the backends against eager code."""
    result = results["relevance_head_cpu"]
    return speed_table(
        result,
        {"batch": "prompts", "hidden_size": "hidden", "dtype": "dtype"},
        [PRODUCT, "reference", "cpu"],
        "Speed is against gather, norm and the product with two rows of the head in eager code, "
        f"by medians; the vocabulary's product is of {result['vocabulary']:,} rows",
        cell=lambda case, figures: f"{speed_over_eager(case, figures):.2g}x",
    )


def speed_over_eager(case: Result, figures: Result) -> float:
    """How many times as fast as eager code a method is in a case."""
    return case["methods"][BASELINE]["ms"]["median"] / figures["ms"]["median"]


def main(
    rounds: Annotated[int, typer.Option(help="Samples of each method.")] = 15,
    threads: Annotated[int, typer.Option(help="Threads.")] = torch.get_num_threads(),
) -> None:
    """Measure, print a table and write benchmarks/results/relevance_head_cpu.json."""
    cases = [
        {"batch": batch, "hidden_size": dim, "dtype": dtype}
        for (batch, dim), dtype in product(CASES, DTYPES)
    ]
    with torch.inference_mode():
        measure_operation(
            OPERATION,
            cases,
            lambda case: methods(case["batch"], case["hidden_size"], DTYPES[case["dtype"]], CPU),
            BASELINE,
            rounds=rounds,
            threads=threads,
            vocabulary=VOCABULARY,
        )


if __name__ == "__main__":
    typer.run(main)
