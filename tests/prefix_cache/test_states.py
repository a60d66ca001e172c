"""States lie in a prefix's pages bit for bit, and come back from every tier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plain import picture
from tiny_models import HYBRIDS

from ragvl import Document, PrefixCache, Reranker
from ragvl.compression import COMPRESSIONS, Compression
from ragvl.mllm import MLLM, KvLayout, KvShape, LayerState, StateShape
from ragvl.prefix_cache import PagePool, PrefixTooLargeError, page_table, pages_in_turn
from ragvl.prefix_cache.pages import num_pages, num_state_pages, page_bytes
from ragvl.prefix_cache.states import StateBytes

CPU = torch.device("cpu")
# Odd sizes, so that a layer begins in the middle of a page and no tensor ends where the next begins
STATES = (
    (
        StateShape("conv_states/0", (5, 3), torch.bfloat16),
        StateShape("recurrent_states/0", (3, 7, 9), torch.float32),
    ),
    (StateShape("conv_states/0", (1,), torch.bfloat16),),
    (
        StateShape("conv_states/0", (31,), torch.float16),
        StateShape("conv_states/1", (2, 2), torch.float32),
        StateShape("recurrent_states/0", (1, 300), torch.float32),
    ),
)
EACH = pytest.mark.parametrize("architecture", HYBRIDS)
POOLS = pytest.mark.parametrize("compression", [None, *COMPRESSIONS])


def layout(dtype: torch.dtype = torch.bfloat16) -> KvLayout:
    return KvLayout((KvShape(1, 8), KvShape(1, 8)), dtype, (None, 0, None, 1, None), STATES)


def random_states(seed: int) -> list[LayerState]:
    """Of one prefix, with numbers that no dtype but their own holds."""
    rng = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(1, *shape, generator=rng).to(dtype) for name, shape, dtype in layer}
        for layer in STATES
    ]


def filled(pool: PagePool, lengths: list[int]) -> list[list[int]]:
    """Prefixes in the pool, keys and values of random numbers; their pages."""
    every = pages_in_turn(lengths, pool.state_pages, pool.compression)
    for seed, (pages, length) in enumerate(zip(every, lengths, strict=True)):
        pool.write_states(pages, random_states(seed))
        write = pool.writer([pages], [length])
        rng = torch.Generator().manual_seed(seed)
        for place in range(2):
            keys, values = torch.randn(2, 1, 1, length, 8, generator=rng).to(pool.layout.dtype)
            write(place, keys, values)
    return every


def same(one: LayerState, other: LayerState) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@POOLS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_of_several_prefixes_come_back_layer_by_layer(
    dtype: torch.dtype, compression: Compression | None
) -> None:
    pool = PagePool(layout(dtype), 200, CPU, compression)
    assert pool.state_pages == num_state_pages(layout(dtype), compression) > 1
    every = filled(pool, [37, 1, 16])
    table = page_table(every, max(map(len, every)))
    for layer in range(len(STATES)):
        for chosen in (slice(None), slice(1, 2), slice(1, 3)):
            expected = [random_states(seed)[layer] for seed in range(3)[chosen]]
            expected = {name: torch.cat([s[name] for s in expected]) for name in expected[0]}
            assert same(pool.states(table, layer, chosen), expected)


@POOLS
def test_read_and_load_are_bit_for_bit(compression: Compression | None) -> None:
    pool = PagePool(layout(), 200, CPU, compression)
    every = filled(pool, [20, 40])
    copies = pool.read(every[1])
    recurrent = random_states(1)[0]["recurrent_states/0"]
    assert torch.equal(copies["states/0/recurrent_states/0"], recurrent[0])
    other = PagePool(layout(), 200, CPU, compression)
    target = [199 - page for page in every[1]]
    other.load(target, copies)
    again = other.read(target)
    assert again.keys() == copies.keys()
    for name, copy in copies.items():
        assert torch.equal(again[name].view(torch.uint8), copy.view(torch.uint8))


def test_load_refuses_states_of_another_model() -> None:
    pool = PagePool(layout(), 100, CPU)
    (pages,) = filled(pool, [20])
    copies = pool.read(pages)
    name = "states/2/conv_states/1"
    for broken in (
        {n: x for n, x in copies.items() if n != name},
        {**copies, name: copies[name].double()},
        {**copies, name: copies[name][:1]},
    ):
        with pytest.raises(ValueError, match=name):
            pool.load(pages, broken)


def test_a_models_without_states_takes_no_pages_for_them() -> None:
    plain = KvLayout.uniform(2, 1, 8, torch.float32)
    assert num_state_pages(plain) == 0
    assert StateBytes(()).size == 0
    assert num_pages(17) == 2
    assert num_pages(17, 3) == 5


# --- through the tiers ---------------------------------------------------------------------------


def ragged_pairs() -> list[tuple[str, Document]]:
    documents = [
        Document(picture(0), caption="A barn"),
        Document(picture(1, 40, 90), caption="The lighthouse of Velmora, photographed in 1987"),
        Document(picture(2, 100, 40)),
    ]
    return [(query, d) for query in ("Is it red?", "Which of the two is older?") for d in documents]


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("tier", ["host", "disk"])
@pytest.mark.parametrize("keep", ["kv", "features"])
def test_every_tier_gives_back_the_same_bits(
    architecture: str, tier: str, keep: str, tiny_mllm: Callable[[str], MLLM], tmp_path: Path
) -> None:
    mllm = tiny_mllm(architecture)
    pairs = ragged_pairs()
    expected = Reranker(mllm).score(pairs)

    def reranker() -> Reranker:
        where = {"host_bytes": "64MiB"} if tier == "host" else {"folder": tmp_path}
        return Reranker(mllm, prefix_cache=PrefixCache("scratch", keep=keep, **where))

    cold = reranker()
    assert torch.equal(cold.score(pairs), expected)
    warm = cold if tier == "host" else reranker()
    assert torch.equal(warm.score(pairs), expected)
    assert warm.prefix_cache.statistics()[tier].hits == 3


@pytest.mark.parametrize(("compression", "error"), [("int8", 0.02), ("int4", 0.2)])
@EACH
def test_states_stay_exact_where_keys_and_values_are_compressed(
    architecture: str,
    compression: Compression,
    error: float,
    tiny_mllm: Callable[[str], MLLM],
    tmp_path: Path,
) -> None:
    mllm = tiny_mllm(architecture)
    pairs = ragged_pairs()
    exact = Reranker(mllm).score(pairs)
    caches = [
        PrefixCache("64MiB", folder=tmp_path, keep="kv", compression=compression) for _ in "12"
    ]
    first, again = (Reranker(mllm, prefix_cache=cache).score(pairs) for cache in caches)
    assert 0 < (first - exact).abs().max() < error
    assert torch.equal(first, again)
    assert caches[1].statistics()["disk"].hits == 3


def test_states_count_in_the_cache(tiny_mllm: Callable[[str], MLLM]) -> None:
    mllm = tiny_mllm("qwen3_5")
    state_pages = num_state_pages(mllm.kv_layout)
    assert state_pages > 0
    reranker = Reranker(mllm)
    prefix, _ = reranker.split_prompt("Is it red?", picture(0))
    reranker.score([("Is it red?", picture(0))])
    one_page = page_bytes(mllm.kv_layout)
    taken = num_pages(len(prefix), state_pages) * one_page
    assert reranker.prefix_cache.statistics()["device"].bytes == taken
    small = Reranker(mllm, prefix_cache=taken - one_page)
    with pytest.raises(PrefixTooLargeError, match="give it more"):
        small.score([("Is it red?", picture(0))])
    assert torch.isfinite(Reranker(mllm, prefix_cache=taken).score([("Is it red?", picture(0))]))
