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

from ragvl.compression import COMPRESSIONS, Compression, page_tokens
from ragvl.ops import prefix_write
from ragvl.ops.pages import page_tensors

OPERATION = "prefix_write"
BASELINE = "eager"
BATCH = 8
CASES = [("mid", 272), ("internvl2-1b", 272), ("llava-1.5-7b", 592)]  # (heads, prefix tokens)


def methods(
    model: str,
    tokens: int,
    compression: Compression | None,
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
    page = page_tokens(compression)
    width = -(-tokens // page)
    table = torch.randperm(BATCH * width, generator=rng, device=device).view(BATCH, width).int()
    lengths = torch.full((BATCH,), tokens, dtype=torch.int32, device=device)
    parts = page_tensors(compression, dtype, decoder.num_kv_heads, decoder.head_dim, page)
    pages = {
        name: torch.empty(BATCH * width, *part.shape, dtype=part.dtype, device=device)
        for name, part in parts.items()
    }
    targets = table.flatten().long()
    there = (torch.arange(width * page, device=device) < tokens).view(width, 1, page, 1)
    there = there.repeat(BATCH, 1, 1, 1)

    def eager() -> Tensor:
        for name, x in (("key", k), ("value", v)):
            padded = F.pad(x, (0, 0, 0, width * page - tokens))
            paged = padded.unflatten(2, (width, page)).transpose(1, 2).flatten(0, 1)
            made: dict[str, Tensor] = {}
            if compression == "int8":
                scale = paged.float().abs().amax(-1, keepdim=True) / 127
                made["scales"] = scale.squeeze(-1)
                paged = (paged.float() / scale.clamp_min(1e-38)).round().to(torch.int8)
            if compression == "int4":
                group = -2 if name == "key" else -1
                paged = paged.float()
                minimum = paged.amin(group, keepdim=True)
                scale = ((paged.amax(group, keepdim=True) - minimum) / 15).half()
                minimum = minimum.half()
                made = {"scales": scale.squeeze(group), "minima": minimum.squeeze(group)}
                numbers = (paged - minimum.float()) / scale.float().clamp_min(1e-38)
                low, high = numbers.clamp(0, 15).round().to(torch.uint8).chunk(2, -1)
                paged = (low | high << 4) * there
            made["pages"] = paged.mT if name == "key" else paged
            for part, numbers in made.items():
                pages[f"{name}_{part}"].index_copy_(0, targets, numbers)
        return pages["key_pages"]

    calls: dict[str, Method] = {BASELINE: eager}
    for backend in backends_to_measure(OPERATION, device, dtype):

        def fused(backend: str = backend) -> Tensor:
            prefix_write(k, v, page_table=table, prefix_lengths=lengths, **pages, backend=backend)
            return pages["key_pages"]

        calls[backend] = fused
    return calls


@pytest.mark.parametrize("compression", (None, *COMPRESSIONS))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", methods("tiny", 16, None, torch.float32, DEVICE))
def test_prefix_write(
    benchmark, method: str, case: tuple[str, int], dtype: str, compression: Compression | None
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
        for (model, tokens), dtype, compression in product(CASES, DTYPES, (None, *COMPRESSIONS))
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
