"""residual_rms_norm: a residual connection and the RMS norm behind it, in one pass over the rows.

Between two products of a decoder's layer stand some eight eager operators that do this, each of
which reads and writes every hidden state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ragvl.ops.arguments import check_tensor, inference_only
from ragvl.ops.backends import KERNEL_DTYPES, Backend, choose, on_device
from ragvl.ops.compiled import run_compiled

# Under this many numbers a second thread costs more than it saves.
_WORK_PER_THREAD = 1 << 15


def residual_rms_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    *,
    eps: float = 1e-6,
    offset: float = 0.0,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """X + residual, and its RMS norm.

    ```
    summed = x + residual                                       # x itself where residual is None
    normed = summed / sqrt(mean(summed²) + eps) * (offset + weight)
    ```

    Equivalent to `summed = residual + x; normed = norm(summed)` with an RMS norm module of Hugging
    Face. `summed` is rounded to x's dtype first, as it is there; all else is in float32 (float64
    for float64) and rounded once. NaN in a row gives NaN in that row alone. With every backend but
    the reference a row's result is bitwise the same in any batch. There is no gradient: computing
    one raises RuntimeError; `residual_rms_norm_reference` has one.

    Args:
        x: (..., D) float32, bfloat16, float16 or (reference only) float64; what a block of the
            layer gave.
        residual: x's shape and dtype, what the block was given; or None for the norm alone.
        weight: (D,) of x's dtype.
        eps: added to the mean square inside the root.
        offset: added to the weight: 1 for Gemma's norms, which keep their weight less one.
        backend: "auto" for the fastest that is present, or a name; see `ragvl.ops.backends`.

    Returns:
        summed and normed, both of x's shape and dtype.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or number.
        BackendUnavailableError: the backend requested by name is not available here.

    Source: Zhang and Sennrich, "Root mean square layer normalization", arXiv 1910.07467.

    Examples:
        >>> x, weight = torch.tensor([[1.0, 7.0]]), torch.tensor([1.0, 2.0])
        >>> residual_rms_norm(x, torch.tensor([[2.0, -3.0]]), weight)
        (tensor([[3., 4.]]), tensor([[0.8485, 2.2627]]))
    """
    _check(x, residual, weight, eps)
    summed, normed = _residual_rms_norm(x, residual, weight, eps, offset, backend)
    return (x if residual is None else summed), normed


def residual_rms_norm_reference(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    *,
    eps: float = 1e-6,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`residual_rms_norm` in plain PyTorch, differentiable: what the other backends must equal."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    summed = x if residual is None else x + residual
    wide = summed.to(dtype)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return summed, (normed * (offset + weight.to(dtype))).to(x.dtype)


def _check(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> None:
    """Everything that can be checked without reading a tensor's values."""
    shape = tuple(x.shape) if isinstance(x, Tensor) else ()
    check_tensor("x", x, shape=shape, dtypes=(*KERNEL_DTYPES, torch.float64))
    if not shape or not shape[-1]:
        raise ValueError(f"x must have at least one column, got shape {shape}")
    dtypes = (x.dtype,)
    check_tensor("weight", weight, shape=shape[-1:], dtypes=dtypes, device=x.device)
    if residual is not None:
        check_tensor("residual", residual, shape=shape, dtypes=dtypes, device=x.device)
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, got {eps}")


@torch.library.custom_op("ragvl::residual_rms_norm", mutates_args=())
def _residual_rms_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    offset: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The operation as torch.compile sees it. Without a residual `summed` is empty: no operation
    may return what it was given.
    """
    name, _ = choose("residual_rms_norm", backend, x.device, x.dtype)
    if name == "reference":
        summed, normed = residual_rms_norm_reference(x, residual, weight, eps=eps, offset=offset)
        return (x.new_empty(0) if residual is None else summed.contiguous()), normed.contiguous()
    rows = x.contiguous()
    summed, normed = _empty_outputs(x, residual)
    if residual is not None:
        residual = residual.contiguous()
    with on_device(x.device):
        _KERNELS[name](rows, residual, weight.contiguous(), eps, offset, summed, normed)
    return summed, normed


@_residual_rms_norm.register_fake
def _(x: Tensor, residual: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty_outputs(x, residual)


inference_only("residual_rms_norm", _residual_rms_norm)


def _empty_outputs(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(0 if residual is None else x.shape), x.new_empty(x.shape)


def _compiled(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    offset: float,
    summed: Tensor,
    normed: Tensor,
) -> None:
    """csrc/residual_rms_norm.cpp."""
    dim = x.shape[-1]
    run_compiled(
        "residual_rms_norm",
        x.device,
        threads=x.numel() // _WORK_PER_THREAD,
        x=x,
        residual=residual,
        weight=weight,
        summed=summed,
        normed=normed,
        rows=x.numel() // dim,
        dim=dim,
        eps=eps,
        offset=offset,
        dtype=x.dtype,
    )


def _triton(*arguments: Any) -> None:
    """kernels/residual_rms_norm.py, imported where it is used since Triton is optional."""
    from ragvl.kernels.residual_rms_norm import residual_rms_norm_fwd

    residual_rms_norm_fwd(*arguments)


_KERNELS: dict[str, Callable[..., None]] = {"cpu": _compiled, "triton": _triton}
