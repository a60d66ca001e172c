"""What comes after a decoder's last layer: its final norm, and rows of its language-model head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ragvl.mllm.quantized import check_head_weight
from ragvl.mllm.structure import final_norm
from ragvl.model_files import UnsupportedModelError

_ROWS_AT_ONCE = 8192
_EPS_NAMES = ("variance_epsilon", "eps", "epsilon", "norm_eps")


@dataclass(frozen=True, eq=False)
class FinalNorm:
    """A decoder's final norm as plain numbers.

    "rms": `x / sqrt(mean(x**2) + eps) * weight`;
    "layer": `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`.

    Attributes:
        kind: which of the two.
        weight: (D,) float32; a norm that multiplies by `1 + w` has the 1 in it already.
        bias: (D,) float32, or None.
        eps: added to the mean square or variance.
    """

    kind: Literal["rms", "layer"]
    weight: Tensor
    bias: Tensor | None
    eps: float

    def __call__(self, hidden: Tensor) -> Tensor:
        """(..., D) float32 from `hidden` (..., D) of any floating dtype."""
        hidden = hidden.float()
        size = self.weight.shape
        if self.kind == "rms":
            return F.rms_norm(hidden, size, self.weight, self.eps)
        return F.layer_norm(hidden, size, self.weight, self.bias, self.eps)


class Norm:
    """The final norm inside a model.

    Attributes:
        module: the model's own.

    Raises:
        UnsupportedModelError: its decoder has none that is known.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        module = final_norm(model)
        form = norm_form(module)
        if form is None:
            raise UnsupportedModelError(
                f"the final norm {type(module).__name__} is neither an RMS norm nor a layer norm"
            )
        self.module: nn.Module = module
        self._form = form

    def read(self) -> FinalNorm:
        """The norm as plain numbers, with the weights it has now."""
        return self._form.of(self.module)


class LanguageHead:
    """The rows of a model's language-model head, behind its final norm.

    Args:
        model: the model.
        output: its output embeddings.
        norm: its final norm.

    Raises:
        UnsupportedModelError: its rows are quantised.
    """

    def __init__(self, model: PreTrainedModel, output: nn.Module, norm: Norm) -> None:
        check_head_weight(output)
        self._output: Any = output
        self._norm = norm
        text_config = model.config.get_text_config()
        self.softcap: float | None = getattr(text_config, "final_logit_softcapping", None)
        # Granite divides its logits by one, Cohere multiplies them by the other
        self.scale: float = getattr(text_config, "logit_scale", None) or 1.0
        self.scale /= getattr(text_config, "logits_scaling", None) or 1.0

    def rows(self, token_ids: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The head's rows (R, D) and biases (R,), float32, any constant logit scale folded in."""
        index = torch.tensor(list(token_ids), device=self._output.weight.device)
        bias = getattr(self._output, "bias", None)
        return (
            self._output.weight[index].float() * self.scale,
            None if bias is None else bias[index].float() * self.scale,
        )

    def logits(self, hidden: Tensor, token_ids: Sequence[int]) -> Tensor:
        """(..., R) float32 logits of `token_ids` from un-normed `hidden` (..., D)."""
        rows, bias = self.rows(token_ids)
        logits = F.linear(self._norm.read()(hidden), rows, bias)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def share(self, hidden: Tensor, token_ids: Sequence[int]) -> float:
        """How much of the probability `token_ids` hold, by softmax over the whole vocabulary.

        Args:
            hidden: (D,) a decoder's output before its final norm.
            token_ids: some tokens.
        """
        size = self._output.weight.shape[0]
        whole = torch.cat(  # in parts: in float32 a large head would take gigabytes
            [
                self.logits(hidden, range(start, min(start + _ROWS_AT_ONCE, size)))
                for start in range(0, size, _ROWS_AT_ONCE)
            ]
        )
        return whole.softmax(0)[list(token_ids)].sum().item()


@dataclass(frozen=True)
class NormForm:
    """How a norm's module computes.

    Attributes:
        kind: as in `FinalNorm`.
        offset: what it adds to its weight: 1 in Gemma's norms.
        eps: as in `FinalNorm`.
    """

    kind: Literal["rms", "layer"]
    offset: float
    eps: float

    def of(self, module: Any) -> FinalNorm:
        """The module as plain numbers, with the weights it has now."""
        bias = getattr(module, "bias", None)
        weight = module.weight.float() + self.offset
        return FinalNorm(self.kind, weight, None if bias is None else bias.float(), self.eps)


@torch.no_grad()
def norm_form(module: Any) -> NormForm | None:
    """How a norm computes, seen by trying it; None if it is neither an RMS norm nor a layer norm.

    The many norm classes of Hugging Face share no field that says so.
    """
    weight = getattr(module, "weight", None)
    names = [name for name in _EPS_NAMES if hasattr(module, name)]
    if weight is None or weight.ndim != 1 or not names:
        return None
    eps = getattr(module, names[0])
    eps = torch.finfo(weight.dtype).eps if eps is None else eps  # as torch does
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    row = (3 * noise + 1).to(weight)  # off centre, so that a mean taken off shows
    try:
        expected = module(row[None])[0].float()
    except TypeError:  # it takes more than what it norms, such as a gate
        return None
    for form in (NormForm("rms", 0, eps), NormForm("rms", 1, eps), NormForm("layer", 0, eps)):
        if same(form.of(module)(row), expected, rounding(weight.dtype)):
            return form
    return None


def rounding(dtype: torch.dtype) -> float:
    """The relative error that a few operations in `dtype` may make; float32 may mean TF32."""
    return 2e-3 if dtype in (torch.float32, torch.float64) else 3e-2


def same(result: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether two computations agree: `||result - expected|| <= tolerance * ||expected||`.

    Values that are NaN or infinite in `expected` are left out: bad weights look like bad
    code here.
    """
    finite = expected.isfinite()
    error = (result.float() - expected.float())[finite].norm()
    return bool(error <= tolerance * expected[finite].float().norm())
