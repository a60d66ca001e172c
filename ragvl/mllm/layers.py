"""Decoder layers with less work between their products: compiled, or by operations of our own.

Between the products of a layer stand some 27 small operators, each of which reads and writes every
hidden state: norms, residual connections, rotary embedding, the gate of the MLP. Layers that are
built as Hugging Face's LLaMA, Qwen and Gemma are, which is seen by their parts and not by a list of
models, can compute them in fewer passes:

- "fused": with `residual_rms_norm` and `rotary_embedding`.
- "compiled": with what `torch.compile` makes of the same functions, and of the gate. Whole layers
  are not compiled: attention would break each into five graphs, compiled anew for so many shapes
  that torch stops compiling, which changes bits in the middle of a run.

No model code is forked: a replacement stands in the `forward` attribute of a module, and passes
calls that record gradients, or that run under autocast, on to the module's own.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import FunctionType, MethodType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ragvl.messages import reason
from ragvl.mllm.head import NormForm, norm_form, rounding, same
from ragvl.ops import (
    residual_rms_norm,
    residual_rms_norm_reference,
    rotary_embedding,
    rotary_embedding_reference,
)

logger = logging.getLogger(__name__)

LayerCode = Literal["eager", "compiled", "fused"]

_ROTARY = "apply_rotary_pos_emb"  # its name in modelling files
_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
# Gemma's layers also norm what attention and MLP give
_GEMMA_LAYER = _LAYER | {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_REPLACED = "_ragvl_replaced"  # attribute of a decoder's list of layers
_NORMED = "_ragvl_normed"  # attribute of a layer's output: the next layer's norm, and its result


@dataclass(frozen=True)
class _Operations:
    """What replaces the small operators; None leaves them as they are."""

    norm: Callable[..., tuple[Tensor, Tensor]]  # as residual_rms_norm
    rotary: Callable[..., tuple[Tensor, Tensor]]  # as rotary_embedding
    gate: Callable[[nn.Module, Tensor, Tensor], Tensor] | None


def checked_layers(layers: LayerCode) -> LayerCode:
    """Refuses a name that is not of `LayerCode`.

    Raises:
        ValueError: it is none.
    """
    if layers not in get_args(LayerCode):
        raise ValueError(f"layers={layers!r}: expected one of {', '.join(get_args(LayerCode))}")
    return layers


def replace_code(layers: nn.ModuleList, code: LayerCode, run: Callable[[], Tensor]) -> None:
    """Puts other code into a decoder's layers, in the place of what was put there before.

    Where results with it are not the same within rounding, or it fails, the layers keep their own;
    that, and what it leaves out, is said in the log.

    Args:
        layers: the decoder's.
        code: which; "eager" is their own.
        run: gives hidden states of a prompt, by the layers as they are.
    """
    if (earlier := getattr(layers, _REPLACED, None)) is not None:
        earlier.restore()
    setattr(layers, _REPLACED, None)
    if code == "eager":
        return
    expected = run()
    replaced = _ReplacedCode(layers, code)
    try:
        result = run()
        problem = None if same(result, expected, rounding(result.dtype)) else "results differ"
    except (RuntimeError, TypeError, ValueError) as error:
        problem = reason(error)
    if problem is not None:
        replaced.restore()
        logger.warning("layers=%r is not for this model, which runs without: %s", code, problem)
        return
    if replaced.left:
        logger.warning("layers=%r leaves %s as is", code, " and ".join(sorted(replaced.left)))
    setattr(layers, _REPLACED, replaced)


def code_in_force(layers: nn.ModuleList) -> LayerCode:
    """What `replace_code` has put into a decoder's layers."""
    replaced = getattr(layers, _REPLACED, None)
    return "eager" if replaced is None else replaced.code


