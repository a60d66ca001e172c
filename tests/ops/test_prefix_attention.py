from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close_to_truth, assert_no_worse
from operations import BACKENDS, HALVES, KERNELS, TRITON_DEVICE
from torch import Tensor

from ragvl import _C
from ragvl.compression import COMPRESSIONS, Compression
from ragvl.ops import (
    BackendUnavailableError,
    PrefixBatch,
    prefix_attention,
    prefix_attention_reference,
)
from ragvl.ops.pages import page_tensors
from ragvl.ops.prefix_attention import _prefix_attention

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@dataclass(frozen=True)
class Candidate:
    """What attention is about: a candidate's own tensors, in order, wherever they may lie."""

    prefix_keys: Tensor  # (cached, G, D), as pages hold them, in int4 a number each
    prefix_values: Tensor
    key_steps: Tensor  # (2, cached, G, 1 or D): the scale and the minimum of each number
    value_steps: Tensor
    q: Tensor  # (length, H, D)
    k: Tensor  # (length, G, D)
    v: Tensor


@dataclass(frozen=True)
class Case:
    prefixes: tuple[int, ...]
    suffixes: tuple[int, ...]
    heads: int = 2
    kv_heads: int = 2
    dim: int = 16
    page_size: int = 16
    window: int | None = None
    last_only: bool = False
    dtype: torch.dtype = torch.float32
    compression: Compression | None = None

    def candidates(self, seed: int = 0) -> list[Candidate]:
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng).to(self.dtype)

        def page_numbers(cached: int) -> Tensor:
            numbers = torch.randn((cached, self.kv_heads, self.dim), generator=rng)
            if self.compression == "int8":
                return (50 * numbers).clamp(-127, 127).to(torch.int8)
            if self.compression == "int4":
                return (3 * numbers + 7.5).clamp(0, 15).to(torch.uint8)
            return numbers.to(self.dtype)

        def steps(cached: int, *, of_keys: bool) -> Tensor:
            columns = self.dim if of_keys and self.compression == "int4" else 1
            scales, minima = torch.rand((2, cached, self.kv_heads, columns), generator=rng)
            if of_keys and self.compression == "int4":  # a page's tokens have them in common
                first = torch.arange(cached) // self.page_size * self.page_size
                scales, minima = scales[first], minima[first]
            scales = (0.5 + scales) / (50 if self.compression == "int8" else 3)
            minima = (-2.5 + minima) * (self.compression == "int4")
            both = torch.stack([scales, minima])
            return both.half().float() if self.compression == "int4" else both

        return [
            Candidate(
                page_numbers(cached),
                page_numbers(cached),
                steps(cached, of_keys=True),
                steps(cached, of_keys=False),
                2 * normal(length, self.heads, self.dim),
                normal(length, self.kv_heads, self.dim),
                normal(length, self.kv_heads, self.dim),
            )
            for cached, length in zip(self.prefixes, self.suffixes, strict=True)
        ]

    def inputs(
        self,
        device: str = "cpu",
        seed: int = 0,
        candidates: list[Candidate] | None = None,
        unread: float = float("nan"),
    ) -> dict:
        """Random arguments of `prefix_attention`.

        Pages are permuted, rows of no suffix lie between suffixes, and everything that nobody may
        read holds `unread`.
        """
        candidates = self.candidates(seed) if candidates is None else candidates
        rng = torch.Generator().manual_seed(seed + 1)
        size, heads, dim = self.page_size, self.kv_heads, self.dim
        counts = [-(-len(one.prefix_keys) // size) for one in candidates]
        num_pages, width = sum(counts) + 2, max(counts, default=0) + 1
        ids = torch.randperm(num_pages, generator=rng)
        table = torch.full((len(candidates), width), -7, dtype=torch.int32)
        parts = page_tensors(self.compression, self.dtype, heads, dim, size)
        filler = unread if self.compression is None else 77
        pages = {
            name: torch.full((num_pages, *part.shape), filler if "pages" in name else unread).to(
                part.dtype
            )
            for name, part in parts.items()
        }
        starts, rows = [], 1
        for one, count in zip(candidates, counts, strict=True):
            b = len(starts)
            table[b, :count], ids = ids[:count], ids[count:]
            for n in range(len(one.prefix_keys)):
                page, slot = table[b, n // size], n % size
                keys, values = one.prefix_keys[n], one.prefix_values[n]
                if self.compression == "int4":
                    keys, values = (
                        x[:, : dim // 2] + 16 * x[:, dim // 2 :] for x in (keys, values)
                    )
                pages["key_pages"][page, :, :, slot] = keys
                pages["value_pages"][page, :, slot] = values
                for steps, part in enumerate(("scales", "minima")):
                    if (of_keys := pages.get(f"key_{part}")) is not None:
                        at = () if self.compression == "int4" else (slot,)
                        of_keys[page, :, *at] = one.key_steps[steps, n].squeeze(-1)
                        pages[f"value_{part}"][page, :, slot] = one.value_steps[steps, n, :, 0]
            starts.append(rows)
            rows += len(one.q) + int(torch.randint(0, 3, (), generator=rng))
        q = torch.full((rows, self.heads, dim), unread, dtype=self.dtype)
        k, v = (torch.full((rows, heads, dim), unread, dtype=self.dtype) for _ in range(2))
        for one, start in zip(candidates, starts, strict=True):
            for rows_of, own in ((q, one.q), (k, one.k), (v, one.v)):
                rows_of[start : start + len(own)] = own
        if self.last_only:
            lasts = [one.q[-1:] if len(one.q) else q[:1] for one in candidates]
            q = torch.cat([q[:0], *lasts])

        def int32(numbers: list[int]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.int32, device=device)

        lengths = [len(one.q) for one in candidates]
        prefix = PrefixBatch(
            page_table=table.to(device),
            prefix_lengths=int32([len(one.prefix_keys) for one in candidates]),
            suffix_starts=int32(starts),
            suffix_lengths=int32(lengths),
            max_suffix_length=max(lengths, default=0),
            last_only=self.last_only,
            **{name: x.to(device) for name, x in pages.items()},
        )
        return {
            "q": q.to(device),
            "k": k.to(device),
            "v": v.to(device),
            "prefix": prefix,
            "scale": dim**-0.5,
            "sliding_window": self.window,
        }

    def truth(self, inputs: dict, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        """torch's attention in `dtype`, over keys that were concatenated and masked."""
        out = torch.zeros_like(inputs["q"], device="cpu", dtype=dtype)
        starts = inputs["prefix"].suffix_starts.tolist()
        for b, (one, start) in enumerate(zip(self.candidates(seed), starts, strict=True)):
            cached, length = len(one.prefix_keys), len(one.q)
            if length == 0:
                continue
            keys, values = one.prefix_keys.to(dtype), one.prefix_values.to(dtype)
            if self.compression is not None:
                keys, values = (
                    x * steps[0].to(dtype) + steps[1].to(dtype)
                    for x, steps in ((keys, one.key_steps), (values, one.value_steps))
                )
            keys, values = torch.cat([keys, one.k.to(dtype)]), torch.cat([values, one.v.to(dtype)])
            group = self.heads // self.kv_heads
            keys, values = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (keys, values))
            distance = torch.arange(cached, cached + length)[:, None] - torch.arange(len(keys[0]))
            mask = (distance >= 0) & (distance < (self.window or 10**9))
            result = F.scaled_dot_product_attention(
                one.q.to(dtype).transpose(0, 1), keys, values, mask, scale=inputs["scale"]
            ).transpose(0, 1)
            if self.last_only:
                out[b] = result[-1]
            else:
                out[start : start + length] = result
        return out


CASES = [
    Case((37, 64, 5), (9, 3, 12), dim=64),  # every length, pages full and not
    Case((100, 70), (20, 33), 7, 1, 64),  # a small Qwen's heads: seven share a head of the keys
    Case((0, 16, 0), (5, 0, 1)),  # no prefix, no suffix, a single token
    Case((129, 1), (70, 66), dim=32),  # more than one block of keys, in the suffix too
    Case((50, 33), (6, 7), 4, 2, 80),  # no whole number of AVX-512 registers, twice
    Case((50, 33), (6, 7), 4, 2, 24),
    Case((50, 33), (6, 7), 3, 3, 7),  # odd, and smaller than any register
    Case((40,), (4,), 1, 1, 160),
    Case((20,), (3,), 2, 1, 256),
    Case((90, 200, 31), (9, 3, 12), page_size=32),
    Case((90, 200, 31), (9, 3, 12), page_size=48),  # no power of two
    Case((200, 130), (9, 30), page_size=128),  # a page holds more than one block of keys
    Case((150, 10), (9, 30), 4, 2, window=1),  # only itself
    Case((150, 10), (9, 30), 4, 2, window=20),  # skips whole blocks; cuts the suffix
    Case((150, 10), (9, 30), 4, 2, window=100),
    Case((150, 10), (9, 30), 4, 2, window=1000),  # longer than anything
    Case((40, 0, 129, 7), (9, 5, 0, 1), 6, 2, last_only=True),
    Case((200, 10), (9, 30), 6, 2, 24, window=50, last_only=True),
    Case((40, 70), (9, 5), 4, 2, 32, compression="int8"),
    Case((40, 70), (9, 5), 4, 2, 24, 32, compression="int8", window=60),
    Case((40, 70, 0), (9, 5, 3), 4, 2, 64, 32, compression="int4"),
    Case((40, 70), (9, 5), 4, 2, 24, compression="int4", window=60),
    Case((100, 37), (9, 5), 6, 2, 8, 48, compression="int4", last_only=True),
    Case((65,), (3,), 1, 1, 256, 32, compression="int4"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_float32_matches_float64(backend, device, case):
    inputs = case.inputs(device)
    out = prefix_attention(**inputs, backend=backend)
    assert out.dtype == torch.float32
    assert_close_to_truth(out, case.truth(inputs))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference_in_float64_is_the_definition(case):
    case = replace(case, dtype=torch.float64)
    inputs = case.inputs()
    assert_close_to_truth(prefix_attention(**inputs), case.truth(inputs), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", [CASES[i] for i in (0, 1, 4, 9, 13, 16, 18, 19, 20, 21)], ids=str)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_half_precision_errs_at_most_twice_as_much_as_torch(backend, device, case, dtype):
    case = replace(case, dtype=dtype)
    inputs = case.inputs(device)
    out = prefix_attention(**inputs, backend=backend)
    assert out.dtype == dtype
    assert_no_worse(out, case.truth(inputs, dtype=dtype), case.truth(inputs))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("isa", _C.cpu_isas())
def test_every_instruction_set(isa, dtype, monkeypatch):
    monkeypatch.setenv("RAGVL_CPU_ISA", isa)
    for case in (CASES[i] for i in (1, 4, 6, 13, 18, 19, 20, 22)):
        case = replace(case, dtype=dtype)
        inputs = case.inputs()
        out = prefix_attention(**inputs, backend="cpu")
        if dtype == torch.float32:
            assert_close_to_truth(out, case.truth(inputs))
        else:
            assert_no_worse(out, case.truth(inputs, dtype=dtype), case.truth(inputs))


_lengths = st.integers(1, 4).flatmap(
    lambda batch: st.tuples(
        st.tuples(*[st.integers(0, 40)] * batch), st.tuples(*[st.integers(0, 20)] * batch)
    )
)


@st.composite
def _cases(draw) -> Case:
    prefixes, suffixes = draw(_lengths)
    kv_heads = draw(st.integers(1, 3))
    compression = draw(st.sampled_from([None, None, *COMPRESSIONS]))
    dims = [8, 10, 24, 64, 72] if compression == "int4" else [1, 8, 15, 32, 64, 72]
    return Case(
        prefixes,
        suffixes,
        heads=kv_heads * draw(st.integers(1, 4)),
        kv_heads=kv_heads,
        dim=draw(st.sampled_from(dims)),
        page_size=draw(st.sampled_from([16, 32, 48])),
        window=draw(st.sampled_from([None, 1, 5, 17, 33, 1000])),
        last_only=draw(st.booleans()),
        compression=compression,
    )


def _check_any_case(case: Case, seed: int, backend: str, device: str) -> None:
    inputs = case.inputs(device, seed)
    out = prefix_attention(**inputs, backend=backend)
    torch.testing.assert_close(
        out.cpu().double(), case.truth(inputs, seed), rtol=1e-4, atol=1e-5, equal_nan=False
    )


@settings(max_examples=100)
@given(case=_cases(), seed=st.integers(0, 2**31))
def test_any_case_on_the_cpu(case, seed):
    _check_any_case(case, seed, "cpu", "cpu")


@pytest.mark.slow
@settings(max_examples=25)
@given(case=_cases(), seed=st.integers(0, 2**31))
def test_any_case_in_triton(case, seed):
    _check_any_case(case, seed, "triton", TRITON_DEVICE)


@settings(max_examples=50)
@given(case=_cases(), seed=st.integers(0, 2**31))
def test_any_case_in_the_reference(case, seed):
    _check_any_case(case, seed, "reference", "cpu")


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_scores_far_apart(backend, device):
    case = CASES[0]
    inputs = case.inputs(device) | {"scale": 100.0}
    assert_close_to_truth(prefix_attention(**inputs, backend=backend), case.truth(inputs))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_padding_rows_and_empty_candidates_are_zero(backend, device):
    case = Case((20, 0, 33), (4, 0, 5), 4, 2)
    inputs = case.inputs(device)
    belongs = torch.zeros(len(inputs["q"]), dtype=torch.bool)
    prefix = inputs["prefix"]
    for start, length in zip(prefix.suffix_starts, prefix.suffix_lengths, strict=True):
        belongs[start : start + length] = True
    assert not belongs.all()
    out = prefix_attention(**inputs, backend=backend).cpu()
    assert (out[~belongs] == 0).all()
    assert (out[belongs] != 0).all()
    last = replace(case, last_only=True).inputs(device)
    assert (prefix_attention(**last, backend=backend)[1] == 0).all()


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("prefixes", [(), (0, 0), (5,)])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_nothing_to_do(backend, device, prefixes, last_only):
    case = Case(prefixes, (0,) * len(prefixes), last_only=last_only)
    inputs = case.inputs(device)
    out = prefix_attention(**inputs, backend=backend)
    assert out.shape == inputs["q"].shape
    assert (out == 0).all()
    no_rows = {name: inputs[name][:0] for name in ("k", "v")}
    no_rows["q"] = inputs["q"] if last_only else inputs["q"][:0]
    assert prefix_attention(**{**inputs, **no_rows}, backend=backend).shape == no_rows["q"].shape


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_no_pages_at_all(backend, device):
    inputs = Case((0, 0), (3, 4)).inputs(device)
    expected = prefix_attention(**inputs, backend=backend)
    prefix = inputs["prefix"]
    inputs["prefix"] = replace(
        prefix,
        key_pages=prefix.key_pages[:0],
        value_pages=prefix.value_pages[:0],
        page_table=prefix.page_table[:, :0],
    )
    assert torch.equal(prefix_attention(**inputs, backend=backend), expected)


def _heads_before_rows(inputs: dict) -> None:
    for name in ("q", "k", "v"):
        inputs[name] = inputs[name].transpose(0, 1).contiguous().transpose(0, 1)


def _one_projection(inputs: dict) -> None:
    heads = [inputs[name].shape[1] for name in ("q", "k", "v")]
    together = torch.cat([inputs[name] for name in ("q", "k", "v")], dim=1)
    inputs["q"], inputs["k"], inputs["v"] = together.split(heads, dim=1)


def _strided_elements(inputs: dict) -> None:
    for name in ("q", "k", "v"):
        inputs[name] = inputs[name].transpose(0, 2).contiguous().transpose(0, 2)


def _misaligned(inputs: dict) -> None:
    for name in ("q", "k", "v"):
        inputs[name] = F.pad(inputs[name].flatten(), (1, 0))[1:].view(inputs[name].shape)


def _a_layer_of_a_pool(inputs: dict) -> None:
    prefix = inputs["prefix"]
    pools = {
        name: torch.stack([torch.full_like(pages, torch.nan), pages])
        for name in ("key_pages", "value_pages")
        if (pages := getattr(prefix, name)) is not None
    }
    inputs["prefix"] = replace(prefix, **{name: pool[1] for name, pool in pools.items()})


def _strided_tables(inputs: dict) -> None:
    prefix = inputs["prefix"]
    names = ("prefix_lengths", "suffix_starts", "suffix_lengths")
    strided = {name: getattr(prefix, name).repeat_interleave(2)[::2] for name in names}
    wider = torch.cat([prefix.page_table] * 2, dim=1)[:, : prefix.page_table.shape[1]]
    inputs["prefix"] = replace(prefix, page_table=wider, **strided)


@pytest.mark.parametrize(
    "change",
    [
        _heads_before_rows,
        _one_projection,
        _strided_elements,
        _misaligned,
        _a_layer_of_a_pool,
        _strided_tables,
    ],
)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_memory_layouts(backend, device, change):
    case = Case((50, 33, 7), (6, 7, 2), 4, 2, 32)
    inputs = case.inputs(device)
    change(inputs)
    assert_close_to_truth(prefix_attention(**inputs, backend=backend), case.truth(inputs))


BITWISE_CASES = [
    Case((60, 130, 17, 64, 0), (9, 30, 16, 3, 20), 2, 2, 64),
    Case((60, 130, 17, 64, 0), (9, 20, 16, 3, 5), 4, 1, 24, window=25),
    Case((60, 70, 17), (9, 10, 16), 4, 2, 32, dtype=torch.bfloat16),
    Case((60, 70, 17), (9, 10, 16), 4, 2, 32, compression="int8"),
    Case((60, 70, 17), (9, 10, 16), 4, 2, 32, 32, compression="int4"),
]


def _rows_of_each(
    case: Case, candidates: list[Candidate], backend: str, device: str, seed: int
) -> list[Tensor]:
    """Each candidate's rows of the result. Another seed: other pages, other rows in between."""
    inputs = case.inputs(device, seed, candidates)
    out = prefix_attention(**inputs, backend=backend)
    if case.last_only:
        return list(out.split(1))
    prefix = inputs["prefix"]
    spans = zip(prefix.suffix_starts.tolist(), prefix.suffix_lengths.tolist(), strict=True)
    return [out[start : start + length] for start, length in spans]


def _assert_same_bits(ours: list[Tensor], others: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


@pytest.fixture
def products_as_of_rows_alone(monkeypatch):
    """Has NumPy, which multiplies for Triton's interpreter, sum in float64.

    Its float32 sums depend on where in a block a row stands, on processors without AVX-512.
    """
    multiply = np.matmul

    def in_float64(a, b, dtype=None):
        dtype = dtype or np.result_type(a, b)
        return multiply(a.astype(np.float64), b.astype(np.float64)).astype(dtype)

    monkeypatch.setattr(np, "matmul", in_float64)


@pytest.mark.slow
@pytest.mark.usefixtures("products_as_of_rows_alone")
@pytest.mark.parametrize("case", BITWISE_CASES, ids=str)
@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_a_row_has_the_same_bits_in_any_batch(backend, device, case):
    where = {"backend": backend, "device": device}
    mine, others = case.candidates(), case.candidates(seed=5)
    together = _rows_of_each(case, mine, **where, seed=0)
    for one, rows in zip(mine, together, strict=True):
        _assert_same_bits(_rows_of_each(case, [one], **where, seed=1), [rows])
    _assert_same_bits(_rows_of_each(case, mine[::-1], **where, seed=2), together[::-1])
    among_others = _rows_of_each(case, [others[0], *mine, others[1]], **where, seed=3)
    _assert_same_bits(among_others[1:-1], together)
    if device == "cpu" or case.dtype == torch.float32:  # else in blocks of another size
        lasts = _rows_of_each(replace(case, last_only=True), mine, **where, seed=4)
        _assert_same_bits(lasts, [rows[-1:] for rows in together])
    if case.compression != "int4":  # whose scales are of pages
        pages = replace(case, page_size=48)
        _assert_same_bits(_rows_of_each(pages, mine, **where, seed=5), together)


@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_a_longer_bound_changes_no_bit(backend, device):
    inputs = Case((60, 130, 17), (9, 30, 16), 2, 2, 32).inputs(device)
    expected = prefix_attention(**inputs, backend=backend)
    inputs["prefix"] = replace(inputs["prefix"], max_suffix_length=100)
    assert torch.equal(prefix_attention(**inputs, backend=backend), expected)


def test_the_number_of_threads_changes_nothing():
    inputs = Case((100, 70, 0, 300), (30, 5, 9, 20), 8, 4, 32).inputs()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = prefix_attention(**inputs, backend="cpu")
        torch.set_num_threads(4)
        four = prefix_attention(**inputs, backend="cpu")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, four)


@pytest.mark.parametrize("name", ["q", "k", "v", "key_pages", "value_pages"])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_nan_stays_with_its_candidate(backend, device, name):
    inputs = Case((20, 40, 30), (4, 5, 6), 4, 2).inputs(device)
    prefix = inputs["prefix"]
    starts, lengths = prefix.suffix_starts.tolist(), prefix.suffix_lengths.tolist()
    if name in inputs:
        inputs[name][starts[1]] = torch.nan
    else:
        getattr(prefix, name)[prefix.page_table[1, 0]] = torch.nan
    out = prefix_attention(**inputs, backend=backend)
    spans = [out[start : start + n] for start, n in zip(starts, lengths, strict=True)]
    assert spans[1][0].isnan().all()
    assert not spans[0].isnan().any()
    assert not spans[2].isnan().any()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("isa", _C.cpu_isas())
def test_results_are_rounded_as_torch_rounds(isa, dtype, monkeypatch):
    monkeypatch.setenv("RAGVL_CPU_ISA", isa)
    # A query of zeros takes the mean of what it sees: first a number of the dtype, then that number
    # and a fraction of it (zero of one that is not finite), so that there is something to round.
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    fractions = torch.rand(2**16, generator=torch.Generator().manual_seed(0)) * numbers.float()
    fractions = fractions.nan_to_num(0, 0, 0).to(dtype)
    v = torch.stack([numbers.view(256, 256), fractions.view(256, 256)], 1).view(512, 1, 256)
    read = v
    if isa in ("avx512_bf16", "amx") and dtype == torch.bfloat16:  # subnormals count as zero
        read = v.where(~(v.abs() < torch.finfo(dtype).tiny), 0)
    zeros = torch.zeros_like(v)
    rows = torch.arange(0, 512, 2, dtype=torch.int32)
    none, two = torch.zeros_like(rows), torch.full_like(rows, 2)
    pages = zeros[:1, :, :, None].expand(1, 1, 256, 16).contiguous()
    prefix = PrefixBatch(pages, pages.mT.contiguous(), none[:, None], none, rows, two, 2)
    out = prefix_attention(zeros, zeros, v, prefix, scale=1.0, backend="cpu")
    mean = (read[::2].float() + read[1::2].float()) / 2
    torch.testing.assert_close(out[::2], read[::2], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(out[1::2], mean.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_every_compressed_number_is_read_exactly(backend, device):
    # A query of zeros takes the mean of one token in the prefix and its own value, which is zero.
    numbers = torch.arange(256, dtype=torch.uint8, device=device).view(torch.int8)
    zeros = torch.zeros(1, 1, 256, device=device)
    value_pages = numbers.expand(1, 1, 16, 256).contiguous()
    key_pages = torch.zeros(1, 1, 256, 16, dtype=torch.int8, device=device)
    scales = torch.ones(1, 1, 16, device=device)
    none, one = (torch.full((1,), n, dtype=torch.int32, device=device) for n in (0, 1))
    prefix = PrefixBatch(
        key_pages, value_pages, none[:, None], one, none, one, 1, False, scales, scales
    )
    out = prefix_attention(zeros, zeros, zeros, prefix, scale=1.0, backend=backend)
    torch.testing.assert_close(2 * out[0, 0], numbers.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_every_byte_of_int4_is_read_exactly(backend, device):
    numbers = torch.arange(256, dtype=torch.uint8, device=device)
    zeros = torch.zeros(1, 1, 512, device=device)
    value_pages = numbers.expand(1, 1, 16, 256).contiguous()
    key_pages = torch.zeros(1, 1, 256, 16, dtype=torch.uint8, device=device)
    channels = torch.zeros(1, 1, 512, dtype=torch.float16, device=device)
    scales, minima = (torch.full((1, 1, 16), x, device=device).half() for x in (2.0, -3.5))
    none, one = (torch.full((1,), n, dtype=torch.int32, device=device) for n in (0, 1))
    batch = key_pages, value_pages, none[:, None], one, none, one, 1, False
    prefix = PrefixBatch(*batch, channels, scales, channels, minima)
    out = prefix_attention(zeros, zeros, zeros, prefix, scale=1.0, backend=backend)
    expected = torch.cat([numbers % 16, numbers // 16]).float() * 2 - 3.5
    torch.testing.assert_close(2 * out[0, 0], expected, rtol=0, atol=0)


def _flat(inputs: dict) -> dict:
    """The arguments of the registered operator, which takes no dataclass."""
    prefix = inputs["prefix"]
    flat = {field.name: getattr(prefix, field.name) for field in fields(prefix)}
    return {name: value for name, value in inputs.items() if name != "prefix"} | flat


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case((20, 5), (3, 4), 4, 2),
        Case((20, 5), (3, 4), 2, 1, 8, 16, 7, True, compression="int8"),
        Case((20, 5), (3, 4), 2, 1, 8, 16, compression="int4"),
    ],
    ids=str,
)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_opcheck(backend, device, case):
    inputs = _flat(case.inputs(device, unread=0.0))
    torch.library.opcheck(_prefix_attention, (), {**inputs, "backend": backend})


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_torch_compile_keeps_it_whole(backend, device):
    def layer(factor: float, **inputs) -> Tensor:
        inputs["q"] = inputs["q"] * factor
        return prefix_attention(**inputs, backend=backend) + 1

    # Without inductor: what is tested is that tracing neither breaks nor specialises wrongly.
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for case in (Case((20, 5), (3, 4), 4, 2), Case((50, 5, 9), (6, 4, 7), 4, 2)):
        inputs = case.inputs(device)
        torch.testing.assert_close(compiled(0.5, **inputs), layer(0.5, **inputs))


def test_the_reference_has_gradients():
    case = Case((18, 5), (3, 2), 2, 1, 3, window=7, dtype=torch.float64)
    inputs = case.inputs(unread=0.0)
    leaves = [inputs.pop(name).requires_grad_() for name in ("q", "k", "v")]
    assert torch.autograd.gradcheck(lambda *qkv: prefix_attention_reference(*qkv, **inputs), leaves)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_the_operation_refuses_a_gradient(backend, device):
    inputs = Case((18, 5), (3, 2)).inputs(device)
    inputs["v"].requires_grad_()
    out = prefix_attention(**inputs, backend=backend)
    with pytest.raises(RuntimeError, match="prefix_attention has no gradient"):
        out.sum().backward()


def _int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


_SCALES = torch.ones(6, 2, 16)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"k": 3}, TypeError, "k must be a torch.Tensor, got int"),
        ({"k": torch.ones(9, 2, 8).int()}, TypeError, "k must be float32 or .*, got int32"),
        ({"k": torch.ones(9, 16)}, ValueError, r"k must have shape \(S, G, D\), got \(9, 16\)"),
        ({"k": torch.ones(9, 0, 8)}, ValueError, "k must have at least one head and one column"),
        ({"v": torch.ones(9, 1, 8)}, ValueError, r"v must have shape \(9, 2, 8\)"),
        ({"v": torch.ones(9, 2, 8).half()}, TypeError, "v must be float32, got float16"),
        ({"v": torch.ones(9, 2, 8, device="meta")}, ValueError, "v must be on cpu"),
        ({"q": torch.ones(8, 4, 8)}, ValueError, r"q must have shape \(9, H, 8\)"),
        ({"q": torch.ones(9, 3, 8)}, ValueError, "q's 3 heads must be a multiple of the 2 heads"),
        ({"q": torch.ones(9, 0, 8)}, ValueError, "q's 0 heads must be a multiple"),
        ({"last_only": True}, ValueError, r"q must have shape \(2, H, 8\)"),
        ({"page_table": torch.ones(2, 3)}, TypeError, "page_table must be int32, got float32"),
        ({"page_table": _int32(0, 1)}, ValueError, r"page_table must have shape \(B, M\)"),
        ({"prefix_lengths": _int32(1)}, ValueError, r"prefix_lengths must have shape \(2,\)"),
        ({"suffix_starts": torch.zeros(2)}, TypeError, "suffix_starts must be int32"),
        ({"suffix_lengths": _int32(1, 1, 1)}, ValueError, r"suffix_lengths must have shape \(2,\)"),
        ({"key_pages": torch.ones(6, 2, 16, 8)}, ValueError, r"key_pages must have .*2, 8, S\)"),
        ({"key_pages": torch.ones(6, 2, 8, 24)}, ValueError, "multiple of 16.*hold 24"),
        ({"key_pages": torch.ones(6, 2, 8, 0)}, ValueError, "multiple of 16.*hold 0"),
        ({"key_pages": torch.ones(6, 2, 8, 16).half()}, TypeError, "key_pages must be float32 or"),
        ({"value_pages": torch.ones(5, 2, 16, 8)}, ValueError, r"value_pages must have .*\(6, 2,"),
        ({"value_pages": torch.ones(6, 2, 16, 8).bfloat16()}, TypeError, "value_pages must be fl"),
        (
            {"value_pages": torch.ones(6, 2, 8, 16).mT},
            ValueError,
            "value_pages must be contiguous",
        ),
        ({"key_scales": _SCALES}, ValueError, "key_scales must be given with int8 .* only with"),
        ({"value_scales": _SCALES}, ValueError, "value_scales must be given with int8"),
        ({"key_minima": _SCALES.half()}, ValueError, "key_minima must be given with int4 .* only"),
        ({"key_pages": torch.ones(6, 2, 8, 16).byte()}, ValueError, r"have .*2, 4, S\)"),
        (
            {
                "key_pages": torch.ones(6, 2, 4, 16).byte(),
                "value_pages": torch.ones(6, 2, 16, 4).byte(),
                "key_scales": torch.ones(6, 2, 8).half(),
                "value_scales": _SCALES.half(),
                "key_minima": _SCALES.half(),
                "value_minima": _SCALES.half(),
            },
            ValueError,
            r"key_minima must have shape \(6, 2, 8\)",
        ),
        (
            {
                "key_pages": torch.ones(6, 2, 8, 16).char(),
                "value_pages": torch.ones(6, 2, 16, 8).char(),
            },
            ValueError,
            "key_scales must be given",
        ),
        (
            {
                "key_pages": torch.ones(6, 2, 8, 16).char(),
                "value_pages": torch.ones(6, 2, 16, 8).char(),
                "key_scales": _SCALES[:5],
            },
            ValueError,
            r"key_scales must have shape \(6, 2, 16\)",
        ),
        (
            {
                "key_pages": torch.ones(6, 2, 8, 16).char(),
                "value_pages": torch.ones(6, 2, 16, 8).char(),
                "key_scales": torch.ones(6, 16, 2).mT,
            },
            ValueError,
            "key_scales must be contiguous",
        ),
        ({"max_suffix_length": -1}, ValueError, "max_suffix_length must not be negative"),
        ({"scale": 0.0}, ValueError, "scale must be positive and finite, got 0.0"),
        ({"scale": math.inf}, ValueError, "scale must be positive and finite"),
        ({"scale": math.nan}, ValueError, "scale must be positive and finite"),
        ({"sliding_window": 0}, ValueError, "sliding_window must be at least 1"),
        ({"prefix_lengths": _int32(20, -1)}, ValueError, r"prefix_lengths\[1\] is -1"),
        (
            {"prefix_lengths": _int32(49, 3)},
            ValueError,
            r"prefix_lengths\[0\] is 49, but 3 pages of 16 tokens have room",
        ),
        (
            {"page_table": torch.tensor([[0, 1, 9], [6, 0, 0]], dtype=torch.int32)},
            ValueError,
            r"page_table\[1, 0\] is 6, but there are 6 pages",
        ),
        (
            {"page_table": torch.tensor([[0, -1, 9], [2, 0, 0]], dtype=torch.int32)},
            ValueError,
            r"page_table\[0, 1\] is -1",
        ),
        (
            {"max_suffix_length": 3},
            ValueError,
            r"suffix_lengths\[1\] is 4, but max_suffix_length is 3",
        ),
        ({"suffix_lengths": _int32(3, -1)}, ValueError, r"suffix_lengths\[1\] is -1"),
        ({"suffix_starts": _int32(0, 6)}, ValueError, "suffix 1 begins at row 6 and has 4 tokens"),
        ({"suffix_starts": _int32(-1, 5)}, ValueError, "suffix 0 begins at row -1"),
        ({"suffix_starts": _int32(2**31 - 1, 5)}, ValueError, "suffix 0 begins at row 2147483647"),
        ({"suffix_starts": _int32(4, 2)}, ValueError, "suffixes 1 and 0 overlap"),
        ({"backend": "gpu"}, ValueError, "backend='gpu': expected one of auto, reference"),
        ({"backend": "cuda"}, BackendUnavailableError, "has only reference, cpu, triton"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_arguments(changes, error, message):
    ones = torch.ones(9, 2, 8)
    prefix = PrefixBatch(
        torch.ones(6, 2, 8, 16),
        torch.ones(6, 2, 16, 8),
        torch.tensor([[0, 1, 9], [2, -1, -1]], dtype=torch.int32),
        _int32(20, 16),
        _int32(0, 5),
        _int32(3, 4),
        max_suffix_length=4,
    )
    inputs = {"q": torch.ones(9, 4, 8), "k": ones, "v": ones, "scale": 1.0, "prefix": prefix}
    prefix_attention(**inputs)
    names = {field.name for field in fields(PrefixBatch)}
    inputs["prefix"] = replace(prefix, **{n: x for n, x in changes.items() if n in names})
    with pytest.raises(error, match=message):
        prefix_attention(**inputs | {n: x for n, x in changes.items() if n not in names})


def test_kernels_refuse_float64():
    inputs = Case((5,), (3,), dtype=torch.float64).inputs()
    assert prefix_attention(**inputs).dtype == torch.float64
    with pytest.raises(BackendUnavailableError, match=r"not torch\.float64; use backend='ref"):
        prefix_attention(**inputs, backend="cpu")


# The interpreter accepts what the compiler does not; compiling needs no GPU. In a process of its
# own, since here TRITON_INTERPRET is set.
_COMPILE_FOR_A_GPU = """
from prefix_attention_code import Variant, compiled, multiplies_with
wide = Variant("bfloat16", "bfloat16", 128)
small = Variant("float16", "int8", 80, sliding_window=True)
last = Variant("bfloat16", "bfloat16", 128, last_only=True)
int4 = Variant("bfloat16", "int4", 64)
variants = (wide, 90), (small, 90), (last, 90), (small, 80), (int4, 90), (int4, 80)
for variant, architecture in variants:
    print(multiplies_with(compiled(variant, architecture=architecture)))
"""


@pytest.mark.slow
def test_the_triton_kernel_compiles_for_a_gpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    command = [sys.executable, "-c", _COMPILE_FOR_A_GPU]
    run = subprocess.run(command, check=True, cwd=BENCHMARKS, capture_output=True, text=True)
    assert run.stdout.split() == [*["wgmma"] * 2, *["mma.sync"] * 2, "wgmma", "mma.sync"]


@pytest.mark.gpu
def test_cuda_graph():
    case = replace(CASES[1], dtype=torch.bfloat16)
    inputs = case.inputs("cuda")
    prefix_attention(**inputs, backend="triton")  # compiles and loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = prefix_attention(**inputs, backend="triton")
    # Other numbers in the same memory.
    other = case.inputs("cuda", seed=1)
    for name in ("q", "k", "v"):
        inputs[name].zero_()[: len(other[name])].copy_(other[name][: len(inputs[name])])
    graph.replay()
    assert torch.equal(out, prefix_attention(**inputs, backend="triton"))


@pytest.mark.gpu
def test_runs_on_the_current_stream():
    case = CASES[0]
    inputs = case.inputs("cuda")
    v = inputs["v"].clone()
    inputs["v"].zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on any other stream would see the zeros
        inputs["v"].copy_(v)
        out = prefix_attention(**inputs, backend="triton")
    stream.synchronize()
    assert_close_to_truth(out, case.truth(inputs))
