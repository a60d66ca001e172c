"""relevance_head: from a prompt's last hidden state to its relevance, without a vocabulary product.

Of the language model's head only the rows that spell Yes and No matter, and of the hidden states
only the one of each prompt's last token: a few dot products instead of a (B, T, V) tensor.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ragvl.ops.arguments import check_tensor
from ragvl.ops.backends import KERNEL_DTYPES, Backend, choose, on_device
from ragvl.ops.compiled import run_compiled

NormKind = Literal["rms", "layer", "none"]

# Under this many multiply-adds a second thread costs more than it saves.
_WORK_PER_THREAD = 1 << 16


class Arguments(NamedTuple):
    """Of `relevance_head`, in the order in which the registered operator takes them."""

    hidden: Tensor
    last_index: Tensor
    norm_weight: Tensor | None
    head_rows: Tensor
    num_yes: int
    eps: float
    norm: str
    norm_bias: Tensor | None
    head_bias: Tensor | None
    softcap: float | None


def relevance_head(
    hidden: Tensor,
    last_index: Tensor,
    norm_weight: Tensor | None,
    head_rows: Tensor,
    *,
    num_yes: int = 1,
    eps: float = 1e-6,
    norm: NormKind = "rms",
    norm_bias: Tensor | None = None,
    head_bias: Tensor | None = None,
    softcap: float | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """sigmoid(z_yes - z_no) of each prompt, with z the language model's logits at its last token.

    ```
    x = hidden[last_index]                                     # gather
    x = x - mean(x)                                            # norm="layer" only
    x = x / sqrt(mean(x²) + eps) * norm_weight + norm_bias     # unless norm="none"
    z = cap(head_rows @ x + head_bias),  cap(z) = softcap * tanh(z / softcap)
    logits = (logsumexp(z[:num_yes]), logsumexp(z[num_yes:]))  # (yes, no)
    relevance = sigmoid(logits[0] - logits[1])                 # = softmax(logits)[0]
    ```

    Equivalent to `softmax(lm_head(final_norm(hidden[last_index]))[:, [yes_id, no_id]], -1)[:, 0]`
    where Yes and No have one spelling each. All arithmetic is in float32 (float64 for float64).
    NaN in a prompt gives NaN for that prompt alone. With every backend but the reference a prompt's
    result is bitwise the same in any batch.

    Args:
        hidden: (N, D) float32, bfloat16, float16 or (reference only) float64. The decoder's output
            before its final norm, all prompts packed into one list of tokens. Rows may be strided;
            the kernels copy it where elements within a row are not adjacent.
        last_index: (B,) int64 or int32, the row of each prompt's last token.
        norm_weight: (D,) or None for a norm without weights. This and the parameters below have
            `hidden`'s dtype or float32; the C++ kernels read float32 and copy what is not.
        head_rows: (R, D), rows of the head: first those that spell Yes, then those that spell No.
        num_yes: how many of the R rows spell Yes; at least 1, at most R - 1.
        eps: added to the mean square inside the root.
        norm: the model's final norm: "rms", "layer" or "none" (`hidden` is already normed).
        norm_bias: (D,) or None.
        head_bias: (R,) or None.
        softcap: a positive number caps each logit as Gemma does; None does not.
        backend: "auto" for the fastest that is present, or a name; see `ragvl.ops.backends`.

    Returns:
        logits (B, 2), (yes, no), and relevance (B,), both float32 (float64 for float64 `hidden`).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or number; an index outside `hidden` (on a GPU it cannot
            be seen without waiting: the kernels give NaN for that prompt, and the reference fails
            as torch's own indexing does).
        BackendUnavailableError: the backend named is not available here.

    Source: RagVL, arXiv 2407.21439, equation 1; computed as the release does, at the last position.

    Examples:
        >>> hidden = torch.tensor([[1.0, 1.0], [3.0, -3.0]])
        >>> head_rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # Yes, No
        >>> _, relevance = relevance_head(hidden, torch.tensor([0, 1]), None, head_rows)
        >>> relevance
        tensor([0.5000, 0.8808])
    """
    arguments = Arguments(
        hidden,
        last_index,
        norm_weight,
        head_rows,
        num_yes,
        eps,
        norm,
        norm_bias,
        head_bias,
        softcap,
    )
    _check(arguments)
    return _relevance_head(*arguments, backend)


def relevance_head_reference(
    hidden: Tensor,
    last_index: Tensor,
    norm_weight: Tensor | None,
    head_rows: Tensor,
    *,
    num_yes: int = 1,
    eps: float = 1e-6,
    norm: NormKind = "rms",
    norm_bias: Tensor | None = None,
    head_bias: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`relevance_head` in plain PyTorch, differentiable: what every other backend must equal."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    x = hidden.index_select(0, last_index).to(dtype)
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    if norm != "none":
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    if norm_weight is not None:
        x = x * norm_weight.to(dtype)
    if norm_bias is not None:
        x = x + norm_bias.to(dtype)
    z = x @ head_rows.to(dtype).T
    if head_bias is not None:
        z = z + head_bias.to(dtype)
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    logits = torch.stack([z[:, :num_yes].logsumexp(-1), z[:, num_yes:].logsumexp(-1)], -1)
    return logits, torch.sigmoid(logits[:, 0] - logits[:, 1])


def _check(a: Arguments) -> None:
    """Everything that can be checked without reading a tensor's values."""
    check_tensor("hidden", a.hidden, shape=("N", "D"), dtypes=(*KERNEL_DTYPES, torch.float64))
    dim, device = a.hidden.shape[1], a.hidden.device
    if dim == 0:
        raise ValueError(f"hidden must have at least one column, got shape {tuple(a.hidden.shape)}")
    check_tensor(
        "last_index", a.last_index, shape=("B",), dtypes=(torch.int64, torch.int32), device=device
    )
    dtypes = (a.hidden.dtype, torch.float32)
    check_tensor("head_rows", a.head_rows, shape=("R", dim), dtypes=dtypes, device=device)
    rows = a.head_rows.shape[0]
    if rows < 2 or not 1 <= a.num_yes < rows:
        raise ValueError(
            "num_yes must leave a row of head_rows for Yes and one for No: got "
            f"num_yes={a.num_yes} of {rows} rows"
        )
    if a.norm not in get_args(NormKind):
        raise ValueError(f"norm must be one of {', '.join(get_args(NormKind))}, got {a.norm!r}")
    if a.norm == "none" and (a.norm_weight is not None or a.norm_bias is not None):
        raise ValueError("norm='none' takes no norm_weight and no norm_bias")
    if not a.eps >= 0:
        raise ValueError(f"eps must not be negative, got {a.eps}")
    if a.softcap is not None and not a.softcap > 0:
        raise ValueError(f"softcap must be positive, or None for none, got {a.softcap}")
    if a.norm_weight is not None:
        check_tensor("norm_weight", a.norm_weight, shape=(dim,), dtypes=dtypes, device=device)
    if a.norm_bias is not None:
        check_tensor("norm_bias", a.norm_bias, shape=(dim,), dtypes=dtypes, device=device)
    if a.head_bias is not None:
        check_tensor("head_bias", a.head_bias, shape=(rows,), dtypes=dtypes, device=device)


@torch.library.custom_op(
    "ragvl::relevance_head",
    mutates_args=(),
    schema="(Tensor hidden, Tensor last_index, Tensor? norm_weight, Tensor head_rows, "
    "SymInt num_yes, float eps, str norm, Tensor? norm_bias, Tensor? head_bias, float? softcap, "
    "str backend) -> (Tensor, Tensor)",
)
def _relevance_head(*inputs: Any) -> tuple[Tensor, Tensor]:
    """The operation as torch.compile and autograd see it: one node, whatever backend runs it."""
    a, backend = Arguments(*inputs[:-1]), inputs[-1]
    device = a.hidden.device
    if device.type == "cpu" and a.last_index.numel():
        low, high = (int(index) for index in a.last_index.aminmax())
        if low < 0 or high >= a.hidden.shape[0]:
            raise ValueError(
                f"last_index must lie within the {a.hidden.shape[0]} rows of hidden, got values "
                f"from {low} to {high}"
            )
    name, _ = choose("relevance_head", backend, device, a.hidden.dtype)
    with on_device(device):
        return _IMPLEMENTATIONS[name](a)


@_relevance_head.register_fake
def _(hidden: Tensor, last_index: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty_outputs(hidden, last_index)


def _empty_outputs(hidden: Tensor, last_index: Tensor) -> tuple[Tensor, Tensor]:
    batch, dtype = last_index.shape[0], torch.promote_types(hidden.dtype, torch.float32)
    return hidden.new_empty((batch, 2), dtype=dtype), hidden.new_empty((batch,), dtype=dtype)


_DIFFERENTIABLE = ("hidden", "norm_weight", "head_rows", "norm_bias", "head_bias")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG001
    a = Arguments(*inputs[:-1])
    ctx.save_for_backward(a.last_index, *(getattr(a, name) for name in _DIFFERENTIABLE))
    ctx.options = {"num_yes": a.num_yes, "eps": a.eps, "norm": a.norm, "softcap": a.softcap}


def _backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
    """The reference's gradient, recomputed: nothing but the inputs is kept for it."""
    last_index, *saved = ctx.saved_tensors
    with torch.enable_grad():
        # Views, so that a tensor given twice still counts as two inputs
        tensors: dict[str, Any] = {
            name: None if tensor is None else tensor.view_as(tensor)
            for name, tensor in zip(_DIFFERENTIABLE, saved, strict=True)
        }
        outputs = relevance_head_reference(last_index=last_index, **tensors, **ctx.options)
    needed = dict(zip(Arguments._fields, ctx.needs_input_grad[:-1], strict=True))
    names = [name for name in _DIFFERENTIABLE if needed[name]]
    grads = torch.autograd.grad(
        outputs,
        [tensors[name] for name in names],
        grad_outputs,
        create_graph=torch.is_grad_enabled(),
    )
    grad_of = dict(zip(names, grads, strict=True))
    return (*(grad_of.get(name) for name in Arguments._fields), None)


_relevance_head.register_autograd(_backward, setup_context=_setup_context)


def _reference(a: Arguments) -> tuple[Tensor, Tensor]:
    return relevance_head_reference(**a._asdict())


def _compiled(a: Arguments) -> tuple[Tensor, Tensor]:
    """csrc/relevance_head.cpp for CPU tensors, csrc/relevance_head.cu for CUDA tensors."""
    hidden = a.hidden if a.hidden.stride(1) == 1 else a.hidden.contiguous()
    (rows, dim), batch, num_head_rows = hidden.shape, a.last_index.shape[0], a.head_rows.shape[0]
    logits, relevance = _empty_outputs(hidden, a.last_index)
    run_compiled(
        "relevance_head",
        hidden.device,
        threads=min(batch, batch * dim * (num_head_rows + 1) // _WORK_PER_THREAD),
        hidden=hidden,
        row_stride=hidden.stride(0),
        last_index=a.last_index.to(torch.int64).contiguous(),
        norm_weight=_float32(a.norm_weight),
        norm_bias=_float32(a.norm_bias),
        head_rows=_float32(a.head_rows),
        head_bias=_float32(a.head_bias),
        logits=logits,
        relevance=relevance,
        rows=rows,
        batch=batch,
        dim=dim,
        num_head_rows=num_head_rows,
        num_yes=a.num_yes,
        eps=a.eps,
        softcap=a.softcap or 0.0,
        dtype=hidden.dtype,
        norm=a.norm,
    )
    return logits, relevance


def _float32(parameter: Tensor | None) -> Tensor | None:
    """As the C++ kernels read parameters."""
    return None if parameter is None else parameter.to(torch.float32).contiguous()


def _triton(a: Arguments) -> tuple[Tensor, Tensor]:
    """kernels/relevance_head.py, imported where it is used since Triton is optional."""
    from ragvl.kernels.relevance_head import relevance_head_fwd

    outputs = _empty_outputs(a.hidden, a.last_index)
    relevance_head_fwd(a, *outputs)
    return outputs


_IMPLEMENTATIONS = {
    "reference": _reference,
    "cpu": _compiled,
    "triton": _triton,
    "cuda": _compiled,
}