class _ReplacedCode:
    """The modules with another `forward`, until `restore`."""

    def __init__(self, layers: nn.ModuleList, code: LayerCode) -> None:
        self.code = code
        self.left: set[str] = set()  # what stays as it is, in words
        self._replaced: list[tuple[nn.Module, Callable[..., Any]]] = []
        if code == "fused":
            self._replace_all(layers, _Operations(residual_rms_norm, rotary_embedding, None))
        else:
            self._replace_all(layers, _compiled_operations())

    def restore(self) -> None:
        """Gives modules their own code back, but where somebody else has replaced it since."""
        for module, forward in self._replaced:
            if vars(module).get("forward") is forward:
                del module.forward

    def _replace_all(self, layers: nn.ModuleList, operations: _Operations) -> None:
        norms = {
            module: _Norm(module, form, operations)
            for layer in layers
            for module in layer.modules()
            if (form := norm_form(module)) is not None and form.kind == "rms"
        }
        norms = {module: norm for module, norm in norms.items() if self._replace(module, norm)}
        known = [layer for layer in layers if _is_known(layer, norms)]
        for layer in set(layers) - set(known):
            self.left.add(f"the residual connections of {type(layer).__name__}")
        following: dict[nn.Module, Any] = dict(pairwise(layers))
        for layer in known:
            first = getattr(following.get(layer), "input_layernorm", layer)
            self._replace(layer, _Layer(layer, norms, norms.get(first)))
            mlp: Any = layer.mlp
            if operations.gate is not None and set(dict(mlp.named_children())) == _MLP:
                self._replace(mlp, _Mlp(mlp, operations.gate))
        attentions: Any = (getattr(layer, "self_attn", None) for layer in layers)
        for attention in filter(None, attentions):
            forward = _rotary_forward(attention, operations.rotary)
            if forward is not None:
                self._replace(attention, forward)
            else:
                self.left.add(f"the rotary embedding of {type(attention).__name__}")

    def _replace(self, module: nn.Module, forward: Callable[..., Any]) -> bool:
        """Puts `forward` into a module, but where somebody else has put another."""
        if "forward" in vars(module):
            self.left.add(f"{type(module).__name__}, whose code is replaced already")
            return False
        setattr(module, "forward", forward)  # noqa: B010 (a method, to mypy)
        self._replaced.append((module, forward))
        return True


def _compiled_operations() -> _Operations:
    compiled_norm = _compiled(residual_rms_norm_reference)

    def norm(
        x: Tensor, residual: Tensor | None, weight: Tensor, *, eps: float, offset: float
    ) -> tuple[Tensor, Tensor]:
        # As a list of rows, so that all shapes are one to the compiler
        rows = (-1, x.shape[-1])
        other = None if residual is None else residual.reshape(rows)
        summed, normed = compiled_norm(x.reshape(rows), other, weight, eps=eps, offset=offset)
        return (x if residual is None else summed.view(x.shape)), normed.view(x.shape)

    return _Operations(norm, _compiled(rotary_embedding_reference), _compiled(_gated))


def _compiled(function: Any) -> Callable[..., Any]:
    """`function`, compiled whole or not at all, for any number of rows.

    It is a copy: torch limits how often one function is compiled, and several models may be loaded.
    """
    code = function.__code__.replace()
    copy = FunctionType(code, function.__globals__, function.__name__, function.__defaults__)
    return torch.compile(copy, fullgraph=True, dynamic=True)


def _gated(act: nn.Module, gate: Tensor, up: Tensor) -> Tensor:
    return act(gate) * up


