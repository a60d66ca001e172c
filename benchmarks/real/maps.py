"""What a tower's early blocks make of pictures, kept in files for training the later ones.

They stay as they are, so that a step of training costs the later blocks only. Pictures are seen in
several views: whole, and cut to a part of them, half of these mirrored.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm
from transformers.image_processing_utils import BaseImageProcessor

from ragvl.data.document import Document
from ragvl.data.images import DECODING
from ragvl.files import whole_file
from ragvl.identity import name_of
from ragvl.mllm.convolutional import ConvolutionalVisionModel
from ragvl.weights import model_tensors, weights_name
from real.learning import Lesson

EARLY = 5  # blocks: to an eighth of the picture's size, by EfficientNet-Lite0
VIEWS = 3
_SHARD = 64  # pictures that are saved together: seconds of work
_MARGIN = 0.1  # of a picture's sides, added in white before it is cut
_LEAST = 0.65  # of the sides, then, that a cut keeps


@torch.no_grad()
def early(tower: ConvolutionalVisionModel, pixels: Tensor, blocks: int = EARLY) -> Tensor:
    """Maps (B, channels, height, width) behind the first `blocks`."""
    maps = tower.stem(pixels)
    for block in tower.blocks[:blocks]:
        maps = block(maps)
    return maps


def late(tower: ConvolutionalVisionModel, maps: Tensor, blocks: int = EARLY) -> Tensor:
    """What the tower pools of these: (B, hidden_size)."""
    for block in tower.blocks[blocks:]:
        maps = block(maps)
    return tower.with_classes(tower.head(maps).flatten(2).mean(2))


class Maps:
    """Maps of pictures in views, read from files.

    Args:
        files: of shards, each an array (pictures, views, channels, height, width) of float16.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._shards = [np.load(file, mmap_mode="r") for file in files]

    def __len__(self) -> int:
        return sum(len(shard) for shard in self._shards)

    def read(self, rows: Sequence[int] | NDArray[np.int64], views: NDArray[np.int64]) -> Tensor:
        """(rows, channels, height, width) float32, each in its view."""
        places = (
            (divmod(int(row), _SHARD), int(view)) for row, view in zip(rows, views, strict=True)
        )
        read = [self._shards[shard][inside, view] for (shard, inside), view in places]
        return torch.from_numpy(np.stack(read)).float()


def maps_of(
    lessons: Sequence[Lesson],
    tower: ConvolutionalVisionModel,
    processor: BaseImageProcessor,
    folder: Path,
    *,
    views: int = VIEWS,
    blocks: int = EARLY,
) -> Maps:
    """Computes the maps of lessons' pictures, or reads what was computed before.

    Raises:
        ImageError: a picture cannot be read.
    """
    weights = weights_name(model_tensors(tower)[0])
    own = folder / name_of("maps", weights, str(DECODING), views, blocks)
    files = []
    for start in tqdm(range(0, len(lessons), _SHARD), desc="views", unit="shard"):
        shard = lessons[start : start + _SHARD]
        file = own / f"{name_of('shard', *(str(one.picture.resolve()) for one in shard))}.npy"
        files.append(file)
        if not file.exists():
            computed = np.stack([_views(one, tower, processor, views, blocks) for one in shard])
            with whole_file(file) as draft, draft.open("wb") as opened:
                np.save(opened, computed)
    return Maps(files)


def _views(
    lesson: Lesson,
    tower: ConvolutionalVisionModel,
    processor: BaseImageProcessor,
    count: int,
    blocks: int,
) -> NDArray[np.float16]:
    picture = Document(lesson.picture).load()
    chance = random.Random(lesson.id)
    images = [picture, *(_cut(picture, chance) for _ in range(count - 1))]
    # What has a title only is a screenshot, or may have text in it
    images[2::2] = [ImageOps.mirror(one) if lesson.kind else one for one in images[2::2]]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return early(tower, pixels, blocks).to(torch.float16).numpy()


def _cut(picture: Image.Image, chance: random.Random) -> Image.Image:
    """A part of it, at any side, with some white around where it begins outside."""
    margin = round(_MARGIN * max(picture.size))
    wide = ImageOps.expand(picture, margin, fill="white")
    width, height = (round(side * chance.uniform(_LEAST, 1)) for side in wide.size)
    left, top = chance.randint(0, wide.width - width), chance.randint(0, wide.height - height)
    return wide.crop((left, top, left + width, top + height))
