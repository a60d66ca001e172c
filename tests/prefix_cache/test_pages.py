"""Pages hold what was put in, nobody else's, and no more than there is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ragvl.compression import COMPRESSIONS, Compression, page_tokens
from ragvl.mllm import KvLayout, KvShape
from ragvl.ops import prefix_attention
from ragvl.prefix_cache import CachedPrefix
from ragvl.prefix_cache.pages import (
    PAGE_TOKENS,
    PagePool,
    num_pages,
    page_bytes,
    page_table,
    pages_in_turn,
)

# Of four layers; the last attends to what the second has computed
LAYOUT = KvLayout((KvShape(3, 8), KvShape(2, 16), KvShape(3, 8)), torch.float32, (0, 1, 2, 1))
CPU = torch.device("cpu")


def random_kv(tokens: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each shape, keys and values (1, G, T, D)."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, 1, heads, tokens, dim, generator=generator).unbind()
        for heads, dim in LAYOUT.shapes
    ]


def fill(pool: PagePool, pages: list[int], tokens: int, seed: int = 0) -> None:
    write = pool.writer([pages], [tokens])
    for layer, (keys, values) in enumerate(random_kv(tokens, seed)):
        write(layer, keys, values)


def values_seen(pool: PagePool, pages: list[int], tokens: int, layer: int) -> torch.Tensor:
    """What a query of zeros sees: the mean of the values, and of its own, which is zero."""
    one = torch.ones(1, dtype=torch.int32)
    zeros = torch.zeros(1, *LAYOUT.shapes[LAYOUT.sources[layer]])
    batch = pool.batches(page_table([pages], len(pages)), one * tokens, one * 0, one, 1)[layer]
    return prefix_attention(zeros, zeros, zeros, batch, scale=1.0, backend="reference")[0]


@pytest.mark.slow
@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.data())
@settings(max_examples=50)
def test_prefixes_do_not_touch_each_other(lengths: list[int], data: st.DataObject) -> None:
    pool = PagePool(LAYOUT, sum(map(num_pages, lengths)), CPU)
    held = dict(enumerate(pages_in_turn(lengths)))
    for seed, pages in held.items():
        fill(pool, pages, lengths[seed], seed)
    # some go, and others take their pages, in another order
    for seed in data.draw(st.sets(st.sampled_from(range(len(lengths))))):
        held[100 + seed] = held.pop(seed)[::-1]
        fill(pool, held[100 + seed], lengths[seed], 100 + seed)
    for seed, pages in held.items():
        tokens = lengths[seed % 100]
        written = random_kv(tokens, seed)
        for layer, source in enumerate(LAYOUT.sources):
            mean = written[source][1][0].sum(1) / (tokens + 1)
            seen = values_seen(pool, pages, tokens, layer)
            torch.testing.assert_close(seen, mean, atol=1e-6, rtol=1e-5)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 20))
@settings(max_examples=50)
def test_several_prefixes_are_written_as_each_alone(lengths: list[int], filled_up: int) -> None:
    size = sum(map(num_pages, lengths))
    alone, together = PagePool(LAYOUT, size, CPU), PagePool(LAYOUT, size, CPU)
    pages = pages_in_turn(lengths)
    for seed, (own, tokens) in enumerate(zip(pages, lengths, strict=True)):
        fill(alone, own, tokens, seed)
    longest = max(lengths) + filled_up
    write = together.writer(pages, lengths)
    every = [random_kv(tokens, seed) for seed, tokens in enumerate(lengths)]
    for layer in range(len(LAYOUT.shapes)):
        keys, values = (
            torch.cat([F.pad(x, (0, 0, 0, longest - x.shape[2]), value=7.0) for x in of_layer])
            for of_layer in zip(*(kv[layer] for kv in every), strict=True)
        )
        write(layer, keys, values)
    for own in pages:
        one, other = alone.read(own), together.read(own)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_pages_in_turn() -> None:
    assert pages_in_turn([1, PAGE_TOKENS, PAGE_TOKENS + 1]) == [[0], [1], [2, 3]]


@pytest.mark.parametrize("compression", [None, *COMPRESSIONS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_read_and_load_are_bit_for_bit(compression: Compression | None, dtype: torch.dtype) -> None:
    layout = replace(LAYOUT, dtype=dtype)
    pool = PagePool(layout, 8, CPU, compression)
    (pages,) = pages_in_turn([37], compression=compression)
    write = pool.writer([pages], [37])
    for layer, (keys, values) in enumerate(random_kv(37)):
        write(layer, keys.to(dtype), values.to(dtype))
    copies = pool.read(pages)
    other = PagePool(layout, 5, CPU, compression)
    _, target = pages_in_turn([16, 37], compression=compression)
    other.load(target, copies)
    again = other.read(target)
    assert copies.keys() == again.keys()
    for name, copy in copies.items():
        assert torch.equal(copy.view(torch.uint8), again[name].view(torch.uint8))
        assert copy.dtype == again[name].dtype
    taken = len(pages) * page_bytes(layout, compression)
    assert sum(x.nbytes for x in copies.values()) == taken


@given(st.lists(st.integers(1, 70), min_size=1, max_size=4))
@settings(max_examples=20)
def test_int4_of_several_prefixes_is_near_what_was_written(lengths: list[int]) -> None:
    every = pages_in_turn(lengths, compression="int4")
    pool = PagePool(LAYOUT, sum(map(len, every)), CPU, "int4")
    for seed, (pages, tokens) in enumerate(zip(every, lengths, strict=True)):
        assert pool.num_pages(tokens) == len(pages) == -(-tokens // 32)
        fill(pool, pages, tokens, seed)
    for seed, (pages, tokens) in enumerate(zip(every, lengths, strict=True)):
        for layer, source in enumerate(LAYOUT.sources):
            values = random_kv(tokens, seed)[source][1][0]
            mean = values.sum(1) / (tokens + 1)
            step = (values.amax(-1) - values.amin(-1)).amax() / 15
            seen = values_seen(pool, pages, tokens, layer)
            torch.testing.assert_close(seen, mean, atol=0.51 * step.item(), rtol=0)


@pytest.mark.parametrize("dim", [2, 6, 17])
def test_int4_refuses_heads_that_it_has_no_place_for(dim: int) -> None:
    layout = KvLayout((KvShape(2, 16), KvShape(2, dim)), torch.float32, (0, 1))
    with pytest.raises(ValueError, match=f"even number of columns, at least 8: these have {dim}"):
        PagePool(layout, 4, CPU, "int4")


def test_bytes_of_a_page() -> None:
    # Of 32 tokens, 2 x 64 columns: half a byte each, a scale and a minimum of two bytes for every
    # channel and every token
    layout = KvLayout.uniform(3, 2, 64, torch.bfloat16)
    numbers = 2 * 32 * 2 * 64 // 2
    assert page_bytes(layout, "int4") == 3 * (numbers + 2 * 64 * 4 + 2 * 32 * 4)
    assert page_bytes(layout, "int8") == 3 * 2 * 16 * 2 * (64 + 4)
    assert page_bytes(layout) == 3 * 2 * 16 * 2 * 64 * 2


def test_load_refuses_what_another_pool_held() -> None:
    source = PagePool(LAYOUT, 4, CPU)
    (pages,) = pages_in_turn([20])
    fill(source, pages, 20)
    copies = source.read(pages)
    for other in (
        PagePool(LAYOUT, 4, CPU, "int8"),
        PagePool(LAYOUT, 4, CPU, "int4"),
        PagePool(KvLayout.uniform(2, 3, 16, torch.float32), 4, CPU),
        PagePool(replace(LAYOUT, dtype=torch.bfloat16), 4, CPU),
    ):
        with pytest.raises(ValueError, match=r"keys|key_scales"):
            other.load(pages, copies)


@pytest.mark.parametrize("compression", [None, *COMPRESSIONS])
def test_pieces_make_up_the_whole(
    compression: Compression | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, other = PagePool(LAYOUT, 8, CPU, compression), PagePool(LAYOUT, 8, CPU, compression)
    pages, others = [5, 0, 3], [1, 7, 2]
    tokens = 3 * page_tokens(compression) - 11
    fill(pool, pages, tokens)
    whole = pool.read(pages)
    monkeypatch.setattr("ragvl.prefix_cache.transfer._PIECE_BYTES", 1)  # a layer at a time
    other.load(others, pool.read(pages))
    again = other.read(others)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.gpu
@pytest.mark.parametrize("compression", [None, *COMPRESSIONS])
def test_on_a_gpu_streams_wait_for_each_other(compression: Compression | None) -> None:
    gpu = torch.device("cuda")
    on_cpu, pool = PagePool(LAYOUT, 8, CPU, compression), PagePool(LAYOUT, 8, gpu, compression)
    pages = [5, 0, 3]
    tokens = 3 * page_tokens(compression) - 11
    write = pool.writer([pages], [tokens])
    fill(on_cpu, pages, tokens)
    expected = on_cpu.read(pages)
    layers = [(keys.to(gpu), values.to(gpu)) for keys, values in random_kv(tokens)]
    torch.cuda.synchronize()
    torch.cuda._sleep(50_000_000)  # what is read must come after what is queued
    for layer, (keys, values) in enumerate(layers):
        write(layer, keys, values)
    copies = pool.read(pages)
    assert all(torch.equal(copies[name], expected[name]) for name in expected)

    prefix = CachedPrefix("a", list(range(37)), "", 37, [6, 1, 2], pool.load([6, 1, 2], copies))
    with torch.cuda.stream(torch.cuda.Stream()):
        prefix.wait()
        again = pool.read([6, 1, 2])
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    prefix.finish()
    assert prefix.ready is None