class _Norm:
    """An RMS norm, and the sum before it."""

    def __init__(self, module: Any, form: NormForm, operations: _Operations) -> None:
        self._module = module
        self._form = form
        self._norm = operations.norm
        self._own = module.forward

    def __call__(self, hidden: Tensor) -> Tensor:
        if _is_for_own_code(hidden):
            return self._own(hidden)
        return self.add(hidden, None)[1]

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sum, and its norm."""
        form = self._form
        return self._norm(x, residual, self._module.weight, eps=form.eps, offset=form.offset)


class _Layer:
    """A layer that norms before attention and MLP, and adds what they give to what it was given.

    The sum at its end is normed at once for the next layer: in one pass, since it has just been
    computed. The norm's result stands on the sum itself, so that it is used for this very tensor
    and no other, such as one to which a vision tower's features were added in between.
    """

    def __init__(self, layer: Any, norms: dict[nn.Module, _Norm], following: _Norm | None) -> None:
        self._own = layer.forward
        self._parts = layer._modules
        self._known_parts = dict(self._parts)
        self._attention, self._mlp = layer.self_attn, layer.mlp
        self._before_attention = norms[layer.input_layernorm]
        self._following = following
        second = norms[layer.post_attention_layernorm]
        if hasattr(layer, "pre_feedforward_layernorm"):
            self._after_attention: _Norm | None = second
            self._before_mlp = norms[layer.pre_feedforward_layernorm]
            self._after_mlp: _Norm | None = norms[layer.post_feedforward_layernorm]
        else:
            self._before_mlp = second
            self._after_attention = self._after_mlp = None

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        is_known = self._parts == self._known_parts  # adapters may have replaced one since
        if args or not is_known or _is_for_own_code(hidden_states):
            return self._own(hidden_states, *args, **kwargs)
        norm, normed = getattr(hidden_states, _NORMED, (None, None))
        if norm is not self._before_attention:
            normed = self._before_attention(hidden_states)
        x, *_ = self._attention(hidden_states=normed, **kwargs)
        if self._after_attention is not None:
            x = self._after_attention(x)
        hidden_states, normed = self._before_mlp.add(x, hidden_states)
        x = self._mlp(normed)
        if self._after_mlp is not None:
            x = self._after_mlp(x)
        if self._following is None:
            return hidden_states + x
        hidden_states, normed = self._following.add(x, hidden_states)
        setattr(hidden_states, _NORMED, (self._following, normed))
        return hidden_states


class _Mlp:
    """An MLP whose gate is computed in one pass."""

    def __init__(self, module: Any, gate: Callable[..., Tensor]) -> None:
        self._module = module
        self._gate = gate
        self._own = module.forward

    def __call__(self, hidden: Tensor) -> Tensor:
        if _is_for_own_code(hidden):
            return self._own(hidden)
        mlp = self._module
        return mlp.down_proj(self._gate(mlp.act_fn, mlp.gate_proj(hidden), mlp.up_proj(hidden)))


def _is_for_own_code(x: Tensor) -> bool:
    """Whether a call on `x` records gradients, or mixes dtypes as autocast does."""
    return torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type)


def _is_known(layer: nn.Module, norms: dict[nn.Module, _Norm]) -> bool:
    """Whether a layer has the parts of `_Layer`; what it does with them is seen by its result."""
    parts = dict(layer.named_children())
    return set(parts) in (_LAYER, _GEMMA_LAYER) and all(
        module in norms for name, module in parts.items() if name.endswith("layernorm")
    )


def _rotary_forward(
    attention: nn.Module, rotary: Callable[..., tuple[Tensor, Tensor]]
) -> Callable[..., Any] | None:
    """The code of `attention`, which calls `rotary` where it called its file's own function.

    None where that computes something else.
    """
    forward = getattr(type(attention), "forward", None)
    if not isinstance(forward, FunctionType) or _ROTARY not in forward.__code__.co_names:
        return None
    own = forward.__globals__.get(_ROTARY)
    if own is None or not _is_rotary(own):
        return None

    def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return (own if _is_for_own_code(q) else rotary)(q, k, cos, sin)

    copy = FunctionType(
        forward.__code__,
        {**forward.__globals__, _ROTARY: rotated},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    copy.__kwdefaults__ = forward.__kwdefaults__
    return MethodType(copy, attention)


@functools.cache
def _is_rotary(own: Callable[..., Any]) -> bool:
    """Whether a modelling file's function is `rotary_embedding`, seen by trying it."""
    rng = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 2, 3, 8, generator=rng)
    cos, sin = torch.randn(2, 1, 3, 8, generator=rng)
    try:
        theirs = own(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError):
        return False
    ours = rotary_embedding_reference(q, k, cos, sin)
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(theirs, ours, strict=True))
