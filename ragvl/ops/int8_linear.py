"""int8_linear: a product with 8-bit weights, whose inputs are rounded to 8 bits row by row.

A CPU with AVX-512 VNNI multiplies 8-bit whole numbers about four times as fast as float32, one with
AMX faster still. Sums of whole numbers are exact in any order, so that a row's result does not
depend on the rows beside it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import record_function

from ragvl.ops.arguments import check_tensor
from ragvl.ops.backends import (
    KERNEL_DTYPES,
    Backend,
    BackendUnavailableError,
    choose,
    compiled,
)
from ragvl.ops.compiled import run_compiled

_LARGEST = 127  # of the numbers that weights and inputs are rounded to
_ZERO = 128  # stands for zero in the rows that the kernel multiplies
_MOST_INPUTS = 1 << 17  # whose products' sum fits into 32 bits
_LANES, _PANEL, _DEPTH = 16, 32, 4  # as in csrc/int8_linear.cpp
_TILE_ROWS, _TILE_DEPTH = 16, 64  # of what AMX reads at once
_WORK_PER_THREAD = 1 << 21  # under this many products a second thread costs more than it saves
# Whose instructions multiply four pairs of 8-bit numbers and add them up
_FAST_ISAS = ("avx512_vnni", "avx512_bf16", "amx")


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """A weight (N, K) as whole numbers with one scale a row: `codes * scales[:, None]`.

    Attributes:
        codes: (N, K) int8, of at most 127.
        scales: (N,) float32.
    """

    codes: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Int8Weight:
        """The nearest one to a weight.

        Args:
            weight: (N, K) float32, bfloat16, float16 or float64.

        Raises:
            TypeError: it is no tensor, or of another dtype.
            ValueError: it is no matrix, or not finite.
        """
        check_tensor("weight", weight, shape=("N", "K"), dtypes=(*KERNEL_DTYPES, torch.float64))
        if not weight.isfinite().all():
            raise ValueError("weight must be finite: 8 bits have no NaN and no infinity")
        codes, scales = quantize_rows_reference(weight)
        return cls(codes, scales)

    @functools.cached_property
    def packed(self) -> _Packed:
        """The weight as the kernel reads it, made when first needed."""
        rows, columns = self.codes.shape
        codes = F.pad(self.codes, (0, -columns % _TILE_DEPTH, 0, -rows % _PANEL))
        return _Packed(
            codes.view(-1, _LANES, codes.shape[1] // _DEPTH, _DEPTH).transpose(1, 2).contiguous(),
            F.pad(self.scales, (0, len(codes) - rows)),
            -_ZERO * codes.sum(1, dtype=torch.int32),
            codes.shape[1],
        )


class _Packed(NamedTuple):
    """A weight as csrc/int8_linear.h describes it."""

    codes: Tensor
    scales: Tensor
    offsets: Tensor
    padded_dim: int


def quantize_rows_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as whole numbers from -127 to 127 with a scale each, in plain PyTorch.

    ```
    scales = max(abs(x), -1) / 127
    codes = round(x / scales)                                   # of two as near to the even one
    ```

    A row of zeros, or of numbers too small for a scale, has scale 0; one that is not finite NaN.

    Args:
        x: (..., K) of a floating dtype.

    Returns:
        codes (..., K) int8 and scales (...,) float32.
    """
    wide = x.float()
    largest = wide.abs().amax(-1)
    scales = largest / _LARGEST
    normal = largest.isfinite() & (scales >= torch.finfo(torch.float32).tiny)
    inverse = torch.where(normal, 1 / scales, 0)
    finite = torch.where(normal[..., None], wide, 0)
    codes = (finite * inverse[..., None]).round().to(torch.int8)
    none = torch.where(largest.isfinite(), 0.0, torch.nan)
    return codes, torch.where(normal, scales, none)


