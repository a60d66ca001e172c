from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from gpu_code import compile_for_a_gpu
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import BACKENDS, KERNELS
from torch import Tensor

from ragvl import _C
from ragvl.compression import COMPRESSIONS, Compression
from ragvl.ops import BackendUnavailableError, prefix_write
from ragvl.ops.pages import PAGE_TENSORS as PAGES
from ragvl.ops.pages import page_tensors
from ragvl.ops.prefix_write import _prefix_write

UNTOUCHED = 77  # in pages that nobody may write to
FORMS = pytest.mark.parametrize("compression", [None, *COMPRESSIONS])
COMPRESSED = pytest.mark.parametrize("compression", COMPRESSIONS)


@dataclass(frozen=True)
class Case:
    lengths: tuple[int, ...]
    tokens: int  # of k and v, at least the longest
    kv_heads: int = 2
    dim: int = 16
    page_size: int = 16
    dtype: torch.dtype = torch.float32
    compression: Compression | None = None

    def inputs(self, device: str = "cpu", seed: int = 0) -> dict:
        """Random arguments of `prefix_write`; pages in no order, the table wider than it must be.

        Past a prefix's length k and v hold NaN.
        """
        rng = torch.Generator().manual_seed(seed)
        counts = [-(-length // self.page_size) for length in self.lengths]
        num_pages, width = sum(counts) + 3, max(counts, default=0) + 1
        order = torch.randperm(num_pages, generator=rng).int()
        table = torch.full((len(counts), width), -5, dtype=torch.int32)
        for row, pages in zip(table, order[: sum(counts)].split(counts), strict=True):
            row[: len(pages)] = pages

        def normal() -> Tensor:
            shape = len(counts), self.tokens, self.kv_heads, self.dim
            x = torch.randn(shape, generator=rng)
            for one, length in zip(x, self.lengths, strict=True):
                one[length:] = torch.nan
            return x.to(self.dtype).transpose(1, 2)  # as a projection leaves it

        sizes = self.kv_heads, self.dim, self.page_size
        parts = page_tensors(self.compression, self.dtype, *sizes)
        inputs = {
            "k": normal().contiguous(),
            "v": normal(),
            "page_table": table,
            "prefix_lengths": torch.tensor(self.lengths, dtype=torch.int32),
            **{
                name: torch.full((num_pages, *part.shape), UNTOUCHED).to(part.dtype)
                for name, part in parts.items()
            },
        }
        return {name: x.to(device) for name, x in inputs.items()}

    def compressed(self, compression: Compression | None) -> Case:
        """The same, in heads that the compression has a place for."""
        even = max(8, self.dim + self.dim % 2)
        dim = even if compression == "int4" else self.dim
        return replace(self, compression=compression, dim=dim)


def written(inputs: dict, backend: str) -> list[Tensor]:
    """The pages, and their scales, after `prefix_write` on copies of them."""
    inputs = {**inputs, **{name: inputs[name].clone() for name in PAGES if name in inputs}}
    prefix_write(**inputs, backend=backend)
    return [inputs[name].cpu() for name in PAGES if name in inputs]


def plain(inputs: dict) -> list[Tensor]:
    """The definition, a token at a time, of pages that are not compressed."""
    inputs = {name: x.cpu() for name, x in inputs.items()}
    key_pages, value_pages = inputs["key_pages"].clone(), inputs["value_pages"].clone()
    page_size = value_pages.shape[2]
    rows = zip(inputs["page_table"].tolist(), inputs["prefix_lengths"].tolist(), strict=True)
    for b, (table, length) in enumerate(rows):
        for t in range(-(-length // page_size) * page_size):
            page, slot = table[t // page_size], t % page_size
            key_pages[page, :, :, slot] = inputs["k"][b, :, t] if t < length else 0
            value_pages[page, :, slot] = inputs["v"][b, :, t] if t < length else 0
    return [key_pages, value_pages]


def assert_same_bits(ours: list[Tensor], others: list[Tensor]) -> None:
    assert len(ours) == len(others)
    for one, other in zip(ours, others, strict=True):
        assert torch.equal(one, other)


CASES = [
    Case((288,), 288, 2, 64),  # one prefix of 256 visual tokens and a caption
    Case((40, 20), 48, 2, 128),  # a 7 B model's head
    Case((1, 16, 17, 0), 32),  # a token, a page, a token more, and nothing
    Case((40, 7), 41, 3, 7),  # no power of two anywhere
    Case((50, 33), 64, 2, 80, page_size=48),  # pages of three vectors
    Case((5,), 5, 1, 1),  # the smallest head
    Case((), 8),  # nobody
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_every_bit_is_where_the_equation_puts_it(backend, device, case, dtype):
    inputs = replace(case, dtype=dtype).inputs(device)
    assert_same_bits(written(inputs, backend), plain(inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_int8_errs_by_its_rounding(case, dtype):
    case = replace(case, dtype=dtype)
    *pages, key_scales, value_scales = written(case.compressed("int8").inputs(), "reference")
    exact = plain(case.inputs())
    table = case.inputs()["page_table"]
    used = table[table >= 0].long()
    for numbers, scales, head_dim, values in (
        (pages[0], key_scales, -2, exact[0]),
        (pages[1], value_scales, -1, exact[1]),
    ):
        values, scales = values[used].double(), scales[used].double()
        torch.testing.assert_close(
            127 * scales, values.abs().amax(head_dim), rtol=1e-6, atol=0, check_dtype=False
        )
        error = numbers[used].double() * scales.unsqueeze(head_dim) - values
        assert (error.abs() <= 0.50001 * scales.unsqueeze(head_dim)).all()
        others = torch.ones(len(numbers), dtype=torch.bool).scatter_(0, used, value=False)
        assert (numbers[others] == UNTOUCHED).all()


def groups(case: Case, inputs: dict) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """What `inputs` has written in int4, group by group, in float64.

    Of each prefix, page, and of keys each head and channel, of values each head and token: the
    numbers that were to be written, those that lie there, the scale and the minimum.
    """
    key_bytes, value_bytes, *others = written(inputs, "reference")
    key_scales, value_scales, key_minima, value_minima = (x.double() for x in others)
    key_numbers, value_numbers = (
        torch.cat([x % 16, x // 16], dim).double() for x, dim in ((key_bytes, 2), (value_bytes, 3))
    )
    found = []
    for b, length in enumerate(case.lengths):
        for first in range(0, length, case.page_size):
            page = inputs["page_table"][b, first // case.page_size]
            keys, values = (inputs[n][b, :, first:length].double() for n in ("k", "v"))
            here = min(case.page_size, length - first)
            for head in range(case.kv_heads):
                for i in range(case.dim):
                    lie = key_numbers[page, head, i, :here]
                    steps = key_scales[page, head, i], key_minima[page, head, i]
                    found.append((keys[head, :here, i], lie, *steps))
                for t in range(here):
                    lie = value_numbers[page, head, t]
                    steps = value_scales[page, head, t], value_minima[page, head, t]
                    found.append((values[head, t], lie, *steps))
            assert not key_numbers[page, :, :, here:].any()
            assert not value_numbers[page, :, here:].any()
    return found


def assert_int4(case: Case, inputs: dict) -> None:
    """Scales and minima are those of each group's own numbers, and errors half a step."""
    for x, numbers, scale, minimum in groups(case, inputs):
        # What float16 rounds: of a normal number 2^-11 of it, of others half of the least one
        rounded = 2**-11 * torch.stack([x.min().abs(), (x.max() - x.min()) / 15]) + 2**-25
        assert (minimum - x.min()).abs() <= rounded[0]
        assert (scale - (x.max() - x.min()) / 15).abs() <= 1.0001 * rounded[1]
        error = (numbers * scale + minimum - x).abs().max()
        assert error <= 0.50001 * scale + rounded[0] + 15 * rounded[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if sum(case.lengths) < 100], ids=str)
def test_int4_errs_by_its_rounding(case, dtype):
    case = replace(case, dtype=dtype).compressed("int4")
    assert_int4(case, case.inputs())


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=2).map(tuple),
    kv_heads=st.integers(1, 2),
    dim=st.sampled_from([8, 10, 16, 34]),
    page_size=st.sampled_from([16, 32]),
    scale=st.integers(-30, 11),
    offset=st.floats(-2e4, 2e4, width=32),
    seed=st.integers(0, 2**32 - 1),
)
def test_int4_errs_by_its_rounding_whatever_the_numbers(
    lengths, kv_heads, dim, page_size, scale, offset, seed
):
    case = Case(lengths, 40, kv_heads, dim, page_size, compression="int4")
    inputs = case.inputs(seed=seed)
    for name in ("k", "v"):
        inputs[name] = inputs[name] * 2.0**scale + offset
    assert_int4(case, inputs)


@pytest.mark.parametrize("number", [0.0, -0.0, 1.0, -3.140625, 60000.0, 2.0**-24])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_int4_of_equal_numbers_is_exact(backend, device, number):
    inputs = Case((20,), 20, 1, 8, compression="int4").inputs(device)
    for name in ("k", "v"):
        inputs[name] = torch.full_like(inputs[name], number)
    *_, key_scales, value_scales, key_minima, value_minima = written(inputs, backend)
    first = inputs["page_table"][0, 0]
    assert (key_scales[first] == 0).all() and (value_scales[first] == 0).all()
    assert (key_minima[first] == number).all() and (value_minima[first] == number).all()
    assert not key_minima[first].signbit().logical_xor(torch.tensor(number < 0)).any()


@pytest.mark.parametrize("large", [66000.0, -66000.0, 1e30, torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_what_float16_does_not_hold_shows_in_its_own_group(backend, device, large):
    inputs = Case((20,), 20, compression="int4").inputs(device)
    inputs["k"][0, 1, 17, 5] = large
    inputs["v"][0, 0, 3, 9] = large
    *_, key_scales, value_scales, key_minima, value_minima = written(inputs, backend)
    pages = inputs["page_table"][0, :2].long().cpu()
    keys, values = (
        scales[pages].isfinite() & minima[pages].isfinite()
        for scales, minima in ((key_scales, key_minima), (value_scales, value_minima))
    )
    # 66000 above some number is beyond 15 steps of it, but no step is beyond float16: it is held
    held = [] if large == 66000.0 else [[1, 1, 5]]
    assert torch.nonzero(~keys).tolist() == held
    assert torch.nonzero(~values).tolist() == ([] if large == 66000.0 else [[0, 0, 3]])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@COMPRESSED
@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_kernels_compress_to_the_references_bits(backend, device, compression, case, dtype):
    inputs = replace(case, dtype=dtype).compressed(compression).inputs()
    on_device = {name: x.to(device) for name, x in inputs.items()}
    assert_same_bits(written(on_device, backend), written(inputs, "reference"))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_int8_of_extreme_numbers(backend, device):
    rows = [
        [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, -127.0],  # ties go to the even number
        [0.0, -0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [3e38, -3e38, 1e30, 0.0, 0.0, 0.0, 0.0, 0.0],
        [1e-42, -1e-42, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # its scale is no normal number
    ]
    inputs = Case((4,), 4, 1, 8, compression="int8").inputs()
    inputs["v"] = torch.tensor(rows)[None, None]
    _, values, _, scales = written({n: x.to(device) for n, x in inputs.items()}, backend)
    page = inputs["page_table"][0, 0]
    assert values[page, 0, :4].tolist() == [
        [127, 0, 2, 2, 0, -2, -126, -127],
        [0] * 8,
        [127, -127, 0, 0, 0, 0, 0, 0],
        [0] * 8,
    ]
    assert scales[page, 0, :2].tolist() == [1, 0]


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 5, 15])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_what_is_not_finite_shows_in_its_own_scale(backend, device, number, place):
    inputs = Case((20,), 20, compression="int8").inputs(device)
    inputs["k"][0, 1, 17, place] = number
    scales = written(inputs, backend)[2][inputs["page_table"][0, :2].long().cpu()]
    assert torch.nonzero(~scales.isfinite()).tolist() == [[1, 1, 1]]


@FORMS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", _C.cpu_isas())
def test_every_instruction_set(isa, dtype, compression, monkeypatch):
    monkeypatch.setenv("RAGVL_CPU_ISA", isa)
    inputs = Case((70, 33), 70, 2, 40, dtype=dtype, compression=compression).inputs()
    assert_same_bits(written(inputs, "cpu"), written(inputs, "reference"))


def _strided_elements(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2]


def _heads_last(x: Tensor) -> Tensor:
    return x.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)


def _one_head_for_all(x: Tensor) -> Tensor:
    return x[:, :1].expand_as(x)


def _part_of_more(x: Tensor) -> Tensor:
    return torch.cat([x, x, x], -1)[..., x.shape[-1] : 2 * x.shape[-1]]


@pytest.mark.parametrize(
    "change", [_strided_elements, _heads_last, _one_head_for_all, _part_of_more]
)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_memory_layouts(backend, device, change):
    inputs = Case((40, 7), 41, 3, 8).inputs(device)
    inputs |= {name: change(inputs[name]) for name in ("k", "v")}
    assert_same_bits(written(inputs, backend), plain(inputs))


@pytest.mark.slow
@FORMS
@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_a_prefix_has_the_same_bits_in_any_batch(backend, device, compression):
    inputs = Case((40, 7, 64), 64, compression=compression).inputs(device)
    together = written(inputs, backend)
    for b, length in enumerate(inputs["prefix_lengths"].tolist()):
        one = dict(inputs)
        for name in ("page_table", "prefix_lengths"):
            one[name] = inputs[name][b : b + 1]
        for name in ("k", "v"):
            one[name] = inputs[name][b : b + 1, :, :length]
        own = inputs["page_table"][b, : -(-length // 16)].long().cpu()
        assert_same_bits([x[own] for x in written(one, backend)], [x[own] for x in together])


_cases = st.integers(0, 90).flatmap(
    lambda tokens: st.builds(
        Case,
        lengths=st.lists(st.integers(0, tokens), max_size=4).map(tuple),
        tokens=st.just(tokens),
        kv_heads=st.integers(1, 3),
        dim=st.integers(1, 40),
        page_size=st.sampled_from([16, 32]),
        dtype=st.sampled_from(DTYPES),
    )
)


@settings(max_examples=60)
@given(
    case=_cases,
    compression=st.sampled_from([None, *COMPRESSIONS]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_case_on_the_cpu(case, compression, seed):
    inputs = case.compressed(compression).inputs(seed=seed)
    assert_same_bits(written(inputs, "cpu"), written(inputs, "reference"))


@pytest.mark.slow
@FORMS
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_opcheck(backend, device, compression):
    inputs = Case((20, 5), 20, compression=compression).inputs(device)
    inputs |= {name: inputs[name].nan_to_num() for name in ("k", "v")}
    arguments = {**dict.fromkeys(PAGES), **inputs, "backend": backend}
    torch.library.opcheck(_prefix_write, (), arguments)


@pytest.mark.slow
def test_torch_compile_keeps_it_whole():
    def layer(factor: float, **inputs) -> Tensor:
        prefix_write(**{**inputs, "k": inputs["k"] * factor}, backend="cpu")
        return inputs["key_pages"] + 1

    # Without inductor: what is tested is that tracing neither breaks nor specialises wrongly.
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for case in (Case((20, 5), 20), Case((50, 5, 9), 51)):
        inputs, same = case.inputs(), case.inputs()
        assert torch.equal(compiled(0.5, **inputs), layer(0.5, **same))
        assert torch.equal(inputs["value_pages"], same["value_pages"])


def _int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"k": 3}, TypeError, "k must be a torch.Tensor, got int"),
        ({"k": torch.ones(2, 2, 9, 8).int()}, TypeError, "k must be float32 or .*, got int32"),
        ({"k": torch.ones(2, 9, 8)}, ValueError, r"k must have shape \(B, G, T, D\)"),
        ({"k": torch.ones(2, 0, 9, 8)}, ValueError, "k must have at least one head and one column"),
        ({"v": torch.ones(2, 2, 8, 8)}, ValueError, r"v must have shape \(2, 2, 9, 8\)"),
        ({"v": torch.ones(2, 2, 9, 8).half()}, TypeError, "v must be float32, got float16"),
        ({"v": torch.ones(2, 2, 9, 8, device="meta")}, ValueError, "v must be on cpu"),
        ({"page_table": torch.ones(2, 1)}, TypeError, "page_table must be int32, got float32"),
        ({"page_table": _int32(0, 1)}, ValueError, r"page_table must have shape \(2, M\)"),
        ({"prefix_lengths": _int32(1)}, ValueError, r"prefix_lengths must have shape \(2,\)"),
        ({"key_pages": torch.ones(4, 2, 16, 8)}, ValueError, r"key_pages must have .*2, 8, S\)"),
        ({"key_pages": torch.ones(4, 2, 8, 24)}, ValueError, "multiple of 16.*hold 24"),
        ({"key_pages": torch.ones(4, 2, 8, 16).half()}, TypeError, "key_pages must be float32 or"),
        ({"value_pages": torch.ones(3, 2, 16, 8)}, ValueError, r"value_pages must have .*\(4, 2,"),
        ({"value_pages": torch.ones(4, 2, 8, 16).mT}, ValueError, "value_pages must be contiguous"),
        ({"key_scales": torch.ones(4, 2, 16)}, ValueError, "key_scales .* only with them"),
        ({"prefix_lengths": _int32(9, -1)}, ValueError, r"prefix_lengths\[1\] is -1, but k has 9"),
        ({"prefix_lengths": _int32(10, 1)}, ValueError, r"prefix_lengths\[0\] is 10, but k has 9"),
        ({"page_table": torch.ones(2, 0).int()}, ValueError, "0 pages of 16 tokens have room"),
        ({"page_table": _int32(1, 4)[:, None]}, ValueError, "names page 4, but there are 4 pages"),
        ({"page_table": _int32(-1, 2)[:, None]}, ValueError, "names page -1, but there are 4"),
        ({"page_table": _int32(2, 2)[:, None]}, ValueError, "names a page twice"),
        ({"backend": "gpu"}, ValueError, "backend='gpu': expected one of auto, reference"),
        ({"backend": "cuda"}, BackendUnavailableError, "prefix_write has only reference, cpu, tri"),
    ],
)
def test_bad_arguments(changes, error, message):
    inputs = {
        "k": torch.ones(2, 2, 9, 8),
        "v": torch.ones(2, 2, 9, 8),
        "key_pages": torch.ones(4, 2, 8, 16),
        "value_pages": torch.ones(4, 2, 16, 8),
        "page_table": _int32(3, 1)[:, None],
        "prefix_lengths": _int32(9, 5),
    }
    prefix_write(**inputs)
    with pytest.raises(error, match=message):
        prefix_write(**inputs | changes)


@pytest.mark.parametrize(
    ("compression", "missing", "message"),
    [
        ("int8", "value_scales", "value_scales must be given with int8 or int4 pages"),
        ("int4", "key_scales", "key_scales must be given with int8 or int4 pages"),
        ("int4", "key_minima", "key_minima must be given with int4 pages"),
    ],
)
def test_compressed_pages_need_scales_and_minima(compression, missing, message):
    inputs = Case((9,), 9, compression=compression).inputs()
    del inputs[missing]
    with pytest.raises(ValueError, match=message):
        prefix_write(**inputs)


@pytest.mark.parametrize("dim", [1, 6, 9])
def test_int4_refuses_heads_that_it_has_no_place_for(dim):
    inputs = Case((9,), 9, dim=8, compression="int4").inputs()
    inputs |= {name: torch.ones(1, 2, 9, dim) for name in ("k", "v")}
    with pytest.raises(ValueError, match=f"even number of columns, at least 8: these have {dim}"):
        prefix_write(**inputs)


def test_kernels_refuse_float64():
    inputs = Case((5,), 5, dtype=torch.float64).inputs()
    assert_same_bits(written(inputs, "auto"), plain(inputs))
    with pytest.raises(BackendUnavailableError, match=r"not torch\.float64; use backend='ref"):
        prefix_write(**inputs, backend="cpu")


@pytest.mark.slow
@FORMS
def test_the_triton_kernel_compiles_for_a_gpu(compression):
    strides = "k_head_stride k_token_stride v_head_stride v_token_stride"
    types = {
        "k v": "*bf16",
        "key_pages value_pages": {None: "*bf16", "int8": "*i8", "int4": "*u8"}[compression],
        "k_batch_stride v_batch_stride": "i64",
        f"table_width {strides}": "i32",
        "page_table prefix_lengths": "*i32",
    }
    sizes = {"KV_HEADS": 2, "DIM": 80, "PAGE_SIZE": 48, "BLOCK_TOKENS": 16, "BLOCK_DIM": 128}
    if compression == "int4":
        types["key_scales value_scales key_minima value_minima"] = "*fp16"
        sizes = {"KV_HEADS": 2, "HALF": 40, "PAGE_SIZE": 48, "BLOCK_TOKENS": 16, "BLOCK_HALF": 64}
        compile_for_a_gpu("prefix_write", types, sizes, "_prefix_write_int4_fwd_kernel")
        return
    if compression == "int8":
        types["key_scales value_scales"] = "*fp32"
    else:
        sizes |= {"key_scales": None, "value_scales": None}
    compile_for_a_gpu("prefix_write", types, sizes)


@pytest.mark.gpu
@FORMS
def test_cuda_graph(compression):
    case = Case((40, 7), 41, dtype=torch.bfloat16, compression=compression)
    inputs = case.inputs("cuda")
    prefix_write(**inputs, backend="triton")  # compiles and loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        prefix_write(**inputs, backend="triton")
    other = case.inputs("cuda", seed=1)
    for name in ("k", "v", "page_table", *(n for n in PAGES if n in inputs)):
        inputs[name].copy_(other[name])
    graph.replay()
    assert_same_bits([inputs[n].cpu() for n in PAGES if n in inputs], written(other, "triton"))


@pytest.mark.gpu
def test_runs_on_the_current_stream():
    inputs = Case((40, 7), 41).inputs("cuda")
    expected = plain(inputs)
    k = inputs["k"].clone()
    inputs["k"].zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on any other stream would see the zeros
        inputs["k"].copy_(k)
        prefix_write(**inputs, backend="triton")
    stream.synchronize()
    assert_same_bits([inputs["key_pages"].cpu(), inputs["value_pages"].cpu()], expected)
