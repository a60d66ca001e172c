"""rotary_embedding: rotates queries and keys by their positions, both in one pass.

Eager code negates, concatenates, multiplies and adds: ten operators, each over all heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ragvl.ops.arguments import check_tensor, inference_only
from ragvl.ops.backends import KERNEL_DTYPES, Backend, choose, on_device
from ragvl.ops.compiled import run_compiled, view

# Under this many numbers a second thread costs more than it saves.
_WORK_PER_THREAD = 1 << 15


def rotary_embedding(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Rotary position embedding of q and k.

    ```
    half(x) = concat(-x[D/2:], x[:D/2])
    out     = x * cos + half(x) * sin            # of q's heads and of k's, at each position
    ```

    Equivalent to `apply_rotary_pos_emb(q, k, cos, sin)` of Hugging Face's LLaMA, Qwen and Gemma
    files. All arithmetic is in float32 (float64 for float64) and rounded once. With every backend
    but the reference a position's result is bitwise the same in any batch. There is no gradient:
    computing one raises RuntimeError; `rotary_embedding_reference` has one.

    Args:
        q: (B, H, T, D) float32, bfloat16, float16 or (reference only) float64; D is even. Heads
            and tokens of q and k may be strided; the kernels copy where elements within a head are
            not adjacent.
        k: (B, G, T, D) of q's dtype.
        cos: (B, T, D) or (1, T, D) of q's dtype.
        sin: of cos's shape and dtype.
        backend: "auto" for the fastest that is present, or a name; see `ragvl.ops.backends`.

    Returns:
        q and k rotated; in memory a position's heads lie side by side, (B, T, H, D).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or device.
        BackendUnavailableError: the backend requested by name is not available here.

    Source: Su et al., "RoFormer", arXiv 2104.09864.

    Examples:
        >>> q = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
        >>> cos, sin = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)  # a quarter of a turn
        >>> rotary_embedding(q, 2 * q, cos, sin)
        (tensor([[[[-2.,  1.]]]]), tensor([[[[-4.,  2.]]]]))
    """
    _check(q, k, cos, sin)
    return _rotary_embedding(q, k, cos, sin, backend)


def rotary_embedding_reference(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """`rotary_embedding` in plain PyTorch, differentiable: what the other backends must equal."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    cos, sin = cos.to(dtype)[:, None], sin.to(dtype)[:, None]

    def rotated(x: Tensor) -> Tensor:
        first, second = x.to(dtype).chunk(2, -1)
        half = torch.cat([-second, first], -1)
        return (x.to(dtype) * cos + half * sin).to(x.dtype)

    return rotated(q), rotated(k)


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Everything that can be checked without reading a tensor's values."""
    check_tensor("q", q, shape=("B", "H", "T", "D"), dtypes=(*KERNEL_DTYPES, torch.float64))
    batch, heads, length, dim = q.shape
    if dim == 0 or dim % 2:
        raise ValueError(f"q must have heads of even size, got shape {tuple(q.shape)}")
    dtypes, device = (q.dtype,), q.device
    check_tensor("k", k, shape=(batch, "G", length, dim), dtypes=dtypes, device=device)
    if not heads or not k.shape[1]:
        raise ValueError(f"q and k must have heads, got {heads} and {k.shape[1]}")
    check_tensor("cos", cos, shape=("B", length, dim), dtypes=dtypes, device=device)
    if cos.shape[0] not in (1, batch):
        raise ValueError(f"cos must have 1 or {batch} items as q has, got {cos.shape[0]}")
    check_tensor("sin", sin, shape=tuple(cos.shape), dtypes=dtypes, device=device)


@torch.library.custom_op("ragvl::rotary_embedding", mutates_args=())
def _rotary_embedding(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """The operation as torch.compile sees it: one node, whatever backend runs it."""
    name, _ = choose("rotary_embedding", backend, q.device, q.dtype)
    outputs = _empty_outputs(q, k)
    if name == "reference":
        for out, rotated in zip(outputs, rotary_embedding_reference(q, k, cos, sin), strict=True):
            out.copy_(rotated)
        return outputs
    # The kernels read heads at any stride, elements within a head side by side
    q, k = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k))
    # One for all items where cos has one
    cos, sin = (x.contiguous().expand(q.shape[0], -1, -1) for x in (cos, sin))
    with on_device(q.device):
        _KERNELS[name](q, k, cos, sin, *outputs)
    return outputs


@_rotary_embedding.register_fake
def _(q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty_outputs(q, k)


inference_only("rotary_embedding", _rotary_embedding)


def _empty_outputs(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    q_out, k_out = (x.new_empty(x.transpose(1, 2).shape).transpose(1, 2) for x in (q, k))
    return q_out, k_out


def _compiled(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, q_out: Tensor, k_out: Tensor) -> None:
    """csrc/rotary_embedding.cpp."""
    batch, heads, length, dim = q.shape
    run_compiled(
        "rotary_embedding",
        q.device,
        threads=(q.numel() + k.numel()) // _WORK_PER_THREAD,
        q=view(q),
        k=view(k),
        cos=cos,
        sin=sin,
        angle_stride=cos.stride(0),
        q_out=q_out,
        k_out=k_out,
        batch=batch,
        heads=heads,
        kv_heads=k.shape[1],
        length=length,
        dim=dim,
        dtype=q.dtype,
    )


def _triton(*tensors: Tensor) -> None:
    """kernels/rotary_embedding.py, imported where it is used since Triton is optional."""
    from ragvl.kernels.rotary_embedding import rotary_embedding_fwd

    rotary_embedding_fwd(*tensors)


_KERNELS: dict[str, Callable[..., None]] = {"cpu": _compiled, "triton": _triton}
