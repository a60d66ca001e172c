"""visual_weighted_cross_entropy: a token counts as much as its prediction needs the picture.

The loss of noise-injected training. The clean branch's cross-entropy at each labelled position is
weighted by how far the label's logit falls when the picture is noised. Neither branch's logits over
the vocabulary are held: labelled rows go through the head in chunks, and of the noisy branch one
logit a position is needed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ragvl.ops.arguments import check_tensor
from ragvl.ops.backends import KERNEL_DTYPES, Backend, choose, on_device

# Bytes of a chunk's float32 logits. On a CPU as much as stays in its caches.
_CHUNK_BYTES = {"cpu": 1 << 24, "cuda": 1 << 28}


def visual_weighted_cross_entropy(
    hidden: Tensor,
    hidden_noisy: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    *,
    head_bias: Tensor | None = None,
    clamp: tuple[float, float] = (1.0, 5.0),
    window: int = 3,
    ignore_index: int = -100,
    backend: Backend = "auto",
) -> Tensor:
    """sum_i w_i CE_i / sum_i w_i over the labelled positions i, w_i from a noised picture.

    ```
    z, z~ = head_weight @ h + head_bias, head_weight @ h~ + head_bias
    gap_i = clamp(z_i[y_i] - z~_i[y_i], *clamp)                  # y_i: the label
    w_i   = mean of gap over the labelled positions i - window // 2 ... i + window // 2
    CE_i  = logsumexp(z_i) - z_i[y_i]
    ```

    Neighbours are counted in the list of labelled positions of the same sequence; at its ends there
    are fewer, and the mean is over those there are. The weights are constants to the gradient.

    Equivalent to `(w * F.cross_entropy(lm_head(hidden), labels, reduction="none")).sum() /
    w.sum()`. Sums are in float32 (float64 for float64). No labelled position: the loss is 0, and so
    are the gradients. NaN in a labelled row of `hidden` or `hidden_noisy` gives a loss of NaN. The
    gradients are computed in the forward pass and scaled in the backward pass, in place: a graph
    can be gone through once, and not differentiated twice (the reference can).

    Args:
        hidden: (B, T, D) float32, bfloat16, float16 or (reference only) float64, the decoder's
            output after its final norm.
        hidden_noisy: (B, T, D) of `hidden`'s dtype, the same of the noised branch. No gradient
            reaches it.
        head_weight: (V, D) of `hidden`'s dtype. Where it needs no gradient, as under LoRA, none is
            computed.
        labels: (B, T) int64, already shifted: `labels[b, t]` is the target of `hidden[b, t]`.
        head_bias: (V,) of `hidden`'s dtype, or None.
        clamp: the least and the largest gap.
        window: how many positions a weight is averaged over; odd.
        ignore_index: the label of positions that do not count.
        backend: "auto" for the fastest that is present, or a name; see `ragvl.ops.backends`.

    Returns:
        The loss, () float32 (float64 for float64).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or number; a label that is not in the vocabulary.
        RuntimeError: a CUDA graph is being captured: it would hold one batch's count of labels.
        BackendUnavailableError: the backend named is not available here.

    Source: RagVL, arXiv 2407.21439, equation 5; CAL, arXiv 2405.17871, whose label's column is
    taken here and column 0 in RagVL's release.

    Examples:
        >>> h, head = torch.eye(2)[None], torch.eye(2)
        >>> visual_weighted_cross_entropy(h, torch.zeros(1, 2, 2), head, torch.tensor([[0, -100]]))
        tensor(0.3133)
    """
    _check(hidden, hidden_noisy, head_weight, labels, head_bias, clamp, window, ignore_index)
    tensors = (hidden, hidden_noisy, head_weight, labels)
    name, _ = choose("visual_weighted_cross_entropy", backend, hidden.device, hidden.dtype)
    with torch.autocast(hidden.device.type, enabled=False):  # the caller's dtypes are meant
        if name == "reference":
            return visual_weighted_cross_entropy_reference(
                *tensors,
                head_bias=head_bias,
                clamp=clamp,
                window=window,
                ignore_index=ignore_index,
            )
        needs = [
            torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
            for tensor in (hidden, head_weight, head_bias)
        ]
        low, high = map(float, clamp)
        return _visual_weighted_cross_entropy(
            *tensors, head_bias, low, high, window, ignore_index, *needs, name
        )[0]


def visual_weighted_cross_entropy_reference(
    hidden: Tensor,
    hidden_noisy: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    *,
    head_bias: Tensor | None = None,
    clamp: tuple[float, float] = (1.0, 5.0),
    window: int = 3,
    ignore_index: int = -100,
) -> Tensor:
    """The same in plain PyTorch, differentiable: what every other backend must equal."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    sequence, position = (labels != ignore_index).nonzero(as_tuple=True)
    label = labels[sequence, position]
    weight, bias = head_weight.to(dtype), None if head_bias is None else head_bias.to(dtype)
    logits = F.linear(hidden[sequence, position].to(dtype), weight, bias)
    noisy_logits = F.linear(hidden_noisy[sequence, position].to(dtype), weight, bias)
    gap = (logits - noisy_logits).gather(1, label[:, None])[:, 0].detach().clamp(*clamp)
    weights = visual_weights(gap, sequence, window)
    losses = F.cross_entropy(logits, label, reduction="none")
    return (weights * losses).sum() / weights.sum().clamp_min(torch.finfo(dtype).tiny)


