"""rotary_embedding against the eager code of Hugging Face.

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
from shapes import SHAPES
from tables import Results
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ragvl.ops import rotary_embedding

OPERATION = "rotary_embedding"
BASELINE = "eager"
CASES = [("internvl2-1b", 640), ("internvl2-2b", 640), ("llava-1.5-7b", 640)]  # (heads, tokens)


def methods(model: str, tokens: int, dtype: torch.dtype, device: torch.device) -> dict[str, Method]:
    """What to compare, by name; each gives the queries."""
    decoder = SHAPES[model].decoder
    rng = torch.Generator(device).manual_seed(0)

    def projected(heads: int) -> Tensor:
        shape = 1, tokens, heads, decoder.head_dim
        return torch.randn(shape, generator=rng, device=device).to(dtype).transpose(1, 2)

    q, k = projected(decoder.num_heads), projected(decoder.num_kv_heads)
    angles = 9 * torch.randn(1, tokens, decoder.head_dim, generator=rng, device=device)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def eager() -> Tensor:
        return apply_rotary_pos_emb(q, k, cos, sin)[0]

    result: dict[str, Method] = {BASELINE: eager}
    for backend in backends_to_measure(OPERATION, device, dtype):

        def fused(backend: str = backend) -> Tensor:
            return rotary_embedding(q, k, cos, sin, backend=backend)[0]

        result[backend] = fused
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", methods("tiny", 1, torch.float32, DEVICE))
def test_rotary_embedding(benchmark, method: str, case: tuple[str, int], dtype: str) -> None:
    everyone = methods(*case, DTYPES[dtype], DEVICE)
    result = benchmark(everyone[method])
    torch.testing.assert_close(result, everyone["reference"](), atol=3e-2, rtol=2e-2)


def table(results: Results) -> str:
    """Speed of the backends against Hugging Face's function."""
    return speed_table(
        results["rotary_embedding_cpu"],
        {"model": "heads of", "tokens": "tokens", "dtype": "dtype"},
        ["reference", "cpu"],
        "Speed is against `apply_rotary_pos_emb` of transformers",
    )


def main(
    rounds: Annotated[int, typer.Option(help="Samples of each method.")] = 15,
    threads: Annotated[int, typer.Option(help="Threads.")] = torch.get_num_threads(),
) -> None:
    """Measure, print a table and write benchmarks/results/rotary_embedding_cpu.json."""
    cases = [
        {"model": model, "tokens": tokens, "dtype": dtype}
        for (model, tokens), dtype in product(CASES, DTYPES)
    ]
    with torch.inference_mode():
        measure_operation(
            OPERATION,
            cases,
            lambda case: methods(case["model"], case["tokens"], DTYPES[case["dtype"]], CPU),
            BASELINE,
            rounds=rounds,
            threads=threads,
        )


if __name__ == "__main__":
    typer.run(main)
