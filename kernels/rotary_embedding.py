"""rotary_embedding in Triton: a program for each position; see ragvl/ops/rotary_embedding.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rotate(
    x,  # the position's [HEADS, D], head_stride from one head to the next
    head_stride,
    out,  # [HEADS, D], contiguous
    cos,  # [HALF] of the first half, and of the second
    cos_2,
    sin,
    sin_2,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,  # powers of two, at least HEADS and HALF
    BLOCK_HALF: tl.constexpr,
):
    head = tl.arange(0, BLOCK_HEADS)
    column = tl.arange(0, BLOCK_HALF)
    inside = (head < HEADS)[:, None] & (column < HALF)[None, :]
    at = head.to(tl.int64)[:, None] * head_stride + column[None, :]
    first = tl.load(x + at, inside, other=0.0).to(tl.float32)
    second = tl.load(x + at + HALF, inside, other=0.0).to(tl.float32)
    out_at = head[:, None] * (2 * HALF) + column[None, :]
    tl.store(out + out_at, first * cos - second * sin, inside)
    tl.store(out + out_at + HALF, second * cos_2 + first * sin_2, inside)


@triton.jit(do_not_specialize=["length"])  # it differs from call to call: no recompilation
def _rotary_embedding_fwd_kernel(
    q,  # [B, H, T, D]
    q_item_stride,
    q_head_stride,
    q_token_stride,
    k,  # [B, G, T, D]
    k_item_stride,
    k_head_stride,
    k_token_stride,
    cos,  # [B, T, D], a token's elements and its neighbours' side by side
    sin,
    angle_stride,  # of cos and sin, from item to item; 0 if it is one
    q_out,  # [B, T, H, D], contiguous
    k_out,  # [B, T, G, D], contiguous
    length,  # T
    HEADS: tl.constexpr,  # H
    KV_HEADS: tl.constexpr,  # G
    HALF: tl.constexpr,  # D / 2
    BLOCK_HEADS: tl.constexpr,
    BLOCK_KV_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    item = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK_HALF)
    inside = column < HALF
    angle = item * angle_stride + token * (2 * HALF) + column
    cos_1 = tl.load(cos + angle, inside, other=0.0).to(tl.float32)[None, :]
    cos_2 = tl.load(cos + angle + HALF, inside, other=0.0).to(tl.float32)[None, :]
    sin_1 = tl.load(sin + angle, inside, other=0.0).to(tl.float32)[None, :]
    sin_2 = tl.load(sin + angle + HALF, inside, other=0.0).to(tl.float32)[None, :]
    position = item * length + token
    _rotate(
        q + item * q_item_stride + token * q_token_stride,
        q_head_stride,
        q_out + position * (HEADS * 2 * HALF),
        cos_1,
        cos_2,
        sin_1,
        sin_2,
        HEADS,
        HALF,
        BLOCK_HEADS,
        BLOCK_HALF,
    )
    _rotate(
        k + item * k_item_stride + token * k_token_stride,
        k_head_stride,
        k_out + position * (KV_HEADS * 2 * HALF),
        cos_1,
        cos_2,
        sin_1,
        sin_2,
        KV_HEADS,
        HALF,
        BLOCK_KV_HEADS,
        BLOCK_HALF,
    )


def rotary_embedding_fwd(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, q_out: Tensor, k_out: Tensor
) -> None:
    """Launches the kernel on checked arguments; writes `q_out` and `k_out`.

    Elements within a head lie side by side, as do cos and sin within an item.
    """
    batch, heads, length, dim = q.shape
    if batch == 0 or length == 0:
        return
    _rotary_embedding_fwd_kernel[(length, batch)](
        q,
        *q.stride()[:3],
        k,
        *k.stride()[:3],
        cos,
        sin,
        cos.stride(0),
        q_out,
        k_out,
        length,
        HEADS=heads,
        KV_HEADS=k.shape[1],
        HALF=dim // 2,
        BLOCK_HEADS=triton.next_power_of_2(heads),
        BLOCK_KV_HEADS=triton.next_power_of_2(k.shape[1]),
        BLOCK_HALF=triton.next_power_of_2(dim // 2),
    )
