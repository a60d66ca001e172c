"""Heads: what turns a decoder's output into a score, in float32 whatever the model's dtype.

A head gives a raw score: the log-odds of a checkpoint's answer words, or what a score network that
came with the checkpoint gives. Relevance is its sigmoid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ragvl.messages import quoted, shown
from ragvl.mllm import MLLM, UnsupportedModelError
from ragvl.mllm.head import FinalNorm
from ragvl.ops import relevance_head
from ragvl.torch_context import default_torch_context
from ragvl.weights import weights_name

Pooling = Literal["last", "mean"]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


_LARGEST = torch.finfo(torch.float32).max
_AGAINST_ZERO = torch.tensor([[1.0], [0.0]], device="cpu")


class Head(Protocol):
    """Reads scores off a decoder's output.

    Attributes:
        pooling: of which of a prompt's states: the last token's, or the mean of all.
    """

    pooling: Pooling

    def __call__(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """(B,) float32: the raw score of each prompt.

        Args:
            hidden: (N, D) the decoder's output before its final norm, of any floating dtype. With
                "mean" the prompts' tokens, one prompt right after the other.
            rows: (B,) the row of each prompt's last token.
        """


@default_torch_context
def relevance(raw: Tensor) -> Tensor:
    """sigmoid(raw), (n,) float32 on the CPU; the bits are those that `relevance_head` gives."""
    finite = raw.clamp(-_LARGEST, _LARGEST)  # infinity times 0, below, would be NaN
    rows = torch.arange(len(raw))
    _, result = relevance_head(finite[:, None], rows, None, _AGAINST_ZERO, norm="none")
    return result


class AnswerHead:
    """The log-odds of a model's answers: rows of its language-model head, behind its final norm.

    Args:
        mllm: the model.
        yes_token_ids: the tokens that are read for relevant; see `Answers`.
        no_token_ids: those for not relevant; without any, the raw score is the logit of the others.

    Raises:
        UnsupportedModelError: the model has no language-model head.
    """

    pooling: Pooling = "last"

    def __init__(
        self, mllm: MLLM, yes_token_ids: Sequence[int], no_token_ids: Sequence[int]
    ) -> None:
        self._num_yes = len(yes_token_ids)
        self._rows, self._bias = mllm.head.rows([*yes_token_ids, *no_token_ids])
        if not no_token_ids:  # against a logit that is always 0
            self._rows = F.pad(self._rows, (0, 0, 0, 1))
            self._bias = None if self._bias is None else F.pad(self._bias, (0, 1))
        self._norm = mllm.final_norm
        self._softcap = mllm.head.softcap

    def __call__(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """(B,) float32: see `Head`."""
        logits, _ = relevance_head(
            hidden,
            rows,
            self._norm.weight,
            self._rows,
            num_yes=self._num_yes,
            eps=self._norm.eps,
            norm=self._norm.kind,
            norm_bias=self._norm.bias,
            head_bias=self._bias,
            softcap=self._softcap,
        )
        return logits[:, 0] - logits[:, 1]


@dataclass(frozen=True, eq=False)
class Layer:
    """activation(weight @ x + bias).

    Attributes:
        weight: (to, from).
        bias: (to,), or None.
        activation: the name of one of `ACTIVATIONS`.
    """

    weight: Tensor
    bias: Tensor | None = None
    activation: str = "identity"

    def __call__(self, x: Tensor) -> Tensor:
        """(B, to) from `x` (B, from)."""
        return ACTIVATIONS[self.activation](F.linear(x, self.weight, self.bias))

    def to(self, device: torch.device) -> Layer:
        """The same in float32 on `device`."""
        bias = None if self.bias is None else self.bias.to(device, torch.float32)
        return replace(self, weight=self.weight.to(device, torch.float32), bias=bias)


@dataclass(frozen=True, eq=False)
class ScoreNetwork:
    """A network that gives a prompt's score: linear, or of several layers.

    Its raw score is `scale * layers(x) + bias`, of the last token's normed state or of the mean of
    all of a prompt's normed states.

    Attributes:
        layers: from the decoder's width to 1.
        pooling: "last" or "mean".
        scale: multiplies what the layers give.
        bias: added to that.

    Raises:
        UnsupportedModelError: the layers do not fit each other, give more than one score, hold
            NaN or infinity, or are of an unknown activation or pooling; `scale` or `bias` is no
            finite number.
    """

    layers: tuple[Layer, ...]
    pooling: Pooling = "last"
    scale: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        if self.pooling not in ("last", "mean"):
            raise UnsupportedModelError(
                f"a score network pools by {quoted(self.pooling)}; known: 'last', 'mean'"
            )
        if not self.layers:
            raise UnsupportedModelError("a score network has no layers")
        for name, number in (("scale", self.scale), ("bias", self.bias)):
            if not isinstance(number, int | float) or not math.isfinite(number):
                raise UnsupportedModelError(
                    f"the {name} of a score network is {shown(repr(number))}, and no finite number"
                )
        for number, layer in enumerate(self.layers):
            _check_layer(layer, f"layer {number} of the score network")
        for number, (one, following) in enumerate(zip(self.layers, self.layers[1:], strict=False)):
            if following.weight.shape[1] != len(one.weight):
                raise UnsupportedModelError(
                    f"layer {number} of the score network gives {len(one.weight)} numbers, and "
                    f"layer {number + 1} takes {following.weight.shape[1]}"
                )
        if len(self.layers[-1].weight) != 1:
            raise UnsupportedModelError(
                f"the score network gives {len(self.layers[-1].weight)} scores for a document, and "
                "a reranker needs one"
            )

    @property
    def content(self) -> tuple[object, ...]:
        """All that it is, as `name_of` takes it."""
        tensors = {f"{i}.weight": layer.weight for i, layer in enumerate(self.layers)}
        tensors |= {f"{i}.bias": x.bias for i, x in enumerate(self.layers) if x.bias is not None}
        activations = [layer.activation for layer in self.layers]
        return weights_name(tensors), activations, self.pooling, self.scale, self.bias

    def of(self, mllm: MLLM) -> ScoreNetwork:
        """Itself, once it is seen that it fits the model; see `check_width`."""
        self.check_width(len(mllm.final_norm.weight))
        return self

    def check_width(self, width: int) -> None:
        """Refuses a model whose states it does not take.

        Args:
            width: of the model's states.

        Raises:
            UnsupportedModelError: it takes others.
        """
        wanted = self.layers[0].weight.shape[1]
        if wanted != width:
            raise UnsupportedModelError(
                f"the score network takes states of {wanted} numbers, and those of the model have "
                f"{width}: the two are of different checkpoints"
            )

    def on(self, mllm: MLLM) -> ScoreHead:
        """The head that it is on the model's states."""
        layers = tuple(layer.to(mllm.device) for layer in self.layers)
        return ScoreHead(replace(self, layers=layers), mllm.final_norm)


