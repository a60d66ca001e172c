"""residual_rms_norm in Triton: a program for each few rows; see ragvl/ops/residual_rms_norm.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 2048  # of a program, where rows are short


@triton.jit(do_not_specialize=["num_rows"])  # it differs from call to call: no recompilation
def _residual_rms_norm_fwd_kernel(
    x,  # [N, D], contiguous as all
    residual,  # [N, D] or None
    weight,  # [D]
    summed,  # [N, D] out, where there is a residual
    normed,  # [N, D] out
    num_rows,  # N
    dim,  # D
    eps,
    offset,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,  # a power of two, at least D
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_SIZE)
    inside = (row < num_rows)[:, None] & (column < dim)[None, :]
    at = row[:, None] * dim + column[None, :]

    total = tl.load(x + at, inside, other=0.0)
    if residual is not None:
        total = (total.to(tl.float32) + tl.load(residual + at, inside, other=0.0)).to(total.dtype)
        tl.store(summed + at, total, inside)
    total = total.to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(total * total, 1) / dim + eps)
    gain = offset + tl.load(weight + column, column < dim, other=0.0).to(tl.float32)
    tl.store(normed + at, total * scale[:, None] * gain[None, :], inside)


def residual_rms_norm_fwd(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    offset: float,
    summed: Tensor,
    normed: Tensor,
) -> None:
    """Launches the kernel on checked, contiguous arguments; writes `summed` and `normed`."""
    dim = x.shape[-1]
    num_rows = x.numel() // dim
    if num_rows == 0:
        return
    # How a row is added up depends on D alone: its bits are the same in any batch
    block_size = triton.next_power_of_2(dim)
    block_rows = max(1, _ELEMENTS // block_size)
    _residual_rms_norm_fwd_kernel[(triton.cdiv(num_rows, block_rows),)](
        x,
        residual,
        weight,
        summed,
        normed,
        num_rows,
        dim,
        eps,
        offset,
        BLOCK_ROWS=block_rows,
        BLOCK_SIZE=block_size,
        num_warps=4 if block_size <= 2048 else 8,
    )
