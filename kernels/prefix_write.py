"""prefix_write in Triton: one program per page, head and prefix; see ragvl/ops/prefix_write.py.

Of pages in int4 a program takes a whole page, whose keys have their scales and minima in common; of
others 16 tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _compressed(x):  # [S, D], to int8 numbers [S, D] and scales [S]
    x = x.to(tl.float32)
    scales = tl.div_rn(tl.max(tl.abs(x), 1), tl.full((x.shape[0],), 127.0, tl.float32))
    scales = tl.where(_has_nan(x, 1), float("nan"), scales)
    divisor = tl.maximum(scales, 1.1754943508222875e-38)  # the least normal number
    number = tl.div_rn(x, tl.broadcast_to(divisor[:, None], x.shape))
    return _nearest(number).to(tl.int8), scales


@triton.jit
def _nearest(x):
    # The nearest integer, of two as near the even one: adding 1.5 * 2^23 leaves it in the low bits
    return (x + 12582912.0).to(tl.int32, bitcast=True)


@triton.jit
def _steps(least, largest, nan):  # where int4's 15 steps begin, and how large they are; float16
    # + 0: of two zeros the one without a sign, whichever comes first
    least += 0.0
    width = (largest + 0.0) - least
    scale = tl.div_rn(width, tl.full(width.shape, 15.0, tl.float32))
    minimum = tl.where(nan, float("nan"), least).to(tl.float16)
    return minimum, tl.where(nan, float("nan"), scale).to(tl.float16)


@triton.jit
def _numbers(x, minimum, scale):  # of int4; minimum and scale are broadcast to x's shape
    divisor = tl.maximum(scale.to(tl.float32), 1.1754943508222875e-38)  # the least normal number
    number = tl.div_rn(x - minimum.to(tl.float32), divisor)
    return _nearest(tl.minimum(tl.maximum(number, 0.0), 15.0)) & 15


@triton.jit
def _has_nan(x, axis: tl.constexpr):
    return tl.max((x != x).to(tl.int32), axis) > 0  # which a maximum of x loses


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


@triton.jit
def _load_half(x, token, length, dim, HALF: tl.constexpr, token_stride):  # [tokens, BLOCK_HALF]
    there = (token < length)[:, None] & (dim < HALF)[None, :]
    at = token.to(tl.int64)[:, None] * token_stride + dim[None, :]
    return tl.load(x + at, there, other=0.0).to(tl.float32)


@triton.jit
def _channel_steps(  # of half the channels of a page: [BLOCK_HALF] float16, twice
    x,
    first,
    length,
    token_stride,
    HALF: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    dim = tl.arange(0, BLOCK_HALF)
    least = tl.full((BLOCK_HALF,), float("inf"), tl.float32)
    largest = tl.full((BLOCK_HALF,), -float("inf"), tl.float32)
    nan = tl.zeros((BLOCK_HALF,), tl.int1)
    for start in range(first, first + PAGE_SIZE, BLOCK_TOKENS):
        token = start + tl.arange(0, BLOCK_TOKENS)
        there = (token < length)[:, None]
        part = _load_half(x, token, length, dim, HALF, token_stride)
        least = tl.minimum(least, tl.min(tl.where(there, part, float("inf")), 0))
        largest = tl.maximum(largest, tl.max(tl.where(there, part, -float("inf")), 0))
        nan |= _has_nan(part, 0)
    return _steps(least, largest, nan)


@triton.jit(
    do_not_specialize=["table_width"],
    do_not_specialize_on_alignment=["page_table", "prefix_lengths"],
)
def _prefix_write_int4_fwd_kernel(
    k,  # [B, G, T, D]
    k_batch_stride,
    k_head_stride,
    k_token_stride,
    v,  # [B, G, T, D]
    v_batch_stride,
    v_head_stride,
    v_token_stride,
    key_pages,  # [P, G, HALF, PAGE_SIZE]
    value_pages,  # [P, G, PAGE_SIZE, HALF]
    key_scales,  # [P, G, D]
    value_scales,  # [P, G, PAGE_SIZE]
    key_minima,  # [P, G, D]
    value_minima,  # [P, G, PAGE_SIZE]
    page_table,  # [B, table_width]
    table_width,
    prefix_lengths,  # [B]
    KV_HEADS: tl.constexpr,  # G
    HALF: tl.constexpr,  # D / 2
    PAGE_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,  # divides PAGE_SIZE
    BLOCK_HALF: tl.constexpr,  # a power of two, at least HALF
):
    place = tl.program_id(0)
    first = place * PAGE_SIZE
    head = tl.program_id(1).to(tl.int64)
    prefix = tl.program_id(2).to(tl.int64)
    length = tl.load(prefix_lengths + prefix)
    if first >= length:
        return
    page = tl.load(page_table + prefix * table_width + place)
    page_head = page.to(tl.int64) * KV_HEADS + head
    dim = tl.arange(0, BLOCK_HALF)
    in_half = dim < HALF
    low_keys = k + prefix * k_batch_stride + head * k_head_stride
    high_keys = low_keys + HALF
    low_minimum, low_scale = _channel_steps(
        low_keys, first, length, k_token_stride, HALF, PAGE_SIZE, BLOCK_TOKENS, BLOCK_HALF
    )
    high_minimum, high_scale = _channel_steps(
        high_keys, first, length, k_token_stride, HALF, PAGE_SIZE, BLOCK_TOKENS, BLOCK_HALF
    )
    channel = page_head * (2 * HALF) + dim
    tl.store(key_minima + channel, low_minimum, in_half)
    tl.store(key_scales + channel, low_scale, in_half)
    tl.store(key_minima + channel + HALF, high_minimum, in_half)
    tl.store(key_scales + channel + HALF, high_scale, in_half)

    low_values = v + prefix * v_batch_stride + head * v_head_stride
    high_values = low_values + HALF
    for start in range(first, first + PAGE_SIZE, BLOCK_TOKENS):
        token = start + tl.arange(0, BLOCK_TOKENS)
        slot_in_page = token % PAGE_SIZE
        slot = page_head * PAGE_SIZE + slot_in_page
        there = (token < length)[:, None]
        low = _load_half(low_keys, token, length, dim, HALF, k_token_stride)
        high = _load_half(high_keys, token, length, dim, HALF, k_token_stride)
        low = _numbers(low, low_minimum[None, :], low_scale[None, :])
        high = _numbers(high, high_minimum[None, :], high_scale[None, :])
        keys = tl.where(there, low | (high << 4), 0).to(tl.uint8)
        # Keys are transposed, so that neighbouring threads write neighbouring tokens
        key_at = page_head * (HALF * PAGE_SIZE) + dim[:, None] * PAGE_SIZE + slot_in_page[None, :]
        tl.store(
            key_pages + key_at, tl.trans(keys), tl.broadcast_to(in_half[:, None], key_at.shape)
        )
        low = _load_half(low_values, token, length, dim, HALF, v_token_stride)
        high = _load_half(high_values, token, length, dim, HALF, v_token_stride)
        real = there & in_half[None, :]
        least = tl.min(tl.where(real, tl.minimum(low, high), float("inf")), 1)
        largest = tl.max(tl.where(real, tl.maximum(low, high), -float("inf")), 1)
        is_there = token < length
        minimum, scale = _steps(
            tl.where(is_there, least, 0.0),
            tl.where(is_there, largest, 0.0),
            _has_nan(low, 1) | _has_nan(high, 1),
        )
        tl.store(value_minima + slot, minimum)
        tl.store(value_scales + slot, scale)
        low = _numbers(low, minimum[:, None], scale[:, None])
        high = _numbers(high, minimum[:, None], scale[:, None])
        values = tl.where(there, low | (high << 4), 0).to(tl.uint8)
        value_at = slot[:, None] * HALF + dim[None, :]
        tl.store(value_pages + value_at, values, tl.broadcast_to(in_half[None, :], value_at.shape))


def prefix_write_fwd(
    k: Tensor,
    v: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    prefix_lengths: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    key_minima: Tensor | None,
    value_minima: Tensor | None,
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
    inputs = k, *k.stride()[:3], v, *v.stride()[:3]
    table = page_table, table_width, prefix_lengths
    if key_minima is not None:
        _prefix_write_int4_fwd_kernel[table_width, kv_heads, batch](
            *inputs,
            *(key_pages, value_pages, key_scales, value_scales, key_minima, value_minima),
            *table,
            KV_HEADS=kv_heads,
            HALF=dim // 2,
            PAGE_SIZE=page_size,
            BLOCK_TOKENS=block_tokens,
            BLOCK_HALF=max(16, triton.next_power_of_2(dim // 2)),
        )
        return
    grid = table_width * page_size // block_tokens, kv_heads, batch
    _prefix_write_fwd_kernel[grid](
        *inputs,
        *(key_pages, value_pages, key_scales, value_scales),
        *table,
        KV_HEADS=kv_heads,
        DIM=dim,
        PAGE_SIZE=page_size,
        BLOCK_TOKENS=block_tokens,
        BLOCK_DIM=max(16, triton.next_power_of_2(dim)),
    )
