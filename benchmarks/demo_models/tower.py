"""The demo's vision tower: small convolutions that learn to name what a picture shows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demo_models.optimise import optimise
from demo_models.training_set import TrainingSet
from ragvl.data.synthetic.drawing import SIZE
from ragvl.mllm.convolutional import ConvolutionalVisionConfig, ConvolutionalVisionModel
from ragvl.training.examples import IGNORE

logger = logging.getLogger(__name__)

STRIDE = 8  # pixels of a picture to a token, each way
HIDDEN_SIZE = 128
_BATCH_SIZE = 64
_LEARNING_RATE = 5e-3


def tower_config() -> ConvolutionalVisionConfig:
    return ConvolutionalVisionConfig(
        stages=[(48, 5, 2, 2, 1), (96, 5, 2, 3, 2)],
        stem_channels=24,
        hidden_size=HIDDEN_SIZE,
        image_size=SIZE,
    )


def train_tower(
    data: TrainingSet,
    *,
    validation: TrainingSet,
    steps: int,
    seed: int,
    checkpoint: Path,
    device: str = "cpu",
) -> ConvolutionalVisionModel:
    """Learns every field of the pictures' descriptions, from its tokens and from their mean.

    Words come later, with the retriever's text tower and the MLLM, to which the tower stays as it
    is: what it has to see is learned in minutes where no decoder is in between.
    """
    torch.manual_seed(seed)
    tower = ConvolutionalVisionModel(tower_config())
    use_batch_norm(tower)
    values = field_values([*data.descriptions, *validation.descriptions])
    model = _Student(tower, [len(known) for known in values.values()])
    model.to(device, memory_format=torch.channels_last)
    targets = field_targets(data.descriptions, values).to(device)
    right = field_targets(validation.descriptions, values)

    def loss_of_step(rng: np.random.Generator) -> Tensor:
        rows = rng.integers(len(targets), size=_BATCH_SIZE).tolist()
        pixels = _on(data.pixel_values(rows), device)
        return sum(
            F.cross_entropy(logits.float(), wanted, ignore_index=IGNORE, reduction="sum")
            for read in model(pixels)
            for logits, wanted in zip(read, targets[rows].T, strict=True)
        ) / len(rows)

    @torch.no_grad()
    def report() -> None:
        rows = range(min(len(right), 600))
        read, _ = model(_on(validation.pixel_values(rows), device))
        shares = {
            name: round(
                float((logits.argmax(1).cpu() == wanted)[wanted != IGNORE].float().mean()), 3
            )
            for name, logits, wanted in zip(values, read, right[: len(rows)].T, strict=True)
        }
        logger.info("tower: %s", shares)

    optimise(
        model,
        loss_of_step,
        steps=steps,
        seed=seed,
        name="tower",
        checkpoint=checkpoint,
        learning_rate=_LEARNING_RATE,
        dtype=torch.float32,
        report=report,
    )
    fold_batch_norm(tower)
    return tower.to(memory_format=torch.contiguous_format)


class _Student(nn.Module):
    """A tower, and two readings of each field: of the tokens it attends to, and of their mean."""

    def __init__(self, tower: ConvolutionalVisionModel, sizes: Sequence[int]) -> None:
        super().__init__()
        self.tower = tower
        self._sizes = list(sizes)
        self.attention = nn.Linear(HIDDEN_SIZE, len(sizes))
        self.values = nn.Linear(HIDDEN_SIZE, sum(sizes))
        self.of_mean = nn.Linear(HIDDEN_SIZE, sum(sizes))

    def forward(self, pixels: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Of each field, logits (B, values); both readings."""
        output = self.tower(pixels)
        tokens = output.last_hidden_state
        weights = self.attention(tokens).softmax(1)
        values = self.values(tokens).split(self._sizes, 2)
        attended = [(weights[:, :, i, None] * value).sum(1) for i, value in enumerate(values)]
        return attended, self.of_mean(output.pooler_output).split(self._sizes, 1)


def _on(pixels: Tensor, device: str) -> Tensor:
    return pixels.to(device, memory_format=torch.channels_last)


def field_values(descriptions: Sequence[str]) -> dict[str, list[str]]:
    """Of each field, such as the setting or the third thing seen outside, every value it takes."""
    values: dict[str, set[str]] = {}
    for description in descriptions:
        for field, value in _fields(description).items():
            values.setdefault(field, set()).add(value)
    return {field: sorted(known) for field, known in values.items()}


def field_targets(descriptions: Sequence[str], values: Mapping[str, Sequence[str]]) -> Tensor:
    """(descriptions, fields) int64: the value's index; `IGNORE` of what a picture does not show."""
    rows = []
    for description in descriptions:
        fields = _fields(description)
        rows.append(
            [
                known.index(fields[field]) if field in fields else IGNORE
                for field, known in values.items()
            ]
        )
    return torch.tensor(rows)


def _fields(description: str) -> dict[str, str]:
    """Of "Bodalin church in the snow, outside: red roof, white wall"."""
    head, shown = description.split(": ")
    thing, view = head.rsplit(", ", 1)
    _, kind, setting = thing.split(" ", 2)
    seen = {f"{view} {i}": value for i, value in enumerate(shown.split(", "))}
    return {"kind": kind, "setting": setting, "view": view, **seen}


# --- batch normalisation ------------------------------------------------------------------------


def use_batch_norm(tower: ConvolutionalVisionModel) -> None:
    """Normalises after every convolution, in place: without it a new tower learns far slower."""
    for module in list(tower.modules()):
        if isinstance(convolution := getattr(module, "convolution", None), nn.Conv2d):
            module.norm = nn.BatchNorm2d(convolution.out_channels, momentum=0.05)


@torch.no_grad()
def fold_batch_norm(tower: ConvolutionalVisionModel) -> None:
    """Puts each normalisation, as it is in eval mode, into its convolution's weights, in place."""
    for module in list(tower.modules()):
        norm = getattr(module, "norm", None)
        if isinstance(norm, nn.BatchNorm2d):
            convolution = module.convolution
            fused = torch.nn.utils.fuse_conv_bn_eval(convolution.eval(), norm.eval())
            convolution.weight, convolution.bias = fused.weight, fused.bias
            module.norm = nn.Identity()
