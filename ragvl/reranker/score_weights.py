"""Where a checkpoint keeps its score network, and reading it from there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ragvl.checkpoints import Checkpoint
from ragvl.messages import shown
from ragvl.mllm import UnsupportedModelError
from ragvl.model_files import (
    ADAPTER_WEIGHTS,
    CONFIG,
    PEFT_MODEL,
    read_json,
    shown_list,
    weight_files,
    weight_names,
)
from ragvl.reranker.heads import Layer, Pooling, ScoreNetwork


@dataclass(frozen=True)
class LayerWeights:
    """A layer of a score network, by its tensors' names.

    Attributes:
        weight: the name of its weight.
        bias: the name of its bias, or None.
        activation: see `Layer`.
        file: the safetensors file that holds them, relative to the folder that describes the
            reranker; None where they stand among the model's own weights, or adapters'.
    """

    weight: str
    bias: str | None = None
    activation: str = "identity"
    file: str | None = None

    @property
    def names(self) -> list[str]:
        """The names of its tensors."""
        return [name for name in (self.weight, self.bias) if name is not None]


@dataclass(frozen=True)
class ScoreWeights:
    """A score network, by where its weights are in a checkpoint's files.

    Attributes:
        layers: from the decoder's width to 1.
        pooling, scale, bias: see `ScoreNetwork`.

    Examples:
        >>> ScoreWeights((LayerWeights("score.weight"),), pooling="mean")
    """

    layers: tuple[LayerWeights, ...]
    pooling: Pooling = "last"
    scale: float = 1.0
    bias: float = 0.0

    @property
    def among_model(self) -> list[str]:
        """The names of its tensors that stand among the model's own weights."""
        return [name for layer in self.layers if layer.file is None for name in layer.names]

    def read(self, checkpoint: Checkpoint) -> ScoreNetwork:
        """The network, from a checkpoint's files; from its adapters what they hold of it.

        Raises:
            OSError: a file is missing or cannot be read.
            UnsupportedModelError: weights are missing, hold NaN, or fit neither each other nor the
                width that the configuration says; the message names the file.
        """
        layers = tuple(_layer(layer, checkpoint) for layer in self.layers)
        try:
            network = ScoreNetwork(layers, self.pooling, self.scale, self.bias)
            if (width := _declared_width(checkpoint.folder)) is not None:
                network.check_width(width)
            return network
        except UnsupportedModelError as error:
            folder = checkpoint.adapters or checkpoint.folder
            raise UnsupportedModelError(f"{shown(folder)}: {error}") from error


def _layer(layer: LayerWeights, checkpoint: Checkpoint) -> Layer:
    names = layer.names
    if layer.file is None:
        where = checkpoint.folder
        tensors = read_tensors(weight_files(where), names)
        if checkpoint.adapters is not None:
            tensors |= _adapted(checkpoint.adapters, names)
    else:
        where = checkpoint.modules_folder / layer.file
        tensors = read_tensors([where], names)
    if missing := [name for name in names if name not in tensors]:
        raise UnsupportedModelError(
            f"{shown(where)} lacks weights of the score network, which would be random: "
            f"{shown_list(missing)}"
        )
    if layer.file is not None and (unread := weight_names(where).difference(names)):
        raise UnsupportedModelError(
            f"{shown(where)} holds weights that its layer is not said to have: "
            f"{shown_list(sorted(unread))}"
        )
    bias = None if layer.bias is None else tensors[layer.bias]
    return Layer(tensors[layer.weight], bias, layer.activation)


def _adapted(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of these names that PEFT has put whole beside its adapters."""
    saved = {f"{PEFT_MODEL}{name}": name for name in names}
    read = read_tensors([folder / ADAPTER_WEIGHTS], saved)
    return {saved[name]: tensor for name, tensor in read.items()}


def _declared_width(folder: Path) -> int | None:
    """Of a model's states, by its configuration as it lies there; None if it does not say."""
    settings = read_json(folder / CONFIG)
    text = settings.get("text_config", settings)
    width = text.get("hidden_size") if isinstance(text, dict) else None
    return width if isinstance(width, int) else None


def read_tensors(files: Iterable[Path], names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of these names that safetensors files hold, in float32.

    Raises:
        OSError: a file is missing or cannot be read.
        UnsupportedModelError: a file is damaged.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        if not os.path.lexists(path):
            raise FileNotFoundError(f"{shown(path)} is missing; the model's weights are not whole")
        if held := weight_names(path).intersection(names):
            with safe_open(path, framework="pt") as opened:
                tensors |= {name: opened.get_tensor(name).to(torch.float32) for name in held}
    return tensors
