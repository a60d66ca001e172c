"""What a model is made of: its tensors, adapters, settings, and code put around its modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from torch import Tensor, nn

from ragvl.weights.names import UnnamedWeightsError

_PLAIN = (bool, int, float, str)
_IDLE_FIELDS = {"name_or_path", "training"}  # where it came from; and see `MLLM.environment_name`
_KNOWN_CODE = {"accelerate", "peft", "ragvl", "torch", "transformers"}


def model_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model's tensors by name: those that are saved with it, and those that it computes itself.

    The first are its parameters and persistent buffers, the others buffers such as rotary
    frequencies, which follow from its configuration unless somebody changes them. What accelerate's
    hooks have offloaded to the CPU is taken from there.

    Raises:
        UnnamedWeightsError: a weight is offloaded to a disk.
    """
    saved: dict[str, Tensor] = {}
    computed: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        offloaded = offloaded_weights(module)
        held = chain(module._parameters.items(), module._buffers.items(), _scales(module))
        for name, tensor in held:
            if tensor is None:
                continue
            full = f"{path}.{name}" if path else name
            if tensor.device.type == "meta" and offloaded is not None:
                tensor = _in_memory(full, offloaded, name)
            group = computed if name in module._non_persistent_buffers_set else saved
            group[full] = tensor
    return saved, computed


def _scales(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The scales of 8-bit weights that bitsandbytes moves out of them at the first call."""
    scales = getattr(vars(module).get("state"), "SCB", None)
    if isinstance(scales, Tensor):
        yield "SCB", scales


def _in_memory(full: str, offloaded: Mapping[str, Tensor], name: str) -> Tensor:
    tensor = offloaded[name]
    if tensor is not offloaded[name]:  # read from a file each time, and it may be another then
        raise UnnamedWeightsError(
            f"weight {full!r} is offloaded to a disk: offload it to the CPU's memory instead"
        )
    return tensor


def offloaded_weights(module: nn.Module) -> Mapping[str, Tensor] | None:
    """A module's own weights where accelerate keeps them while they are not in use, if it does."""
    hook: Any = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        if (weights := getattr(one, "weights_map", None)) is not None:
            return weights
    return None


def adapted_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers that have PEFT's adapters, with their paths."""
    return [(path, one) for path, one in model.named_modules() if "_disable_adapters" in vars(one)]


def adapter_state(layer: nn.Module) -> tuple[Any, ...]:
    """How a layer's adapters stand: disabled, active, merged and scaled."""
    own = vars(layer)
    return (
        own["_disable_adapters"],
        str(own.get("_active_adapter")),
        str(own.get("merged_adapters")),
        str(own.get("scaling")),
    )


def plain_fields(module: nn.Module) -> dict[str, Any]:
    """The settings that a module holds itself, such as a norm's epsilon."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, _PLAIN) and not name.startswith("_") and name not in _IDLE_FIELDS
    }


def outside_code(model: nn.Module) -> list[Any]:
    """What somebody has put around modules' own `forward`: hooks, or another one in its place.

    That of known libraries is left out: it follows from the configuration and the adapters.
    """
    functions = chain.from_iterable(
        (
            vars(module).get("forward"),
            *module._forward_hooks.values(),
            *module._forward_pre_hooks.values(),
        )
        for module in model.modules()
    )
    return [one for one in functions if one is not None and not _is_known(one)]


def _is_known(function: Any) -> bool:
    function = getattr(function, "func", function)  # of a partial
    origin = getattr(function, "__module__", None) or type(function).__module__
    return origin.partition(".")[0] in _KNOWN_CODE
