"""prefix_write in Triton: one program per page, head and prefix; see ragvl/ops/prefix_write.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _compressed(x):  # [S, D], to int8 numbers [S, D] and scales [S]
    x = x.to(tl.float32)
    scales = tl.div_rn(tl.max(tl.abs(x), 1), tl.full((x.shape[0],), 127.0, tl.float32))
    # A maximum loses NaN
    scales = tl.where(tl.max((x != x).to(tl.int32), 1) > 0, float("nan"), scales)
    divisor = tl.maximum(scales, 1.1754943508222875e-38)  # the least normal number
    number = tl.div_rn(x, tl.broadcast_to(divisor[:, None], x.shape))
    # The nearest integer, of two as near the even one: adding 1.5 * 2^23 leaves it in the low bits
    return (number + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8), scales


# What differs from call to call must not cost a recompilation
@triton.jit(
    do_not_specialize=["table_width"],
    do_not_specialize_on_alignment=["page_table", "prefix_lengths"],
)
def _prefix_write_fwd_kernel(
    k,  # [B, G, T, D]
    k_batch_stride,
    k_head_stride,
    k_token_stride,
    v,  # [B, G, T, D]
    v_batch_stride,
    v_head_stride,
    v_token_stride,
    key_pages,  # [P, G, D, PAGE_SIZE]
    value_pages,  # [P, G, PAGE_SIZE, D]
    key_scales,  # [P, G, PAGE_SIZE] or None
    value_scales,  # [P, G, PAGE_SIZE] or None
    page_table,  # [B, table_width]
    table_width,
    prefix_lengths,  # [B]
    KV_HEADS: tl.constexpr,  # G
    DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,  # divides PAGE_SIZE
    BLOCK_DIM: tl.constexpr,  # a power of two, at least DIM
):
    first = tl.program_id(0) * BLOCK_TOKENS
    head = tl.program_id(1).to(tl.int64)
    prefix = tl.program_id(2).to(tl.int64)
    length = tl.load(prefix_lengths + prefix)
    # To the end of the last page
    if first >= tl.cdiv(length, PAGE_SIZE) * PAGE_SIZE:
        return
    page = tl.load(page_table + prefix * table_width + first // PAGE_SIZE)
    page_head = page.to(tl.int64) * KV_HEADS + head
    token = first + tl.arange(0, BLOCK_TOKENS)
    dim = tl.arange(0, BLOCK_DIM)
    in_dim = (dim < DIM)[None, :]
    there = (token < length)[:, None] & in_dim
    slot_in_page = token % PAGE_SIZE
    slot = page_head * PAGE_SIZE + slot_in_page
    token = token.to(tl.int64)[:, None]
    k_at = prefix * k_batch_stride + head * k_head_stride + token * k_token_stride
    v_at = prefix * v_batch_stride + head * v_head_stride + token * v_token_stride
    keys = tl.load(k + k_at + dim[None, :], there, other=0.0)
    values = tl.load(v + v_at + dim[None, :], there, other=0.0)
    if key_scales is not None:
        keys, scales = _compressed(keys)
        tl.store(key_scales + slot, scales)
        values, scales = _compressed(values)
        tl.store(value_scales + slot, scales)
    # Keys are transposed, so that neighbouring threads write neighbouring tokens
    key_at = page_head * (DIM * PAGE_SIZE) + dim[:, None] * PAGE_SIZE + slot_in_page[None, :]
    tl.store(
        key_pages + key_at, tl.trans(keys), tl.broadcast_to((dim < DIM)[:, None], key_at.shape)
    )
    value_at = slot[:, None] * DIM + dim[None, :]
    tl.store(value_pages + value_at, values, tl.broadcast_to(in_dim, value_at.shape))


def prefix_write_fwd(
    k: Tensor,
    v: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    prefix_lengths: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
) -> None:
    """Launches the kernel on checked arguments.

    Elements within a head lie side by side, and the tables are contiguous.
    """
    batch, kv_heads, _, dim = k.shape
    page_size, table_width = value_pages.shape[2], page_table.shape[1]
    if batch == 0 or table_width == 0:
        return
    if k.dtype == torch.bfloat16 and not k.is_cuda and key_scales is not None:
        k, v = k.float(), v.float()  # interpreted Triton takes bfloat16's bits for integers
    block_tokens = 16  # a page has a multiple of so many
    grid = table_width * page_size // block_tokens, kv_heads, batch
    _prefix_write_fwd_kernel[grid](
        k,
        *k.stride()[:3],
        v,
        *v.stride()[:3],
        key_pages,
        value_pages,
        key_scales,
        value_scales,
        page_table,
        table_width,
        prefix_lengths,
        KV_HEADS=kv_heads,
        DIM=dim,
        PAGE_SIZE=page_size,
        BLOCK_TOKENS=block_tokens,
        BLOCK_DIM=max(16, triton.next_power_of_2(dim)),
    )
