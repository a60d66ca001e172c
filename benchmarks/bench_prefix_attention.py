"""prefix_attention against torch's attention over keys and values that are gathered first.

As a script it prints a table of the CPU and writes benchmarks/results; under pytest it is a
pytest-benchmark suite of the same methods, on a GPU where there is one.
"""

from __future__ import annotations

from functools import partial
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
from torch.nn.attention.bias import causal_lower_right
from torch.nn.utils.rnn import pad_sequence

from ragvl.compression import COMPRESSIONS, Compression
from ragvl.mllm import KvLayout
from ragvl.ops import PrefixBatch, prefix_attention
from ragvl.prefix_cache import PagePool, page_table, pages_in_turn

OPERATION = "prefix_attention"
BASELINE = "sdpa, stock cache"
BATCH, SUFFIX_TOKENS = 20, 31
RAGGED = 24  # tokens by which captions make the longest prefix longer than the shortest
# (whose heads, tokens of the shortest prefix)
CASES = [("mid", 272), ("internvl2-1b", 272), ("llava-1.5-7b", 592)]


def methods(
    model: str, shortest: int, dtype: torch.dtype, device: torch.device, ragged: int = RAGGED
) -> dict[str, Method]:
    """What to compare, by name; each gives the packed suffixes' rows, (S, H, D).

    With `ragged=0` there is nothing to pad, and torch's attention also runs without a mask.
    """
    decoder = SHAPES[model].decoder
    heads, kv_heads, dim = decoder.num_heads, decoder.num_kv_heads, decoder.head_dim
    rng = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device=device, dtype=dtype)

    lengths = prefix_lengths(shortest, ragged)
    prefixes = [(normal(kv_heads, n, dim), normal(kv_heads, n, dim)) for n in lengths]
    rows = BATCH * SUFFIX_TOKENS
    q, k, v = normal(rows, heads, dim), normal(rows, kv_heads, dim), normal(rows, kv_heads, dim)
    scale = dim**-0.5

    own = torch.full((BATCH,), SUFFIX_TOKENS, dtype=torch.int32)
    layout = KvLayout.uniform(1, kv_heads, dim, dtype)

    def paged(compression: Compression | None) -> PrefixBatch:
        """The prefixes in pages."""
        pages = pages_in_turn(lengths, compression=compression)
        pool = PagePool(layout, sum(map(len, pages)), device, compression)
        for where, length, (keys, values) in zip(pages, lengths, prefixes, strict=True):
            pool.writer([where], [length])(0, keys[None], values[None])
        numbers = (
            page_table(pages, max(map(len, pages))),
            torch.tensor(lengths, dtype=torch.int32),
            torch.arange(BATCH, dtype=torch.int32) * SUFFIX_TOKENS,
            own,
        )
        (batch,) = pool.batches(*(x.to(device) for x in numbers), SUFFIX_TOKENS)
        assert batch is not None
        return batch

    # A stock cache is padded on its left, so that suffixes follow it, and (B, heads, tokens, dim)
    past = [
        pad_sequence([x[i].transpose(0, 1) for x in prefixes], True, padding_side="left")
        for i in (0, 1)
    ]
    past_keys, past_values = (x.transpose(1, 2).contiguous() for x in past)
    longest = max(lengths)
    real = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
    causal = torch.ones(SUFFIX_TOKENS, SUFFIX_TOKENS, dtype=torch.bool).tril()
    mask = torch.cat(
        [
            real[:, None, :].expand(-1, SUFFIX_TOKENS, -1),
            causal.expand(BATCH, -1, -1),
        ],
        dim=2,
    )[:, None].to(device)

    def by_candidate(x: Tensor) -> Tensor:
        return x.unflatten(0, (BATCH, SUFFIX_TOKENS)).transpose(1, 2)

    def sdpa(keys: Tensor, values: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(
            by_candidate(q), keys, values, mask, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2).flatten(0, 1)

    def stock_cache() -> Tensor:
        return sdpa(
            torch.cat([past_keys, by_candidate(k)], 2),
            torch.cat([past_values, by_candidate(v)], 2),
        )

    whole = torch.cat([past_keys, by_candidate(k)], 2), torch.cat([past_values, by_candidate(v)], 2)
    alone = [
        (
            torch.cat([keys, own_keys], 1)[None],
            torch.cat([values, own_values], 1)[None],
            own_mask[:, -(n + SUFFIX_TOKENS) :],
        )
        for (keys, values), own_keys, own_values, own_mask, n in zip(
            prefixes, by_candidate(k), by_candidate(v), mask[:, 0], lengths, strict=True
        )
    ]

    def one_by_one() -> Tensor:
        outputs = [
            F.scaled_dot_product_attention(
                query[None], keys, values, own_mask, scale=scale, enable_gqa=True
            )
            for query, (keys, values, own_mask) in zip(by_candidate(q), alone, strict=True)
        ]
        return torch.cat(outputs).transpose(1, 2).flatten(0, 1)

    calls: dict[str, Method] = {
        BASELINE: stock_cache,
        "sdpa, already concatenated": lambda: sdpa(*whole),
        "sdpa, already concatenated, one by one": one_by_one,
    }
    if ragged == 0:
        bias = causal_lower_right(SUFFIX_TOKENS, longest + SUFFIX_TOKENS)

        def unpadded() -> Tensor:
            out = F.scaled_dot_product_attention(
                by_candidate(q), *whole, bias, scale=scale, enable_gqa=True
            )
            return out.transpose(1, 2).flatten(0, 1)

        calls["sdpa, no padding"] = unpadded
    for compression in (None, *COMPRESSIONS):
        batch = paged(compression)
        for backend in backends_to_measure(OPERATION, device, dtype):
            if compression is None or backend != "reference":
                name = backend if compression is None else f"{backend}, {compression}"
                calls[name] = partial(
                    prefix_attention, q, k, v, batch, scale=scale, backend=backend
                )
    return calls


def prefix_lengths(shortest: int, ragged: int = RAGGED) -> list[int]:
    """How many tokens each candidate's prefix has."""
    return [shortest + b * ragged // (BATCH - 1) for b in range(BATCH)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", methods("tiny", 16, torch.float32, DEVICE))
def test_prefix_attention(benchmark, method: str, case: tuple[str, int], dtype: str) -> None:
    everyone = methods(*case, DTYPES[dtype], DEVICE)
    result = benchmark(everyone[method])
    error = 0.2 if "int" in method else 2e-2
    torch.testing.assert_close(result, everyone["reference"](), rtol=0, atol=error)


def table(results: Results) -> str:
    """Speed of the backends against torch's attention over a stock cache."""
    result = results["prefix_attention_cpu"]
    return speed_table(
        result,
        {"model": "heads of", "prefix": "prefix tokens", "dtype": "dtype"},
        [
            *("sdpa, already concatenated", "reference", "cpu"),
            *(f"cpu, {compression}" for compression in COMPRESSIONS),
        ],
        f"Speed is against concatenating the new keys to a stock, padded cache and torch's "
        f"attention; {result['batch']} suffixes of {result['suffix']} tokens",
    )


def main(
    rounds: Annotated[int, typer.Option(help="Samples of each method.")] = 11,
    threads: Annotated[int, typer.Option(help="Threads.")] = torch.get_num_threads(),
) -> None:
    """Measure, print a table and write benchmarks/results/prefix_attention_cpu.json."""
    cases = [
        {"model": model, "prefix": shortest, "dtype": dtype}
        for (model, shortest), dtype in product(CASES, DTYPES)
    ]
    with torch.inference_mode():
        measure_operation(
            OPERATION,
            cases,
            lambda case: methods(case["model"], case["prefix"], DTYPES[case["dtype"]], CPU),
            BASELINE,
            rounds=rounds,
            threads=threads,
            batch=BATCH,
            suffix=SUFFIX_TOKENS,
        )


if __name__ == "__main__":
    typer.run(main)
