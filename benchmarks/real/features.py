"""What a tower makes of pictures, computed once and kept for what is trained behind it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ragvl.data.document import Document
from ragvl.data.images import DECODING
from ragvl.files import whole_file
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
        pictures: files, which do not change.
        tower: gives `pooler_output`.
        processor: turns a picture into the tower's inputs.
        folder: keeps what is computed, in shards, so that work that was broken off goes on.

    Returns:
        (pictures, hidden_size) float32.

    Raises:
        ImageError: a picture cannot be read.
    """
    own = folder / name_of("tower", weights_name(model_tensors(tower)[0]), str(DECODING))
    own.mkdir(parents=True, exist_ok=True)
    known: dict[str, Tensor] = {}
    for path in own.glob("*.safetensors"):
        known |= _read(path)
    names = [str(path.resolve()) for path in pictures]
    missing = sorted(set(names) - known.keys())
    for start in tqdm(range(0, len(missing), _SHARD), desc="pictures", unit="shard"):
        shard = missing[start : start + _SHARD]
        features = _features(shard, tower, processor)
        path = own / f"{name_of('shard', *shard)}.safetensors"
        with whole_file(path) as draft:
            save_file({"features": features}, draft, {"pictures": json.dumps(shard)})
        known |= zip(shard, features, strict=True)
    return torch.stack([known[name] for name in names])


def _read(path: Path) -> dict[str, Tensor]:
    """Features by their pictures."""
    with safe_open(path, "pt") as file:
        pictures = json.loads(file.metadata()["pictures"])
        return dict(zip(pictures, file.get_tensor("features"), strict=True))


def _features(
    pictures: Sequence[str], tower: PreTrainedModel, processor: BaseImageProcessor
) -> Tensor:
    features = []
    for start in range(0, len(pictures), _BATCH):
        images = [Document(path).load() for path in pictures[start : start + _BATCH]]
        inputs = processor(images, return_tensors="pt")
        features.append(tower(**inputs).pooler_output.float())
    return torch.cat(features)
