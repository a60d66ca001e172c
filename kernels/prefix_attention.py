"""prefix_attention in Triton: one program per candidate, head of the keys and block of queries.

The queries of all heads that share a head of the keys are one list of rows, ordered by token. What
a program sums depends on its own rows alone, and keys that a row does not see add exact zeros: a
row's bits are the same in any batch. See ragvl/ops/prefix_attention.py.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from ragvl.ops import PrefixBatch


@triton.jit
def _attend(
    q,  # [M, D]
    k,  # [D, N]
    v,  # [N, D]
    key_scales,  # [N] or None
    value_scales,  # [N] or None
    seen,  # [M, N]
    scale,  # times log2(e): the powers are of two
    maximum,  # [M], of the scores so far
    total,  # [M], of the powers so far
    out,  # [M, D], not yet divided by the total
):
    scores = tl.dot(q, k, input_precision="ieee") * scale
    if key_scales is not None:
        scores *= key_scales[None, :]
    scores = tl.where(seen, scores, -float("inf"))
    new_maximum = tl.maximum(maximum, tl.max(scores, 1))
    powers = tl.exp2(scores - new_maximum[:, None])
    factor = tl.exp2(maximum - new_maximum)
    total = total * factor + tl.sum(powers, 1)
    if value_scales is not None:
        powers *= value_scales[None, :]
    out = tl.dot(powers.to(v.dtype), v, out * factor[:, None], input_precision="ieee")
    return new_maximum, total, out


@triton.jit
def _unpacked(bytes, shift, scales, minima):  # int4's numbers, of a scale and a minimum; float32
    numbers = (bytes.to(tl.int32) >> shift) & 15
    return numbers.to(tl.float32) * scales.to(tl.float32) + minima.to(tl.float32)


@triton.jit(do_not_specialize=["table_width"])  # it differs from call to call: no recompilation
def _prefix_attention_fwd_kernel(
    q,  # [S, H, D], or [B, H, D] with LAST_ONLY
    q_row_stride,
    q_head_stride,
    k,  # [S, G, D]
    k_row_stride,
    k_head_stride,
    v,  # [S, G, D]
    v_row_stride,
    v_head_stride,
    key_pages,  # [P, G, D, PAGE_SIZE], in int4 half of D
    value_pages,  # [P, G, PAGE_SIZE, D], in int4 half of D
    key_scales,  # [P, G, PAGE_SIZE], in int4 [P, G, D], or None
    value_scales,  # [P, G, PAGE_SIZE] or None
    key_minima,  # [P, G, D] in int4, else None
    value_minima,  # [P, G, PAGE_SIZE] in int4, else None
    page_table,  # [B, table_width]
    table_width,
    prefix_lengths,  # [B]
    suffix_starts,  # [B]
    suffix_lengths,  # [B]
    out,  # as q, contiguous, zeros
    scale,
    sliding_window,  # or None
    KV_HEADS: tl.constexpr,  # G
    GROUP: tl.constexpr,  # H / G
    DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    LAST_ONLY: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,  # in int4 a divisor of PAGE_SIZE
    BLOCK_DIM: tl.constexpr,  # a power of two, at least DIM
):
    candidate = tl.program_id(2)
    kv_head = tl.program_id(1)
    prefix_length = tl.load(prefix_lengths + candidate)
    suffix_start = tl.load(suffix_starts + candidate).to(tl.int64)
    suffix_length = tl.load(suffix_lengths + candidate)

    first_token = suffix_length - 1 if LAST_ONLY else 0
    num_rows = (suffix_length - first_token) * GROUP
    first_row = tl.program_id(0) * BLOCK_ROWS
    if first_row >= num_rows or suffix_length == 0:
        return
    row = first_row + tl.arange(0, BLOCK_ROWS)
    token = first_token + row // GROUP
    own = prefix_length + token
    dim = tl.arange(0, BLOCK_DIM)
    in_dim = dim < DIM
    q_row = candidate.to(tl.int64) if LAST_ONLY else suffix_start + token
    q_head = kv_head * GROUP + row % GROUP
    readable = (row < num_rows)[:, None] & in_dim[None, :]
    q_at = q_row * q_row_stride + q_head * q_head_stride
    q_block = tl.load(q + q_at[:, None] + dim[None, :], readable, other=0.0)

    # Finite, so that a score of -infinity has a distance to it.
    maximum = tl.full((BLOCK_ROWS,), -3.4e38, tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    result = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)

    num_pages = tl.cdiv(prefix_length, PAGE_SIZE)
    # Blocks of keys begin at multiples of their size: one that the window cuts is masked.
    first_seen = 0
    if sliding_window is not None:
        first_seen = tl.maximum(
            prefix_length + first_token + first_row // GROUP + 1 - sliding_window, 0
        )
    for start in range(first_seen // BLOCK_KEYS * BLOCK_KEYS, prefix_length, BLOCK_KEYS):
        key = start + tl.arange(0, BLOCK_KEYS)
        exists = key < prefix_length
        # Keys are read to their page's end: a mask by page leaves vectors of neighbours whole.
        on_page = key // PAGE_SIZE < num_pages
        page = tl.load(page_table + candidate * table_width + key // PAGE_SIZE, on_page, other=0)
        first_key = (page.to(tl.int64) * KV_HEADS + kv_head) * PAGE_SIZE
        slot = key % PAGE_SIZE
        k_scale = None
        v_scale = None
        if key_minima is not None:
            # Dimension i is half of byte i % HALF: lower ones the low half, upper ones the high
            HALF: tl.constexpr = DIM // 2
            byte = (dim % HALF).to(tl.int64)
            shift = tl.where(dim < HALF, 0, 4)
            k_at = (first_key * HALF + slot)[None, :] + (byte * PAGE_SIZE)[:, None]
            v_at = ((first_key + slot) * HALF)[:, None] + byte[None, :]
        else:
            k_at = (first_key * DIM + slot)[None, :] + (dim * PAGE_SIZE)[:, None]
            v_at = ((first_key + slot) * DIM)[:, None] + dim[None, :]
        k_block = tl.load(key_pages + k_at, in_dim[:, None] & on_page[None, :], other=0)
        v_block = tl.load(value_pages + v_at, exists[:, None] & in_dim[None, :], other=0)
        if key_minima is not None:
            first_page = tl.load(page_table + candidate * table_width + start // PAGE_SIZE)
            channel = (first_page.to(tl.int64) * KV_HEADS + kv_head) * DIM + dim
            k_scales = tl.load(key_scales + channel, in_dim, other=0.0)
            k_minima = tl.load(key_minima + channel, in_dim, other=0.0)
            k_block = _unpacked(k_block, shift[:, None], k_scales[:, None], k_minima[:, None])
            v_scales = tl.load(value_scales + first_key + slot, exists, other=0.0)
            v_minima = tl.load(value_minima + first_key + slot, exists, other=0.0)
            v_block = _unpacked(v_block, shift[None, :], v_scales[:, None], v_minima[:, None])
        elif key_scales is not None:
            k_scale = tl.load(key_scales + first_key + slot, exists, other=0.0)
            v_scale = tl.load(value_scales + first_key + slot, exists, other=0.0)
        seen = exists[None, :]
        if sliding_window is not None:
            seen = seen & (key[None, :] > own[:, None] - sliding_window)
        maximum, total, result = _attend(
            q_block,
            k_block.to(q_block.dtype),
            v_block.to(q_block.dtype),
            k_scale,
            v_scale,
            seen,
            scale,
            maximum,
            total,
            result,
        )

    last_row = tl.minimum(first_row + BLOCK_ROWS, num_rows) - 1
    end = first_token + last_row // GROUP + 1
    first_seen = tl.maximum(first_seen - prefix_length, 0)
    for start in range(first_seen // BLOCK_KEYS * BLOCK_KEYS, end, BLOCK_KEYS):
        key = start + tl.arange(0, BLOCK_KEYS)
        exists = key < suffix_length
        k_at = (suffix_start + key) * k_row_stride + kv_head * k_head_stride
        v_at = (suffix_start + key) * v_row_stride + kv_head * v_head_stride
        k_mask = in_dim[:, None] & exists[None, :]
        v_mask = exists[:, None] & in_dim[None, :]
        k_block = tl.load(k + k_at[None, :] + dim[:, None], k_mask, other=0.0)
        v_block = tl.load(v + v_at[:, None] + dim[None, :], v_mask, other=0.0)
        seen = key[None, :] <= token[:, None]
        if sliding_window is not None:
            seen = seen & (key[None, :] > token[:, None] - sliding_window)
        maximum, total, result = _attend(
            q_block, k_block, v_block, None, None, seen, scale, maximum, total, result
        )

    out_at = (q_row * (KV_HEADS * GROUP) + q_head) * DIM
    tl.store(out + out_at[:, None] + dim[None, :], result / total[:, None], readable)


def launch_sizes(
    dtype: torch.dtype,
    dim: int,
    *,
    last_only: bool,
    compressed: bool,
    int4_page: int | None = None,
) -> dict[str, int]:
    """How many rows and keys a program takes at once, with how many warps and stages of loads.

    `int4_page` is how many tokens a page of int4 holds, `compressed` True of such pages, too.

    Nothing that differs from batch to batch counts here: a row's bits would differ, too. What each
    choice compiles to is shown by benchmarks/prefix_attention_code.py.
    """
    num_warps = 4
    if dtype == torch.float32:
        # Without tensor cores: an oracle to compare with, not to be fast
        rows, keys, num_stages = 16, 32 if dim <= 128 else 16, 1
    elif dim > 256:  # of few models; more would not fit into a GPU's shared memory
        rows, keys, num_stages = 16 if last_only else 32, 16, 2
        num_warps = 8
    elif last_only:  # as many rows as heads share one of the keys, sixteen at most as a rule
        rows, keys, num_stages = 16, 64 if dim <= 128 else 32, 3
    else:
        # Hopper's wgmma takes 64 rows; 32 x 64 needs as many registers as 64 x 32, without it
        rows, keys, num_stages = 64, 64 if dim <= 64 else 32, 3
        if dim > 128:
            num_warps, num_stages = 8, 2  # three would not fit into a smaller GPU's shared memory
    if int4_page is not None:  # a block of keys has one scale for each channel: that of its page
        keys = gcd(keys, int4_page)
    # The third stage loads page numbers before the pages. Of int8 pages Triton 3.6 to 3.9 does not
    # compile three where there is no wgmma.
    return {
        "BLOCK_ROWS": rows,
        "BLOCK_KEYS": keys,
        "num_stages": min(2, num_stages) if compressed else num_stages,
        "num_warps": num_warps,
    }


def prefix_attention_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: PrefixBatch,
    scale: float,
    sliding_window: int | None,
    out: Tensor,
) -> None:
    """Launches the kernel on checked arguments; `out` holds zeros where no query writes.

    Elements within a head lie side by side, and the batch's tables are contiguous.
    """
    (batch, table_width), (_, kv_heads, page_size, _) = (
        prefix.page_table.shape,
        prefix.value_pages.shape,
    )
    dim = q.shape[2]
    group = q.shape[1] // kv_heads
    max_rows = group * (1 if prefix.last_only else prefix.max_suffix_length)
    if batch == 0 or max_rows == 0:
        return
    if q.dtype == torch.bfloat16 and not q.is_cuda:
        # Interpreted Triton multiplies bfloat16's bits as integers and truncates what it stores.
        in_float32 = out.float()
        prefix_attention_fwd(
            q.float(), k.float(), v.float(), prefix, scale, sliding_window, in_float32
        )
        out.copy_(in_float32)
        return
    sizes = launch_sizes(
        q.dtype,
        dim,
        last_only=prefix.last_only,
        compressed=prefix.key_scales is not None,
        int4_page=page_size if prefix.key_minima is not None else None,
    )
    grid = triton.cdiv(max_rows, sizes["BLOCK_ROWS"]), kv_heads, batch
    _prefix_attention_fwd_kernel[grid](
        q,
        *q.stride()[:2],
        k,
        *k.stride()[:2],
        v,
        *v.stride()[:2],
        prefix.key_pages,
        prefix.value_pages,
        prefix.key_scales,
        prefix.value_scales,
        prefix.key_minima,
        prefix.value_minima,
        prefix.page_table,
        table_width,
        prefix.prefix_lengths,
        prefix.suffix_starts,
        prefix.suffix_lengths,
        out,
        scale * 1.4426950408889634,  # log2(e)
        sliding_window,
        KV_HEADS=kv_heads,
        GROUP=group,
        DIM=dim,
        PAGE_SIZE=page_size,
        LAST_ONLY=prefix.last_only,
        BLOCK_DIM=max(16, triton.next_power_of_2(dim)),
        **sizes,
    )