def visual_gaps(rows: Tensor, rows_noisy: Tensor, label_rows: Tensor) -> Tensor:
    """How far each label's logit falls when the picture is noised, (N,) float32 or float64.

    Of the two branches' logits only the difference at the label counts; the bias cancels.

    Args:
        rows: (N, D) the labelled positions' hidden states.
        rows_noisy: (N, D) those of the noised branch.
        label_rows: (N, D) the rows of the head that belong to the labels.
    """
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return torch.linalg.vecdot(rows.to(dtype) - rows_noisy, label_rows.to(dtype))


def visual_weights(gap: Tensor, sequence: Tensor, window: int) -> Tensor:
    """The mean of each gap and its neighbours in the same sequence, (N,).

    Args:
        gap: (N,) the labelled positions' gaps, sequence after sequence.
        sequence: (N,) which sequence each belongs to.
        window: how many neighbours, itself among them; odd.
    """
    total, count = torch.zeros_like(gap), torch.zeros_like(gap)
    for offset in range(-(window // 2), window // 2 + 1):
        size = max(0, len(gap) - abs(offset))
        here = slice(max(0, -offset), max(0, -offset) + size)
        there = slice(max(0, offset), max(0, offset) + size)
        same = sequence[here] == sequence[there]
        total[here] += torch.where(same, gap[there], 0)
        count[here] += same
    return total / count


def _check(
    hidden: Tensor,
    hidden_noisy: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    head_bias: Tensor | None,
    clamp: tuple[float, float],
    window: int,
    ignore_index: int,
) -> None:
    check_tensor("hidden", hidden, shape=("B", "T", "D"), dtypes=(*KERNEL_DTYPES, torch.float64))
    (batch, length, dim), device, dtype = hidden.shape, hidden.device, (hidden.dtype,)
    check_tensor(
        "hidden_noisy", hidden_noisy, shape=(batch, length, dim), dtypes=dtype, device=device
    )
    check_tensor("head_weight", head_weight, shape=("V", dim), dtypes=dtype, device=device)
    check_tensor("labels", labels, shape=(batch, length), dtypes=(torch.int64,), device=device)
    vocabulary = head_weight.shape[0]
    if head_bias is not None:
        check_tensor("head_bias", head_bias, shape=(vocabulary,), dtypes=dtype, device=device)
    if hidden.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "visual_weighted_cross_entropy cannot be captured in a CUDA graph: how many labelled "
            "positions there are decides what is computed, and differs from batch to batch"
        )
    low, high = clamp
    if not 0 < low <= high < float("inf"):
        raise ValueError(f"clamp must be two positive numbers, the lower first, got {clamp}")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive, got {window}")
    if 0 <= ignore_index < vocabulary:
        raise ValueError(f"ignore_index={ignore_index} is a token of the vocabulary")
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= vocabulary))
    if wrong.any():
        b, t = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"labels[{b}, {t}] is {int(labels[b, t])}, but head_weight has {vocabulary} rows; "
            f"positions that do not count have {ignore_index}"
        )