def int8_linear(
    x: Tensor, weight: Int8Weight, bias: Tensor | None = None, *, backend: Backend = "auto"
) -> Tensor:
    """X times the weight's rows, with x rounded to 8 bits row by row.

    ```
    codes, scales = quantize_rows_reference(x)
    y = (codes @ weight.codes.T) * scales[:, None] * weight.scales + bias
    ```

    The product of whole numbers is exact; the rest is in float32 and rounded once to x's dtype. A
    row's result is bitwise the same in any batch. A row that is not finite gives NaN. There is no
    gradient.

    Args:
        x: (..., K) float32, bfloat16 or float16, on the CPU.
        weight: (N, K).
        bias: (N,) of x's dtype.
        backend: see `ragvl.ops.backends`. "cpu" is fast where `slow_products_problem` sees none.

    Returns:
        (..., N) of x's dtype.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or device.
        RuntimeError: a gradient is wanted.
        BackendUnavailableError: the backend requested by name is not available here.

    Source: Dettmers et al., "LLM.int8()", arXiv 2208.07339, section 2.1 (a scale a row and one a
    column).

    Examples:
        >>> weight = Int8Weight.of(torch.tensor([[1.27, -1.27], [0.0, 1.0]]))
        >>> int8_linear(torch.tensor([[1.27, 0.01]]), weight)
        tensor([[1.6002, 0.0100]])
    """
    _check(x, weight, bias)
    name, _ = choose("int8_linear", backend, x.device, x.dtype)
    if name == "reference" or 0 in (*x.shape, *weight.codes.shape):
        return int8_linear_reference(x, weight, bias)
    packed = weight.packed
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = rows.new_empty((len(rows), len(weight.scales)))
    with record_function("ragvl::int8_linear"):  # no operator of torch, and else in no profile
        run_compiled(
            "int8_linear",
            x.device,
            threads=rows.numel() * out.shape[1] // _WORK_PER_THREAD,
            x=rows,
            codes=rows.new_empty(
                (len(rows) + -len(rows) % _TILE_ROWS, packed.padded_dim), dtype=torch.uint8
            ),
            scales=rows.new_empty(len(rows), dtype=torch.float32),
            weight=packed.codes,
            weight_scales=packed.scales,
            offsets=packed.offsets,
            bias=None if bias is None else bias.contiguous(),
            out=out,
            rows=len(rows),
            dim=rows.shape[1],
            padded_dim=packed.padded_dim,
            columns=out.shape[1],
            dtype=x.dtype,
        )
    return out.view(*x.shape[:-1], out.shape[1])


def int8_linear_reference(x: Tensor, weight: Int8Weight, bias: Tensor | None = None) -> Tensor:
    """`int8_linear` in plain PyTorch: what the other backend must equal."""
    codes, scales = quantize_rows_reference(x)
    whole = codes.double() @ weight.codes.double().T  # exact: under 2^53
    y = whole.float() * weight.scales * scales[..., None]
    return (y if bias is None else y + bias.float()).to(x.dtype)


def slow_products_problem() -> str | None:
    """Why products of 8-bit numbers are slow here; None if they are fast."""
    try:
        if compiled().cpu_isa() in _FAST_ISAS:
            return None
    except (BackendUnavailableError, ValueError) as error:  # the latter of RAGVL_CPU_ISA
        return str(error)
    return "this CPU has no AVX-512 VNNI, without which float32 is faster"


def _check(x: Tensor, weight: Int8Weight, bias: Tensor | None) -> None:
    """Everything that can be checked without reading a tensor's values."""
    if not isinstance(weight, Int8Weight):
        raise TypeError(f"weight must be an Int8Weight, got {type(weight).__name__}")
    shape = tuple(x.shape) if isinstance(x, Tensor) else ()
    check_tensor("x", x, shape=shape, dtypes=KERNEL_DTYPES, device=torch.device("cpu"))
    n, k = weight.codes.shape
    if k > _MOST_INPUTS:
        raise ValueError(f"weight must have at most {_MOST_INPUTS} columns, got {k}")
    if shape[-1:] != (k,):
        raise ValueError(f"x must have shape (..., {k}), got {shape}")
    if bias is not None:
        check_tensor("bias", bias, shape=(n,), dtypes=(x.dtype,), device=x.device)
    if torch.is_grad_enabled() and x.requires_grad:
        raise RuntimeError("int8_linear has no gradient: it is for inference")
