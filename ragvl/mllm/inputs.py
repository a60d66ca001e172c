"""What goes into a model: pictures and prompts, each prepared alone, and how they are batched."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ragvl.runtime import held_bytes, to_device

Features = dict[str, Tensor]
"""What a vision tower gives, as named tensors: see `ragvl.mllm.vision`."""


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """One picture, ready for any number of prompts.

    Attributes:
        tensors: what the processor made of it, by the model's argument names; on the CPU or the
            model's device. Of several pictures they are concatenated; see `join_images`.
        expansion: the text that stands for it in a prompt, one image token per visual token.
        num_tokens: how many visual tokens it becomes.
        features: what the vision tower gave for this picture alone, which need not run again then;
            None before it has.
    """

    tensors: dict[str, Tensor]
    expansion: str
    num_tokens: int
    features: Features | None = None

    def with_features(self, features: Features, unread: Collection[str] = ()) -> ImageInputs:
        """The picture without its pixels, which the vision tower has read.

        Its own tensors are on the CPU then, wherever it was prepared, so that any can be joined.

        Args:
            features: what it gave.
            unread: names of other tensors that only the tower reads.
        """
        # A model looks whether there are pixels; other tensors of whole numbers say where they were
        tensors = {
            name: torch.zeros((1,) * x.ndim, dtype=x.dtype)
            if x.is_floating_point() or name in unread
            else x.cpu()
            for name, x in self.tensors.items()
        }
        return replace(self, tensors=tensors, features=features)

    @property
    def nbytes(self) -> int:
        """The memory that its tensors keep from being freed, in bytes."""
        return held_bytes([*self.tensors.values(), *(self.features or {}).values()])


@dataclass(frozen=True, eq=False)
class Prompt:
    """A tokenised prompt with its pictures, in order.

    The token ids of two prompts with the same picture and the same beginning share a prefix, and
    what the model computes for that prefix is the same in both, if its attention is causal.
    """

    input_ids: list[int]
    images: tuple[ImageInputs, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


class UnusableImageError(ValueError):
    """The model's image processor refuses a picture, as Qwen-VL's does a very long strip."""


class PromptTooLongError(ValueError):
    """A prompt has more tokens than the model's context.

    It can be made from its message alone, as worker processes do that hand an error on.

    Attributes:
        index: the prompt's place in the call that raised it.
        length: how many tokens it has.
        max_length: how many it may have.
    """

    def __init__(
        self, message: str = "", *, index: int = 0, length: int = 0, max_length: int = 0
    ) -> None:
        super().__init__(message)
        self.index = index
        self.length = length
        self.max_length = max_length

    @classmethod
    def of(cls, what: str, index: int, length: int, max_length: int) -> PromptTooLongError:
        """The error about the prompt that `what` names."""
        message = (
            f"{what} has {length} tokens and the model takes at most {max_length}: shorten its "
            "text (caption_tokens= cuts captions), or use fewer or smaller pictures"
        )
        return cls(message, index=index, length=length, max_length=max_length)


def common_prefix_length(first: Sequence[object], second: Sequence[object]) -> int:
    """How many items the two sequences share from their start."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def pad_ids(
    prompts: Sequence[Prompt], pad_id: int, padding_side: str, length: int = 0
) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` (B, T) int64; T is the longest prompt's, or `length`."""
    ids = [torch.tensor(prompt.input_ids) for prompt in prompts]
    ones = [torch.ones_like(row) for row in ids]
    batch = {
        "input_ids": pad_sequence(ids, True, pad_id, padding_side),
        "attention_mask": pad_sequence(ones, True, 0, padding_side),
    }
    missing = max(0, length - batch["input_ids"].shape[1])
    pads = (missing, 0) if padding_side == "left" else (0, missing)
    return {
        name: F.pad(x, pads, value=pad_id if name == "input_ids" else 0)
        for name, x in batch.items()
    }


def join_images(images: Sequence[ImageInputs], joins: Mapping[str, int]) -> dict[str, Tensor]:
    """The pictures' tensors, concatenated; empty for no pictures.

    Where other dimensions differ (models that cut a picture into as many tiles as it needs), the
    smaller ones get zeros at their ends. Such models know the true number of tiles themselves.

    Args:
        images: the pictures.
        joins: along which dimension tensors are concatenated, by their names; by default the first.
    """
    names = images[0].tensors if images else ()
    return {
        name: _pad_and_cat([image.tensors[name] for image in images], joins.get(name, 0))
        for name in names
    }


def as_one(
    tensors: dict[str, Tensor], images: Sequence[ImageInputs], features: Features
) -> ImageInputs:
    """Pictures as if they were one: what a model makes of them joined.

    Args:
        tensors: of all of them, joined, without their pixels.
        images: them.
        features: what the vision tower gave for them together.
    """
    expansion = "".join(image.expansion for image in images)
    num_tokens = sum(image.num_tokens for image in images)
    return ImageInputs(tensors, expansion, num_tokens, features)


def placed(
    batch: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A batch on `device`, its floating tensors in `dtype`."""
    return {
        name: to_device(x, device).to(dtype if x.is_floating_point() else x.dtype)
        for name, x in batch.items()
    }


def probe_image(
    width: int = 64, height: int = 48, color: tuple[int, int, int] = (200, 120, 40)
) -> Image.Image:
    """A small picture to try a processor and a model with."""
    return Image.new("RGB", (width, height), color)


def _pad_and_cat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    target = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [size - own for size, own in zip(target, tensor.shape, strict=True)]
        missing[dim] = 0
        # F.pad counts dimensions from the last to the first, a pair (before, after) for each
        pads = [value for amount in reversed(missing) for value in (0, amount)]
        padded.append(F.pad(tensor, pads) if any(pads) else tensor)
    return torch.cat(padded, dim)