@torch.library.custom_op("ragvl::visual_weighted_cross_entropy", mutates_args=())
def _visual_weighted_cross_entropy(
    hidden: Tensor,
    hidden_noisy: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    head_bias: Tensor | None,
    low: float,
    high: float,
    window: int,
    ignore_index: int,
    needs_hidden: bool,
    needs_weight: bool,
    needs_bias: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and its gradients with respect to hidden, weight and bias, empty if not needed."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    grad_hidden, grad_weight, grad_bias = _empty_gradients(
        hidden, head_weight, needs_hidden, needs_weight, needs_bias
    )
    sequence, position = (labels != ignore_index).nonzero(as_tuple=True)
    label = labels[sequence, position]
    rows = hidden[sequence, position]
    gap = visual_gaps(rows, hidden_noisy[sequence, position], head_weight[label]).clamp_(low, high)
    weights = visual_weights(gap, sequence, window)
    weights /= weights.sum().clamp_min(torch.finfo(dtype).tiny)

    loss = torch.zeros((), dtype=dtype, device=hidden.device)
    chunk_bytes = _CHUNK_BYTES.get(hidden.device.type, _CHUNK_BYTES["cpu"])
    size = max(16, chunk_bytes // (4 * head_weight.shape[0]))
    # Half precision is summed over several chunks in float32
    total_weight = grad_weight.to(dtype) if len(rows) > size else grad_weight
    for start in range(0, len(rows), size):
        chunk = slice(start, start + size)
        logits = _product(rows[chunk], head_weight.T, dtype)
        if head_bias is not None:
            logits += head_bias
        with on_device(hidden.device):
            losses, slopes = _SOFTMAX[backend](
                logits, label[chunk], weights[chunk], needs_hidden or needs_weight or needs_bias
            )
        loss += losses
        if slopes is None:
            continue
        slopes = slopes.to(hidden.dtype)
        if needs_hidden:
            grad_hidden[sequence[chunk], position[chunk]] = slopes @ head_weight
        if needs_weight:
            _add_product(total_weight, slopes.T, rows[chunk])
        if needs_bias:
            grad_bias += slopes.sum(0, dtype=dtype)
    if needs_weight and total_weight is not grad_weight:
        grad_weight.copy_(total_weight)
    return loss, grad_hidden, grad_weight, grad_bias.to(hidden.dtype)


@_visual_weighted_cross_entropy.register_fake
def _(
    hidden: Tensor, _: Tensor, head_weight: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    grads = _empty_gradients(hidden, head_weight, *arguments[-4:-1])
    return hidden.new_empty((), dtype=dtype), grads[0], grads[1], grads[2].to(hidden.dtype)


def _empty_gradients(
    hidden: Tensor, head_weight: Tensor, needs_hidden: bool, needs_weight: bool, needs_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros where a gradient is needed; the bias's in the dtype that it is summed in."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    bias_shape = head_weight.shape[:1] if needs_bias else (0,)
    return (
        hidden.new_zeros(hidden.shape if needs_hidden else (0,)),
        hidden.new_zeros(head_weight.shape if needs_weight else (0,)),
        hidden.new_zeros(bias_shape, dtype=dtype),
    )


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """The product a @ b in `dtype`, summed in float32."""
    if a.dtype == dtype:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype)
    return (a @ b).to(dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a @ b to `total`, without a second tensor of its size where the dtypes allow."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += _product(a, b, total.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.needs = inputs[-4:-1]
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    # In place: the head's gradient may be as large as the head
    scaled = [
        saved.mul_(grad) if needed else None
        for saved, needed in zip(ctx.saved_tensors, ctx.needs, strict=True)
    ]
    hidden, weight, bias = scaled
    return hidden, None, weight, None, bias, *[None] * 8


_visual_weighted_cross_entropy.register_autograd(_backward, setup_context=_setup_context)


def _softmax_torch(
    logits: Tensor, label: Tensor, weights: Tensor, needs_slopes: bool
) -> tuple[Tensor, Tensor | None]:
    """The sum of weights times losses, and its gradient with respect to the logits."""
    picked = logits.gather(1, label[:, None])[:, 0]
    top = logits.amax(1, keepdim=True)
    logits.sub_(top).exp_()  # in place: a chunk's logits are what this operation holds
    total = logits.sum(1)
    loss = torch.dot(total.log() + top[:, 0] - picked, weights)
    if not needs_slopes:
        return loss, None
    logits.mul_((weights / total)[:, None])
    return loss, logits.scatter_add_(1, label[:, None], -weights[:, None])


def _softmax_triton(
    logits: Tensor, label: Tensor, weights: Tensor, needs_slopes: bool
) -> tuple[Tensor, Tensor | None]:
    """kernels/visual_weighted_cross_entropy.py, imported where it is used: Triton is optional."""
    from ragvl.kernels.visual_weighted_cross_entropy import weighted_softmax_fwd

    losses = torch.empty_like(weights)
    weighted_softmax_fwd(logits, label, weights, losses, needs_slopes)
    return losses.sum(), logits if needs_slopes else None


_SOFTMAX = {"cpu": _softmax_torch, "triton": _softmax_triton}
