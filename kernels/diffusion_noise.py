"""diffusion_noise in Triton: a block of counters a program; see ragvl/ops/diffusion_noise.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _philox(key0, key1, counter):
    c0 = (counter & 0xFFFFFFFF).to(tl.uint32)
    c1 = (counter >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0)
    c3 = tl.zeros_like(c0)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1 = high1 ^ c1 ^ key0, low1
        c2, c3 = high0 ^ c3 ^ key1, low0
        key0 += 0x9E3779B9
        key1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _box_muller(word0, word1):
    a = ((word0 >> 8) + 1).to(tl.float32) * (1.0 / 16777216.0)
    angle = (word1 >> 8).to(tl.float32) * (6.283185307179586 / 16777216.0)
    radius = tl.sqrt(-2.0 * tl.log(a))
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit(do_not_specialize=["key0", "key1"])  # they differ from call to call: no recompilation
def _diffusion_noise_fwd_kernel(
    x,  # [size]
    rows,  # [size / dim] or None
    noise,  # [size] or None
    signal,  # [size / item_size]
    scale,  # [size / item_size]
    out,  # [size]
    size,
    dim,
    item_size,
    key0,
    key1,
    BLOCK_COUNTERS: tl.constexpr,
):
    first_counter = tl.program_id(0).to(tl.int64) * BLOCK_COUNTERS
    elements = 4 * first_counter + tl.arange(0, 4 * BLOCK_COUNTERS)
    inside = elements < size
    value = tl.load(x + elements, inside, other=0.0)
    if noise is None:
        words = _philox(
            key0.to(tl.uint32, bitcast=True),
            key1.to(tl.uint32, bitcast=True),
            first_counter + tl.arange(0, BLOCK_COUNTERS),
        )
        n0, n1 = _box_muller(words[0], words[1])
        n2, n3 = _box_muller(words[2], words[3])
        normals = tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))
    else:
        normals = tl.load(noise + elements, inside, other=0.0).to(tl.float32)
    item = elements // item_size
    noised = tl.load(signal + item, inside, other=0.0) * value.to(tl.float32)
    noised += tl.load(scale + item, inside, other=0.0) * normals
    noised = noised.to(value.dtype)
    if rows is not None:
        marked = tl.load(rows + elements // dim, inside, other=0) != 0
        noised = tl.where(marked, noised, value)
    tl.store(out + elements, noised, inside)


def diffusion_noise_fwd(
    x: Tensor,
    rows: Tensor | None,
    signal: Tensor,
    scale: Tensor,
    seed: int,
    noise: Tensor | None,
    out: Tensor,
) -> None:
    """Launches the kernel on checked arguments, `x` contiguous; writes `out`."""
    size = x.numel()
    if size == 0:
        return
    block_counters = 256
    _diffusion_noise_fwd_kernel[(triton.cdiv(size, 4 * block_counters),)](
        x,
        None if rows is None else rows.contiguous().view(torch.uint8),
        None if noise is None else noise.contiguous(),
        signal.contiguous(),
        scale.contiguous(),
        out,
        size,
        max(1, x.shape[-1]),
        max(1, size // signal.shape[0]),
        _int32(seed),
        _int32(seed >> 32),
        BLOCK_COUNTERS=block_counters,
    )


def _int32(bits: int) -> int:
    """The low 32 bits as a signed number: Triton would give other sizes other types."""
    return (bits + 2**31) % 2**32 - 2**31
