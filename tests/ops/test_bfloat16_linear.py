from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close_to_truth
from torch import Tensor

from ragvl import _C
from ragvl.ops import BackendUnavailableError, bfloat16_linear, bfloat16_linear_reference

BACKENDS = ["reference", "cpu"]
EPS = torch.finfo(torch.bfloat16).eps
HALF = torch.bfloat16


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(HALF)


def truth(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


@pytest.mark.parametrize("isa", _C.cpu_isas())
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "out"),
    [((7, 33), 5), ((2, 3, 128), 64), ((1, 1), 1), ((3, 1025), 16), ((64,), 3), ((400, 6), 70)],
)
def test_it_is_the_definition(isa, with_bias, shape, out, monkeypatch):
    monkeypatch.setenv("RAGVL_CPU_ISA", isa)
    x, weight = drawn(*shape), drawn(out, shape[-1], seed=1)
    bias = drawn(out, seed=2) if with_bias else None
    y = bfloat16_linear(x, weight, bias, backend="cpu")
    assert (y.dtype, y.shape) == (HALF, (*shape[:-1], out))
    assert_close_to_truth(y, truth(x, weight, bias), bound=EPS)


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 70),
    st.integers(0, 100),
    st.integers(0, 100),
    st.booleans(),
    st.integers(0, 1 << 30),
)
def test_it_is_the_reference_but_for_rounding(rows, inputs, outputs, with_bias, seed):
    """Of a sum that lies between two numbers of bfloat16 either may be given."""
    x, weight = drawn(rows, inputs, seed=seed), drawn(outputs, inputs, seed=seed + 1)
    bias = drawn(outputs, seed=seed + 2) if with_bias else None
    expected = bfloat16_linear_reference(x, weight, bias).float()
    given_ = bfloat16_linear(x, weight, bias, backend="cpu").float()
    largest = truth(x.abs(), weight.abs(), None if bias is None else bias.abs()).float()
    assert ((given_ - expected).abs() <= EPS * expected.abs() + 1e-6 * largest).all()


@pytest.mark.parametrize("isa", _C.cpu_isas())
def test_a_row_has_the_same_bits_in_any_batch(isa, monkeypatch):
    """In batches of one chunk and of several, at any place of them."""
    monkeypatch.setenv("RAGVL_CPU_ISA", isa)
    x, weight = drawn(700, 1504), drawn(70, 1504, seed=1)
    together = bfloat16_linear(x, weight, backend="cpu")
    for places in (range(1), range(33), range(600, 700), range(699, 300, -1)):
        rows = list(places)
        assert torch.equal(bfloat16_linear(x[rows], weight, backend="cpu"), together[rows])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads):
    before = torch.get_num_threads()
    x, weight = drawn(300, 256), drawn(96, 256, seed=1)
    expected = bfloat16_linear(x, weight, backend="cpu")
    try:
        torch.set_num_threads(threads)
        assert torch.equal(bfloat16_linear(x, weight, backend="cpu"), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_stays_in_its_row(backend):
    x, weight = drawn(40, 37), drawn(8, 37, seed=1)
    expected = bfloat16_linear(x, weight, backend=backend)
    x[3, 5], x[39, 36] = torch.nan, torch.inf
    y = bfloat16_linear(x, weight, backend=backend)
    assert y[3].isnan().all()
    assert not y[39].isfinite().any()
    others = [row for row in range(40) if row not in (3, 39)]
    assert torch.equal(y[others], expected[others])


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_layouts_and_no_rows(backend):
    weight, x, bias = drawn(6, 20, seed=1), drawn(4, 5, 20), drawn(12, seed=2)[::2]
    expected = bfloat16_linear(x, weight, bias, backend=backend)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    columns = weight.T.contiguous().T
    assert torch.equal(bfloat16_linear(strided, columns, bias, backend=backend), expected)
    assert bfloat16_linear(x[:0], weight, backend=backend).shape == (0, 5, 6)
    with torch.device("meta"):  # what a caller makes by default
        assert torch.equal(bfloat16_linear(x, weight, bias, backend=backend), expected)


def test_what_cannot_be_multiplied_is_refused():
    weight, x = drawn(6, 20), drawn(4, 20)
    with pytest.raises(TypeError, match="x must be bfloat16, got float32"):
        bfloat16_linear(x.float(), weight)
    with pytest.raises(TypeError, match="weight must be bfloat16, got float16"):
        bfloat16_linear(x, weight.half())
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 20\), got \(4, 19\)"):
        bfloat16_linear(x[:, 1:], weight)
    with pytest.raises(ValueError, match=r"bias must have shape \(6,\)"):
        bfloat16_linear(x, weight, drawn(5))
    for tensors in [(x.clone().requires_grad_(), weight), (x, weight.clone().requires_grad_())]:
        with pytest.raises(RuntimeError, match="no gradient"):
            bfloat16_linear(*tensors)
    with pytest.raises(BackendUnavailableError, match="bfloat16_linear has only reference, cpu"):
        bfloat16_linear(x, weight, backend="triton")


def test_the_reference_is_what_its_name_says():
    x, weight, bias = drawn(5, 30), drawn(7, 30, seed=1), drawn(7, seed=2)
    y = bfloat16_linear_reference(x, weight, bias)
    assert_close_to_truth(y, truth(x, weight, bias), bound=EPS)
