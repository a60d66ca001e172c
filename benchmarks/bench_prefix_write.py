"""prefix_write against eager code that indexes, pads and copies.

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
from shapes import SHAPES
from tables import Results
from torch import Tensor

from ragvl.ops import prefix_write

OPERATION = "prefix_write"
BASELINE = "eager"
BATCH, PAGE_TOKENS = 8, 16
CASES = [("mid", 272), ("internvl2-1b", 272), ("llava-1.5-7b", 592)]  # (heads, prefix tokens)
COMPRESSIONS = (None, "int8")


def methods(
    model: str,
    tokens: int,
    compression: str | None,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Method]:
    """What to compare, by name; each writes a layer of 8 prefixes, and gives the pages of keys."""
    decoder = SHAPES[model].decoder
    rng = torch.Generator(device).manual_seed(0)
    shape = BATCH, tokens, decoder.num_kv_heads, decoder.head_dim
    # As rotary embeddings leave keys, and a projection values
    k = torch.randn(shape, generator=rng, device=device, dtype=dtype).transpose(1, 2).contiguous()
    v = torch.randn(shape, generator=rng, device=device, dtype=dtype).transpose(1, 2)
    width = -(-tokens // PAGE_TOKENS)
    table = torch.randperm(BATCH * width, generator=rng, device=device).view(BATCH, width).int()
    lengths = torch.full((BATCH,), tokens, dtype=torch.int32, device=device)
    held = dtype if compression is None else torch.int8
    pages = BATCH * width, decoder.num_kv_heads
    key_pages = torch.empty(*pages, decoder.head_dim, PAGE_TOKENS, dtype=held, device=device)
    value_pages = torch.empty(*pages, PAGE_TOKENS, decoder.head_dim, dtype=held, device=device)
    scales: dict[str, Tensor] = {}
    if compression is not None:
        for name in ("key_scales", "value_scales"):
            scales[name] = torch.empty(*pages, PAGE_TOKENS, device=device)
    targets = table.flatten().long()

    def eager() -> Tensor:
        for name, x, target in (("key", k, key_pages), ("value", v, value_pages)):
            padded = F.pad(x, (0, 0, 0, width * PAGE_TOKENS - tokens))
            paged = padded.unflatten(2, (width, PAGE_TOKENS)).transpose(1, 2).flatten(0, 1)
            if compression is not None:
                scale = paged.float().abs().amax(-1) / 127
                paged = (paged.float() / scale.clamp_min(1e-38)[..., None]).round().to(torch.int8)
                scales[f"{name}_scales"].index_copy_(0, targets, scale)
            target.index_copy_(0, targets, paged.mT if name == "key" else paged)
        return key_pages

    calls: dict[str, Method] = {BASELINE: eager}
    for backend in backends_to_measure(OPERATION, device, dtype):

        def fused(backend: str = backend) -> Tensor:
            prefix_write(k, v, key_pages, value_pages, table, lengths, **scales, backend=backend)
            return key_pages

        calls[backend] = fused
    return calls


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", methods("tiny", 16, None, torch.float32, DEVICE))
def test_prefix_write(
    benchmark, method: str, case: tuple[str, int], dtype: str, compression: str | None
) -> None:
    everyone = methods(*case, compression, DTYPES[dtype], DEVICE)
    result = benchmark(everyone[method]).clone()
    assert torch.equal(result, everyone["reference"]())


def table(results: Results) -> str:
    """Speed of the backends against eager code."""
    result = results["prefix_write_cpu"]
    return speed_table(
        result,
        {
            "model": "heads of",
            "prefix": "prefix tokens",
            "dtype": "dtype",
            "compression": "compression",
        },
        ["reference", "cpu"],
        f"Speed is against padding, indexing and copying; a layer of {result['batch']} prefixes",
    )


def main(
    rounds: Annotated[int, typer.Option(help="Samples of each method.")] = 15,
    threads: Annotated[int, typer.Option(help="Threads.")] = torch.get_num_threads(),
) -> None:
    """Measure, print a table and write benchmarks/results/prefix_write_cpu.json."""
    cases = [
        {"model": model, "prefix": tokens, "dtype": dtype, "compression": compression}
        for (model, tokens), dtype, compression in product(CASES, DTYPES, COMPRESSIONS)
    ]
    with torch.inference_mode():
        measure_operation(
            OPERATION,
            cases,
            lambda case: methods(
                case["model"], case["prefix"], case["compression"], DTYPES[case["dtype"]], CPU
            ),
            BASELINE,
            rounds=rounds,
            threads=threads,
            batch=BATCH,
        )


if __name__ == "__main__":
    typer.run(main)
