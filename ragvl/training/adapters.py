"""Which weights train: all but frozen ones, or low-rank adapters on the layers that are named."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners import lora as peft_lora
from torch import Tensor, nn
from transformers import PreTrainedModel

from ragvl.messages import quoted
from ragvl.mllm import MLLM, is_plain_product

logger = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"
_HALF = (torch.bfloat16, torch.float16)  # what autocast computes in
_ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # by PEFT and by merging


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters, as PEFT has them, on layers that may train.

    Args:
        rank: 0 trains the weights themselves.
        alpha: scale; 0 is twice the rank.
        dropout: of the adapters' input.
        target_modules: a regular expression that a layer's whole name matches, or a list of names
            or ends of names, as in PEFT; "all-linear" is every linear layer that may train. Null is
            every linear layer of the decoder. Frozen layers that match are left out.

    Raises:
        ValueError: a number is out of range, `target_modules` is no regular expression, or names
            layers although `rank` is 0.
    """

    rank: int = 0
    alpha: int = 0
    dropout: float = 0.0
    target_modules: list[str] | str | None = None

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha < 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}: expected 0 or "
                "more, and a dropout below 1"
            )
        if not self.rank and self.target_modules is not None:
            raise ValueError("target_modules is given, but rank=0 means that there are no adapters")
        if isinstance(self.target_modules, str):
            try:
                re.compile(self.target_modules)
            except re.error as error:
                raise ValueError(
                    f"target_modules={quoted(self.target_modules)} is no regular expression: "
                    f"{error}"
                ) from None
        elif self.target_modules is not None:
            if not self.target_modules:
                raise ValueError("target_modules=[] names no layers; null is all of the decoder's")
            # As it is read back from a run's notes
            object.__setattr__(self, "target_modules", list(self.target_modules))


@dataclass(frozen=True)
class LayersToAdapt:
    """Full names of layers.

    Attributes:
        targets: those that get adapters; none of them is frozen.
        left_out: those that match as well and cannot have any, and why.
    """

    targets: list[str]
    left_out: dict[str, str]


def trainable(mllm: MLLM, lora: LoraSettings, *, freeze_vision: bool) -> Any:
    """`mllm.model` with gradients where it is to train, wrapped by PEFT if there are adapters.

    Raises:
        ValueError: see `layers_to_adapt`.
    """
    model = mllm.model
    adapted = layers_to_adapt(mllm, lora, freeze_vision=freeze_vision) if lora.rank else None
    frozen = _vision(model) if freeze_vision else set()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter not in frozen)
    if adapted is None:
        return model
    _log(model, adapted, freeze_vision=freeze_vision)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or 2 * lora.rank,
        lora_dropout=lora.dropout,
        target_modules=adapted.targets,
    )
    config._register_custom_module({nn.Linear: _adapted})
    return get_peft_model(model, config)


def _adapted(layer: nn.Module, *args: Any, **kwargs: Any) -> _AdaptedLinear | None:
    """None leaves the layer to PEFT: quantized ones are subclasses of `nn.Linear`."""
    return _AdaptedLinear(layer, *args, **kwargs) if is_plain_product(layer) else None


