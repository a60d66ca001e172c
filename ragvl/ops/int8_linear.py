"""int8_linear: a product with 8-bit weights, whose inputs are rounded to 8 bits row by row.

A CPU with VNNI multiplies 8-bit whole numbers about four times as fast as float32. Sums of whole
numbers are exact in any order, so that a row's result does not depend on the rows beside it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ragvl.ops.arguments import check_tensor
from ragvl.ops.backends import KERNEL_DTYPES, Backend, BackendUnavailableError, choose
from ragvl.ops.compiled import run_compiled

_LARGEST = 127  # of the numbers that weights and inputs are rounded to
_ZERO = 128  # stands for zero in the rows that oneDNN multiplies
_WORK_PER_THREAD = 1 << 15  # under this many numbers a second thread costs more than it saves


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
    def zero_points(self) -> Tensor:
        """What stands for zero in each row: 0, as oneDNN wants to be told."""
        return torch.zeros(len(self.scales), dtype=torch.int32)

    @functools.cached_property
    def packed(self) -> Tensor:
        """The codes as oneDNN multiplies them, made when first needed."""
        return torch.ops.onednn.qlinear_prepack(self.codes, None)


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
        backend: "cpu" is a kernel for x and oneDNN's product; see `ragvl.ops.backends`.

    Returns:
        (..., N) of x's dtype.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or device.
        RuntimeError: a gradient is wanted.
        BackendUnavailableError: the backend requested by name is not available here.

    Source: Dettmers et al., "LLM.int8()", arXiv 2208.07339, section 2.1 (a scale a row and one a
    column); oneDNN, "Quantization".

    Examples:
        >>> weight = Int8Weight.of(torch.tensor([[1.27, -1.27], [0.0, 1.0]]))
        >>> int8_linear(torch.tensor([[1.27, 0.01]]), weight)
        tensor([[1.6002, 0.0100]])
    """
    _check(x, weight, bias)
    name, _ = choose("int8_linear", backend, x.device, x.dtype)
    if name == "cpu" and (problem := exact_products_problem()) is not None:
        if backend != "auto":
            raise BackendUnavailableError(f"int8_linear: backend={backend!r}: {problem}")
        name = "reference"
    if name == "reference":
        return int8_linear_reference(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    codes = torch.empty(rows.shape, dtype=torch.uint8)
    scales = torch.empty((len(rows), 1))
    run_compiled(
        "int8_linear",
        x.device,
        threads=rows.numel() // _WORK_PER_THREAD,
        x=rows,
        codes=codes,
        scales=scales,
        rows=rows.shape[0],
        dim=rows.shape[1],
        dtype=rows.dtype,
    )
    y = _scaled(_product(codes, weight), scales, bias)
    return y.to(x.dtype).view(*x.shape[:-1], len(weight.scales))


def int8_linear_reference(x: Tensor, weight: Int8Weight, bias: Tensor | None = None) -> Tensor:
    """`int8_linear` in plain PyTorch: what the other backend must equal."""
    codes, scales = quantize_rows_reference(x)
    whole = codes.double() @ weight.codes.double().T  # exact: under 2^53
    return _scaled(whole.float() * weight.scales, scales[..., None], bias).to(x.dtype)


@functools.cache
def exact_products_problem() -> str | None:
    """Why oneDNN's products of 8-bit numbers are not exact here; None if they are.

    Without VNNI pairs of products are added up in 16 bits, which are too few for the largest.
    """
    codes = torch.full((2, 64), 255, dtype=torch.uint8)
    weight = Int8Weight(torch.full((16, 64), _LARGEST, dtype=torch.int8), torch.ones(16))
    try:
        y = _product(codes, weight)
    except (RuntimeError, AttributeError) as error:
        return f"torch's oneDNN has no product of 8-bit numbers: {error}"
    if bool((y == 64 * (255 - _ZERO) * _LARGEST).all()):
        return None
    return "this CPU adds up products of 8-bit numbers in too few bits: it has no VNNI"


def _scaled(y: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Y times its rows' scales, and the bias; y is written to."""
    return y.mul_(scales) if bias is None else torch.addcmul(bias.float(), y, scales)


def _product(codes: Tensor, weight: Int8Weight) -> Tensor:
    """(M, N) float32: codes (M, K), less 128, times the weight."""
    return torch.ops.onednn.qlinear_pointwise(
        codes,
        _one(),
        _zero_point(),
        weight.packed,
        weight.scales,
        weight.zero_points,
        None,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )


def _check(x: Tensor, weight: Int8Weight, bias: Tensor | None) -> None:
    """Everything that can be checked without reading a tensor's values."""
    if not isinstance(weight, Int8Weight):
        raise TypeError(f"weight must be an Int8Weight, got {type(weight).__name__}")
    shape = tuple(x.shape) if isinstance(x, Tensor) else ()
    check_tensor("x", x, shape=shape, dtypes=KERNEL_DTYPES, device=torch.device("cpu"))
    n, k = weight.codes.shape
    if shape[-1:] != (k,):
        raise ValueError(f"x must have shape (..., {k}), got {shape}")
    if bias is not None:
        check_tensor("bias", bias, shape=(n,), dtypes=(x.dtype,), device=x.device)
    if torch.is_grad_enabled() and x.requires_grad:
        raise RuntimeError("int8_linear has no gradient: it is for inference")


@functools.cache
def _one() -> Tensor:
    return torch.ones(1)


@functools.cache
def _zero_point() -> Tensor:
    return torch.tensor([_ZERO], dtype=torch.int32)