class ScoreHead:
    """A score network on a model's normed states.

    Args:
        network: on the model's device.
        norm: the model's final norm.
    """

    def __init__(self, network: ScoreNetwork, norm: FinalNorm) -> None:
        self.pooling = network.pooling
        self._network = network
        self._norm = norm

    def __call__(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """(B,) float32: see `Head`."""
        x = self._norm(hidden[rows]) if self.pooling == "last" else self._means(hidden, rows)
        for layer in self._network.layers:
            x = layer(x)
        return self._network.scale * x[:, 0] + self._network.bias

    def _means(self, hidden: Tensor, rows: Tensor) -> Tensor:
        ends = [row + 1 for row in rows.tolist()]
        prompts = zip([0, *ends], ends, strict=False)
        return torch.stack([self._norm(hidden[start:end]).mean(0) for start, end in prompts])


def _check_layer(layer: Layer, name: str) -> None:
    """Refuses a layer that cannot be computed; `name` is for the message."""
    if layer.activation not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"{name} has the unknown activation {quoted(layer.activation)}; known: "
            f"{', '.join(ACTIVATIONS)}"
        )
    weight, bias = layer.weight, layer.bias
    fits = weight.ndim == 2 and (bias is None or bias.shape == weight.shape[:1])
    if not fits or not weight.numel():
        shapes = [tuple(tensor.shape) for tensor in (weight, bias) if tensor is not None]
        raise UnsupportedModelError(
            f"{name} is no linear layer: its weight and bias have the shapes {shown(shapes)}"
        )
    for part, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and not tensor.isfinite().all():
            raise UnsupportedModelError(f"the {part} of {name} holds NaN or infinity")