class _AdaptedLinear(peft_lora.Linear):
    """Computes its adapters in the dtype of what it is given; their weights stay float32.

    PEFT would cast inputs and outputs to float32 and back, for two products that are small: a third
    of a step in bfloat16 on a CPU. This is what mixed precision does.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.dtype not in _HALF or self.disable_adapters or self.merged:
            whole: Tensor = super().forward(x, *args, **kwargs)
            return whole
        result: Tensor = self.base_layer(x, *args, **kwargs)
        with torch.autocast(x.device.type, x.dtype):
            for name in self.active_adapters:
                low = self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name]
                result = result + self.lora_B[name](low)
        return result


def layers_to_adapt(mllm: MLLM, lora: LoraSettings, *, freeze_vision: bool) -> LayersToAdapt:
    """The layers that `lora.target_modules` names, of which frozen ones are left out.

    So are the head, whose weights the loss reads as they are, and layers that share their weights
    with others, which merging would change as well.

    Raises:
        ValueError: `lora.target_modules`, or an entry of it, names no layer that can have adapters.
    """
    layers = _layers(mllm.model)
    barred = _barred(mllm.model, layers, freeze_vision=freeze_vision)
    matching: set[str] = set()
    for setting, names in _matches(mllm.model, layers, lora.target_modules).items():
        if names <= barred.keys():
            raise ValueError(_of_no_use(setting, names, layers, barred))
        matching |= names
    return LayersToAdapt(
        [name for name in layers if name in matching and name not in barred],
        {name: why for name, why in barred.items() if name in matching},
    )


def _log(model: PreTrainedModel, adapted: LayersToAdapt, *, freeze_vision: bool) -> None:
    logger.info("%d layers get adapters", len(adapted.targets))
    by_reason: dict[str, list[str]] = {}
    for name, why in adapted.left_out.items():
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        logger.warning(
            "lora.target_modules: %d layers get adapters; %d that match do not, such as %s: %s",
            len(adapted.targets),
            len(names),
            names[0],
            why,
        )
    layers, vision = _layers(model), _vision(model)
    if not freeze_vision and not any(layers[name].weight in vision for name in adapted.targets):
        logger.warning(
            "freeze_vision=False: with adapters nothing else trains, and lora.target_modules names "
            "no layer of the vision tower or the projector"
        )


def _matches(
    model: PreTrainedModel, layers: Mapping[str, nn.Module], setting: list[str] | str | None
) -> dict[str, set[str]]:
    """Names of layers by the pattern or list entry that they match."""
    linear = {name for name, module in layers.items() if isinstance(module, nn.Linear)}
    if setting is None:
        decoder = set(model.get_decoder().modules())
        return {"null": {name for name in linear if layers[name] in decoder}}
    if setting == ALL_LINEAR:
        return {ALL_LINEAR: linear - _names_of(layers, model.get_output_embeddings())}
    if isinstance(setting, str):
        pattern = re.compile(setting)
        return {setting: {name for name in layers if pattern.fullmatch(name)}}
    return {
        entry: {name for name in layers if f".{name}".endswith(f".{entry}")} for entry in setting
    }


def _barred(
    model: PreTrainedModel, layers: Mapping[str, nn.Module], *, freeze_vision: bool
) -> dict[str, str]:
    """Layers that can have no adapters, and why."""
    frozen = _vision(model) if freeze_vision else set()
    holders: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(parameter, []).append(name.rpartition(".")[0])
    head = _names_of(layers, model.get_output_embeddings())
    barred = {}
    for name, module in layers.items():
        own = list(module.parameters())
        others = {other for parameter in own for other in holders[parameter]} - {name}
        if not frozen.isdisjoint(own):
            barred[name] = "freeze_vision keeps the vision tower and the projector as they are"
        elif name in head:
            barred[name] = "the loss reads the head's own weights"
        elif others:
            barred[name] = f"its weights are {min(others)}'s too, which merging would change"
    return barred


def _of_no_use(
    setting: str, names: set[str], layers: Mapping[str, nn.Module], barred: Mapping[str, str]
) -> str:
    where = f"lora.target_modules: {quoted(setting)} matches"
    if names:
        first = min(names)
        return f"{where} {len(names)} layers that cannot train, such as {first}: {barred[first]}"
    example = next((name for name in layers if name not in barred), "none")
    return f"{where} no layer; a layer's whole name is such as {example!r}"


def _vision(model: PreTrainedModel) -> set[nn.Parameter]:
    """The weights of vision tower and projector: all that is neither decoder nor head."""
    return set(model.base_model.parameters()) - set(model.get_decoder().parameters())


def _names_of(layers: Mapping[str, nn.Module], module: nn.Module | None) -> set[str]:
    return {name for name, layer in layers.items() if layer is module}


def _layers(model: PreTrainedModel) -> dict[str, Any]:
    """The layers that can have adapters, by their full names."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, _ADAPTABLE)
    }
