from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close_to_truth
from operations import HALVES
from torch import Tensor

from ragvl import _C
from ragvl.ops import BackendUnavailableError, Int8Weight, int8_linear, int8_linear_reference
from ragvl.ops.int8_linear import quantize_rows_reference

BACKENDS = ["reference", "cpu"]
SHAPES = [((7, 33), 5), ((2, 3, 128), 64), ((1, 1), 1), ((3, 1025), 16), ((64,), 3), ((400, 6), 70)]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def truth(x: Tensor, weight: Int8Weight, bias: Tensor | None = None) -> Tensor:
    """The definition in float64, a row after the other."""
    rows = []
    for row in x.double().reshape(-1, x.shape[-1]):
        scale = row.abs().max() / 127
        codes = torch.round(row / scale) if scale > 0 else torch.zeros_like(row)
        rows.append((weight.codes.double() * weight.scales.double()[:, None]) @ (codes * scale))
    out = torch.stack(rows).view(*x.shape[:-1], -1)
    return out if bias is None else out + bias.double()


# --- rounding to 8 bits -------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5),
    st.integers(1, 300),
    st.floats(-30, 30),
    st.integers(0, 1 << 30),
    st.sampled_from([torch.float32, *HALVES]),
)
def test_rows_are_rounded_to_the_nearest(rows, dim, exponent, seed, dtype):
    x = (drawn(rows, dim, seed=seed).double() * 2.0**exponent).to(dtype)
    if not x.isfinite().all():
        return
    codes, scales = quantize_rows_reference(x)
    assert (codes.abs() <= 127).all()
    # Half a step, and the rounding of the scale and of its inverse
    error = (codes.double() * scales.double()[:, None] - x.double()).abs()
    assert (error <= scales.double()[:, None] * (0.5 + 1e-4)).all()
    largest = x.abs().float().amax(-1)
    assert (codes.abs().amax(-1)[scales > 0] == 127).all()
    assert torch.equal(scales[scales > 0], (largest / 127)[scales > 0])


@pytest.mark.parametrize("isa", _C.cpu_isas())
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_every_instruction_set_rounds_as_the_reference_does(isa, dtype, monkeypatch):
    """Ties too: half of the numbers lie between two codes."""
    monkeypatch.setenv("RAGVL_CPU_ISA", isa)
    x = torch.cat([torch.arange(-254, 255) / 2, torch.tensor([127.0])]).to(dtype).repeat(3, 1)
    x = torch.cat([x, drawn(3, 510, seed=1, dtype=dtype)])
    weight = Int8Weight(torch.eye(510, dtype=torch.int8), torch.ones(510))
    codes, scales = quantize_rows_reference(x)
    expected = (codes * scales[:, None]).to(dtype)
    assert torch.equal(int8_linear(x, weight, backend="cpu"), expected)


def test_a_weight_is_rounded_row_by_row():
    weight = Int8Weight.of(torch.tensor([[127.0, -1.0, 0.4], [0.0, 0.0, 0.0]]))
    assert weight.codes.tolist() == [[127, -1, 0], [0, 0, 0]]
    assert weight.scales.tolist() == [1, 0]


# --- the product --------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_it_is_the_definition(backend, with_bias, shape, out):
    x, weight = drawn(*shape), Int8Weight.of(drawn(out, shape[-1], seed=1))
    bias = drawn(out, seed=2) if with_bias else None
    y = int8_linear(x, weight, bias, backend=backend)
    assert y.dtype == torch.float32
    assert_close_to_truth(y, truth(x, weight, bias))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_is_rounded_once(backend, dtype):
    x, weight = drawn(9, 70, dtype=dtype), Int8Weight.of(drawn(20, 70, seed=1))
    bias = drawn(20, seed=2, dtype=dtype)
    y = int8_linear(x, weight, bias, backend=backend)
    assert y.dtype == dtype
    assert_close_to_truth(y, truth(x, weight, bias), bound=torch.finfo(dtype).eps)


def test_it_is_near_the_product_of_floating_point():
    x, weight = drawn(50, 512), drawn(100, 512, seed=1)
    assert_close_to_truth(int8_linear(x, Int8Weight.of(weight)), F.linear(x, weight), bound=0.02)


