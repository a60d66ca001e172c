"""The parts of a model that ragvl needs, found without its weights."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ragvl.messages import shown
from ragvl.model_files import UnsupportedModelError

_NORM_NAMES = (
    *("norm", "final_layernorm", "final_layer_norm", "final_norm", "ln_f"),
    "embedding_norm",  # LFM2's, which comes last in spite of its name
)


def check_structure(model: PreTrainedModel) -> None:
    """Refuses a model whose parts ragvl does not know; its weights may be on the meta device.

    Raises:
        UnsupportedModelError: the message says what it lacks.
    """
    check_decoder_alone(model.config)
    decoder_layers(model)
    final_norm(model)
    if not hasattr(model.base_model, "get_image_features"):
        raise UnsupportedModelError(
            f"{type(model.base_model).__name__} has no get_image_features, so what it makes of a "
            "picture is not to be had"
        )


def check_decoder_alone(config: PreTrainedConfig) -> None:
    """Refuses a model that reads and writes in two different parts.

    Raises:
        UnsupportedModelError: it does.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{shown(config.model_type)} has an encoder for what it is given and a decoder for "
            "what it writes: ragvl needs one decoder for both, in which pictures stand among the "
            "tokens"
        )


def decoder_of(model: PreTrainedModel) -> Any:
    """The part of a model that has its layers; some call it together with its head a decoder."""
    decoder: Any = model.get_decoder()
    while not hasattr(decoder, "layers"):
        inner = decoder.get_decoder() if hasattr(decoder, "get_decoder") else decoder
        if inner is decoder:
            inner = getattr(decoder, "model", decoder)  # what Llama 4's does not find itself
        if inner is decoder:
            break
        decoder = inner
    return decoder


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The layers of a model's decoder.

    Raises:
        UnsupportedModelError: it has no list of layers.
    """
    decoder = decoder_of(model)
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not layers:
        raise UnsupportedModelError(f"{type(decoder).__name__} has no list of layers")
    return layers


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm behind a decoder's last layer.

    Raises:
        UnsupportedModelError: it has none under a known name.
    """
    decoder = decoder_of(model)
    norms = (getattr(decoder, name, None) for name in _NORM_NAMES)
    norm = next((module for module in norms if isinstance(module, nn.Module)), None)
    if norm is None:
        raise UnsupportedModelError(
            f"the decoder {type(decoder).__name__} has no final norm under any of the names "
            f"{', '.join(_NORM_NAMES)}"
        )
    return norm
