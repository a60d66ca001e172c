"""relevance_head in Triton: one program per prompt; see ragvl/ops/relevance_head.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from ragvl.ops.relevance_head import Arguments


@triton.jit
def _tanh(x):
    # Interpreted Triton has no tanh. Near 0, where 1 - exp(-2x) would cancel, its series.
    a = tl.abs(x)
    square = a * a
    series = -17 / 315 + square * (62 / 2835)
    series = 1 + square * (-1 / 3 + square * (2 / 15 + square * series))
    tail = tl.exp(-2 * a)
    magnitude = tl.where(a < 0.25, a * series, (1 - tail) / (1 + tail))
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def _log_add_exp(a, b):
    # Equal values apart: the difference of two equal infinities is NaN.
    gap = tl.where(a == b, 0.0, tl.abs(a - b))
    return tl.where(a > b, a, b) + tl.log(1 + tl.exp(-gap))


@triton.jit(do_not_specialize=["num_rows"])  # it differs from call to call: no recompilation
def _relevance_head_fwd_kernel(
    hidden,  # [N, D]
    row_stride,  # elements from one row of `hidden` to the next
    last_index,  # [B]
    norm_weight,  # [D] or None
    norm_bias,  # [D] or None
    head_rows,  # [R, D]
    head_bias,  # [R] or None
    logits,  # [B, 2] out
    relevance,  # [B] out
    num_rows,  # N
    dim,  # D
    num_head_rows,  # R
    num_yes,
    eps,
    softcap,  # or None
    NORM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,  # a power of two, at least D
):
    prompt = tl.program_id(0)
    row = tl.load(last_index + prompt).to(tl.int64)
    inside = (row >= 0) & (row < num_rows)
    columns = tl.arange(0, BLOCK_SIZE)
    mask = columns < dim

    # A prompt whose row lies outside `hidden` reads nothing and becomes NaN.
    readable = columns < tl.where(inside, dim, 0)
    x = tl.load(hidden + row * row_stride + columns, readable, other=float("nan"))
    x = tl.where(mask, x.to(tl.float32), 0.0)
    if NORM == "layer":
        x = tl.where(mask, x - tl.sum(x) / dim, 0.0)
    if NORM != "none":
        x = x / tl.sqrt(tl.sum(x * x) / dim + eps)
    if norm_weight is not None:
        x = x * tl.load(norm_weight + columns, mask, other=0.0).to(tl.float32)
    if norm_bias is not None:
        x = x + tl.load(norm_bias + columns, mask, other=0.0).to(tl.float32)

    yes = tl.full((), -float("inf"), tl.float32)
    no = tl.full((), -float("inf"), tl.float32)
    for r in range(num_head_rows):
        head = tl.load(head_rows + r * dim + columns, mask, other=0.0).to(tl.float32)
        logit = tl.sum(x * head)
        if head_bias is not None:
            logit += tl.load(head_bias + r).to(tl.float32)
        if softcap is not None:
            logit = softcap * _tanh(logit / softcap)
        if r < num_yes:
            yes = _log_add_exp(yes, logit)
        else:
            no = _log_add_exp(no, logit)

    tl.store(logits + 2 * prompt, yes)
    tl.store(logits + 2 * prompt + 1, no)
    tail = tl.exp(-tl.abs(yes - no))
    tl.store(relevance + prompt, tl.where(yes < no, tail, 1.0) / (1 + tail))


def relevance_head_fwd(a: Arguments, logits: Tensor, relevance: Tensor) -> None:
    """Launches the kernel on checked arguments; writes `logits` (B, 2) and `relevance` (B,)."""
    batch, (num_rows, dim) = a.last_index.shape[0], a.hidden.shape
    if batch == 0:
        return
    hidden = a.hidden if a.hidden.stride(1) == 1 else a.hidden.contiguous()
    block_size = triton.next_power_of_2(dim)
    _relevance_head_fwd_kernel[(batch,)](
        hidden,
        hidden.stride(0),
        a.last_index.contiguous(),
        None if a.norm_weight is None else a.norm_weight.contiguous(),
        None if a.norm_bias is None else a.norm_bias.contiguous(),
        a.head_rows.contiguous(),
        None if a.head_bias is None else a.head_bias.contiguous(),
        logits,
        relevance,
        num_rows,
        dim,
        a.head_rows.shape[0],
        a.num_yes,
        a.eps,
        a.softcap,
        NORM=a.norm,
        BLOCK_SIZE=block_size,
        num_warps=8 if block_size > 2048 else 4,
    )
