"""bfloat16_linear: a product in bfloat16 whose rows do not depend on each other.

A library may add up in another order when a product has more rows. In AMX's tiles torch's products
do: a prompt's score would depend on what is scored beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.profiler import record_function

from ragvl.ops.arguments import check_tensor
from ragvl.ops.backends import Backend, BackendUnavailableError, choose, compiled
from ragvl.ops.compiled import run_compiled

_TILE_ROWS, _TILE_DEPTH = 16, 32  # of what AMX reads at once
_WORK_PER_THREAD = 1 << 21  # under this many products a second thread costs more than it saves


def bfloat16_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: Backend = "auto"
) -> Tensor:
    """`torch.nn.functional.linear` of a CPU in bfloat16.

    ```
    y = x @ weight.T + bias
    ```

    Summed up in float32 and rounded once. A row's result is bitwise the same in any batch. There is
    no gradient. Where the CPU has AMX, numbers below 2^-126 count as zero.

    Args:
        x: (..., K) bfloat16, on the CPU.
        weight: (N, K) bfloat16.
        bias: (N,) bfloat16.
        backend: see `ragvl.ops.backends`. Where the CPU has AMX "cpu" is nearly as fast as torch's
            products, or faster; elsewhere it is slower.

    Returns:
        (..., N) bfloat16.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or device.
        RuntimeError: a gradient is wanted.
        BackendUnavailableError: the backend requested by name is not available here.

    Examples:
        >>> half = torch.tensor([[0.5, 2.0]], dtype=torch.bfloat16)
        >>> bfloat16_linear(half, half)
        tensor([[4.2500]], dtype=torch.bfloat16)
    """
    _check(x, weight, bias)
    name, _ = choose("bfloat16_linear", backend, x.device, x.dtype)
    if name == "reference" or 0 in (*x.shape, *weight.shape):
        return bfloat16_linear_reference(x, weight, bias)
    columns, dim = weight.shape
    rows = x.reshape(-1, dim).contiguous()
    padded_dim = dim + -dim % _TILE_DEPTH
    first_copied = 0 if padded_dim > dim else len(rows) // _TILE_ROWS * _TILE_ROWS
    num_copied = len(rows) + -len(rows) % _TILE_ROWS - first_copied
    out = rows.new_empty((len(rows), columns))
    with record_function("ragvl::bfloat16_linear"):  # no operator of torch, and else in no profile
        run_compiled(
            "bfloat16_linear",
            x.device,
            threads=rows.numel() * columns // _WORK_PER_THREAD,
            x=rows,
            scratch=rows.new_empty((num_copied, padded_dim)),
            weight=weight.contiguous(),
            bias=None if bias is None else bias.contiguous(),
            out=out,
            rows=len(rows),
            dim=dim,
            padded_dim=padded_dim,
            first_copied=first_copied,
            columns=columns,
        )
    return out.view(*x.shape[:-1], columns)


def bfloat16_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`bfloat16_linear` in plain PyTorch: what the other backend must equal, but for rounding."""
    y = (x.double() @ weight.double().T).float()  # products are exact, and 29 bits are spare
    return (y if bias is None else y + bias.float()).to(x.dtype)


def is_fast_here() -> bool:
    """Whether the CPU has AMX, where torch's products mix rows and the compiled kernel is fast."""
    try:
        return compiled().cpu_isa() == "amx"
    except (BackendUnavailableError, ValueError):  # the latter of RAGVL_CPU_ISA
        return False


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Everything that can be checked without reading a tensor's values."""
    kind, cpu = (torch.bfloat16,), torch.device("cpu")
    check_tensor("weight", weight, shape=("N", "K"), dtypes=kind, device=cpu)
    shape = tuple(x.shape) if isinstance(x, Tensor) else ()
    check_tensor("x", x, shape=shape, dtypes=kind, device=cpu)
    n, k = weight.shape
    if shape[-1:] != (k,):
        raise ValueError(f"x must have shape (..., {k}), got {shape}")
    if bias is not None:
        check_tensor("bias", bias, shape=(n,), dtypes=kind, device=cpu)
    if type(weight).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise TypeError(f"weight must hold its own values, and {type(weight).__name__} does not")
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise RuntimeError("bfloat16_linear has no gradient: it is for inference")
