"""The softmax of visual_weighted_cross_entropy in Triton: one program per labelled row."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _weighted_softmax_fwd_kernel(
    logits,  # [N, V] float32; becomes the gradient where NEEDS_SLOPES
    row_stride,
    label,  # [N]
    weights,  # [N]
    losses,  # [N] out: weight times cross-entropy
    vocabulary,  # V
    NEEDS_SLOPES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    own = tl.load(label + row)
    weight = tl.load(weights + row)
    columns = tl.arange(0, BLOCK_SIZE)

    # Each lane keeps its own maximum and sum: one reduction at the end instead of one a block
    maximum = tl.full((BLOCK_SIZE,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_SIZE,), tl.float32)
    for start in range(0, vocabulary, BLOCK_SIZE):
        z = tl.load(logits + start + columns, start + columns < vocabulary, other=-float("inf"))
        new = tl.maximum(maximum, z, propagate_nan=tl.PropagateNan.ALL)
        # A lane that has seen nothing, or -infinity alone, has no distance to measure
        base = tl.where(new == -float("inf"), 0.0, new)
        total = total * tl.exp(maximum - base) + tl.exp(z - base)
        maximum = new
    highest = tl.max(maximum, 0)
    base = tl.where(maximum == -float("inf"), highest, maximum)
    log_sum = highest + tl.log(tl.sum(total * tl.exp(base - highest), 0))

    tl.store(losses + row, weight * (log_sum - tl.load(logits + own)))
    if NEEDS_SLOPES:
        for start in range(0, vocabulary, BLOCK_SIZE):
            inside = start + columns < vocabulary
            z = tl.load(logits + start + columns, inside, other=0.0)
            slope = tl.exp(z - log_sum) - tl.where(start + columns == own, 1.0, 0.0)
            tl.store(logits + start + columns, weight * slope, inside)


def weighted_softmax_fwd(
    logits: Tensor, label: Tensor, weights: Tensor, losses: Tensor, needs_slopes: bool
) -> None:
    """Writes `losses` (N,), and the gradient in the place of `logits` (N, V) if it is needed."""
    num_rows, vocabulary = logits.shape
    if num_rows == 0:
        return
    block_size = min(4096, triton.next_power_of_2(vocabulary))
    _weighted_softmax_fwd_kernel[(num_rows,)](
        logits,
        logits.stride(0),
        label.contiguous(),
        weights.contiguous(),
        losses,
        vocabulary,
        NEEDS_SLOPES=needs_slopes,
        BLOCK_SIZE=block_size,
        num_warps=8,
    )
