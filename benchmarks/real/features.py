"""What a tower makes of pictures, computed once and kept for what is trained behind it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ragvl.data.document import Document
from ragvl.identity import name_of
from ragvl.weights import model_tensors, weights_name

_SHARD = 64  # pictures that are saved together: seconds of work
_BATCH = 16


@torch.no_grad()
def features_of(
    pictures: Sequence[Path],
    tower: PreTrainedModel,
    processor: BaseImageProcessor,
    folder: Path,
) -> Tensor:
    """A tower's pooled output.

    Args:
        pictures: files.
        tower: gives `pooler_output`.
        processor: turns a picture into the tower's inputs.
        folder: keeps what is computed, in shards, so that work that was broken off goes on.

    Returns:
        (pictures, hidden_size) float32.

    Raises:
        ImageError: a picture cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tower_name = weights_name(model_tensors(tower)[0])
    shards = [torch.empty(0, tower.config.hidden_size)]
    for start in tqdm(range(0, len(pictures), _SHARD), desc="pictures", unit="shard"):
        shard = pictures[start : start + _SHARD]
        path = folder / f"{name_of('features', tower_name, *map(str, shard))}.safetensors"
        if not path.exists():
            unfinished = path.with_suffix(f".{os.getpid()}.part")
            save_file({"features": _features(shard, tower, processor)}, unfinished)
            unfinished.replace(path)
        shards.append(load_file(path)["features"])
    return torch.cat(shards)


def _features(
    pictures: Sequence[Path], tower: PreTrainedModel, processor: BaseImageProcessor
) -> Tensor:
    features = []
    for start in range(0, len(pictures), _BATCH):
        images = [Document(path).load() for path in pictures[start : start + _BATCH]]
        inputs = processor(images, return_tensors="pt")
        features.append(tower(**inputs).pooler_output.float())
    return torch.cat(features)