@pytest.mark.parametrize("isa", _C.cpu_isas())
@pytest.mark.parametrize("dim", [64, 4096, 1 << 17])
def test_the_largest_sums_are_exact(isa, dim, monkeypatch):
    """All codes of the largest magnitude: pairs of them overflow 16 bits."""
    monkeypatch.setenv("RAGVL_CPU_ISA", isa)
    signs = torch.where(drawn(4, dim) > 0, 127.0, -127.0)
    weight = Int8Weight.of(torch.cat([signs, torch.full((1, dim), 127.0)]))
    x = torch.cat([signs, torch.full((1, dim), -127.0)])
    y = int8_linear(x, weight, backend="cpu")
    assert torch.equal(y.double(), (x.double() @ weight.codes.double().T).float().double())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_a_row_has_the_same_bits_in_any_batch(backend, dtype):
    x, weight = drawn(37, 96, dtype=dtype), Int8Weight.of(drawn(50, 96, seed=1))
    together = int8_linear(x, weight, backend=backend)
    for part in (x[:1], x[5:20], x.flip(0)[:11]):
        alone = int8_linear(part, weight, backend=backend)
        places = [int((x == row).all(1).nonzero()[0]) for row in part]
        assert torch.equal(alone, together[places])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_a_scale(backend):
    """NaN and infinity stay in their row; zeros and numbers near the smallest give zero."""
    x = drawn(6, 40)
    x[0, 3], x[1, 7], x[2, 0], x[3], x[4] = torch.nan, torch.inf, -torch.inf, 0, 1e-41
    weight = Int8Weight.of(drawn(8, 40, seed=1))
    y = int8_linear(x, weight, backend=backend)
    assert y[:3].isnan().all()
    assert (y[3:5] == 0).all()
    assert_close_to_truth(y[5:], truth(x[5:], weight))


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_layouts_and_no_rows(backend):
    weight, x = Int8Weight.of(drawn(6, 20, seed=1)), drawn(4, 5, 20)
    expected = int8_linear(x, weight, backend=backend)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(int8_linear(strided, weight, backend=backend), expected)
    assert int8_linear(x[:0], weight, backend=backend).shape == (0, 5, 6)
    nothing = Int8Weight(weight.codes[:0], weight.scales[:0])
    assert int8_linear(x, nothing, backend=backend).shape == (4, 5, 0)
    with torch.device("meta"):  # what a caller makes by default
        assert torch.equal(int8_linear(x, weight, backend=backend), expected)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 40),
    st.integers(1, 70),
    st.integers(1, 70),
    st.booleans(),
    st.integers(0, 1 << 30),
    st.sampled_from([torch.float32, *HALVES]),
)
def test_the_kernel_has_the_references_bits(rows, inputs, outputs, with_bias, seed, dtype):
    x = drawn(rows, inputs, seed=seed, dtype=dtype)
    weight = Int8Weight.of(drawn(outputs, inputs, seed=seed + 1))
    bias = drawn(outputs, seed=seed + 2, dtype=dtype) if with_bias else None
    expected = int8_linear_reference(x, weight, bias)
    assert torch.equal(int8_linear(x, weight, bias, backend="cpu"), expected)


def test_what_cannot_be_multiplied_is_refused():
    weight, x = Int8Weight.of(drawn(6, 20)), drawn(4, 20)
    wide = Int8Weight(torch.ones(1, (1 << 17) + 1, dtype=torch.int8), torch.ones(1))
    with pytest.raises(ValueError, match="weight must have at most 131072 columns, got 131073"):
        int8_linear(torch.ones(1, (1 << 17) + 1), wide)
    with pytest.raises(TypeError, match="weight must be an Int8Weight, got Tensor"):
        int8_linear(x, drawn(6, 20))
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 20\), got \(4, 19\)"):
        int8_linear(x[:, 1:], weight)
    with pytest.raises(TypeError, match="x must be float32 or bfloat16 or float16, got float64"):
        int8_linear(x.double(), weight)
    with pytest.raises(ValueError, match=r"bias must have shape \(6,\)"):
        int8_linear(x, weight, drawn(5))
    with pytest.raises(ValueError, match="weight must be finite"):
        Int8Weight.of(torch.full((2, 2), torch.nan))
    with pytest.raises(RuntimeError, match="no gradient"):
        int8_linear(x.requires_grad_(), weight)
    with pytest.raises(BackendUnavailableError, match="int8_linear has only reference, cpu"):
        int8_linear(drawn(4, 20), weight, backend="triton")


def test_the_reference_is_what_its_name_says():
    x, weight, bias = drawn(5, 30), Int8Weight.of(drawn(7, 30, seed=1)), drawn(7, seed=2)
    assert_close_to_truth(int8_linear_reference(x, weight, bias), truth(x, weight, bias))
