"""What a record below the device holds.

Of a prefix its keys and values, or the visual tokens they come from; of a picture these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from ragvl.mllm import Features, ImageInputs, Prefilled, Prompt
from ragvl.prefix_cache.record import PrefixRecord, are_finite
from ragvl.runtime import to_device

Kind = Literal["kv", "features"]


class UnusableRecordError(ValueError):
    """A record is whole, and is not what a prefix of this model would be."""


def kv_record(prefix: Prompt, done: Prefilled, tensors: dict[str, Tensor]) -> PrefixRecord:
    """A record of what `PagePool.read` gave for a prefix."""
    return _record("kv", prefix, done, tensors)


def features_record(prefix: Prompt, done: Prefilled) -> PrefixRecord:
    """A record of the visual tokens, and of what else the decoder needs of the pictures."""
    assert done.pictures is not None
    return _record("features", prefix, done, _tensors_of(done.pictures))


def picture_record(image: ImageInputs) -> PrefixRecord:
    """A record of a picture with its features."""
    return PrefixRecord(_tensors_of(image), {"kind": "picture", **_words_of([image])})


def picture_of(record: PrefixRecord, device: torch.device) -> ImageInputs:
    """The picture with its features.

    Raises:
        UnusableRecordError: the record is none of a picture, or holds NaN or infinity.
    """
    if record.info.get("kind") != "picture":
        raise UnusableRecordError("its record is none of a picture")
    if not are_finite(record.tensors.values()):
        raise UnusableRecordError("its record holds NaN or infinity")
    return _image_of(record, device)


def form_of(image: ImageInputs) -> dict[str, tuple[object, ...]]:
    """What is the same of all of a model's pictures with their features."""
    form: dict[str, tuple[object, ...]] = {
        f"image/{name}": (x.dtype, x.dim()) for name, x in image.tensors.items()
    }
    sizes: dict[tuple[str, torch.dtype], int] = {}
    floats = ((path, x) for path, x in (image.features or {}).items() if x.is_floating_point())
    for path, x in floats:
        name = "/".join(part for part in path.split("/") if not part.isdecimal())
        sizes[name, x.dtype] = sizes.get((name, x.dtype), 0) + x.numel()
    for (name, dtype), size in sizes.items():
        form[f"features/{name}"] = (dtype, Fraction(size, image.num_tokens))
    return form


def kind_of(record: PrefixRecord) -> Kind:
    """Which of the two it is.

    Raises:
        UnusableRecordError: it is none of them.
    """
    match record.info.get("kind"):
        case "kv" | "features" as kind:
            return kind
    raise UnusableRecordError("its record does not say what it holds")


def prefix_of(record: PrefixRecord) -> tuple[list[int], tuple[str, ...], int]:
    """The prefix's token ids, its pictures' expansions, and the position after it.

    Raises:
        UnusableRecordError: the record lacks one of them, or they are none.
    """
    ids = record.tensors.get("input_ids")
    if ids is None or ids.dtype != torch.int32 or ids.dim() != 1 or not len(ids) or ids.min() < 0:
        raise UnusableRecordError("its record has no token ids")
    try:
        expansions, _ = _expansions_of(record)
        next_position = int(record.info["next_position"])
    except (KeyError, ValueError) as error:
        raise UnusableRecordError("its record does not say where it ends") from error
    if not 0 < next_position <= len(ids) + 1:  # some models count from 1
        raise UnusableRecordError("its record ends at a position that its tokens do not reach")
    return ids.tolist(), expansions, next_position


def features_of(record: PrefixRecord, device: torch.device) -> tuple[Prompt, Features]:
    """What `MLLM.prefill` takes to compute the prefix from its visual tokens.

    Raises:
        UnusableRecordError: it has none.
    """
    ids, _, _ = prefix_of(record)
    image = _image_of(record, device)
    assert image.features is not None
    return Prompt(ids, (image,)), image.features


def _record(
    kind: Kind, prefix: Prompt, done: Prefilled, tensors: dict[str, Tensor]
) -> PrefixRecord:
    info = {
        "kind": kind,
        **_words_of(prefix.images),
        "next_position": str(done.next_position),
    }
    ids = torch.tensor(prefix.input_ids, dtype=torch.int32)
    return PrefixRecord({"input_ids": ids, **tensors}, info)


def _words_of(images: Sequence[ImageInputs]) -> dict[str, str]:
    return {
        "expansions": json.dumps([image.expansion for image in images]),
        "num_image_tokens": str(sum(image.num_tokens for image in images)),
    }


def _expansions_of(record: PrefixRecord) -> tuple[tuple[str, ...], int]:
    """The pictures' expansions, and how many visual tokens are in them.

    Raises:
        KeyError, ValueError: it does not say so.
    """
    expansions = json.loads(record.info["expansions"])
    if not isinstance(expansions, list) or not all(isinstance(x, str) for x in expansions):
        raise ValueError("expansions are no list of texts")
    "".join(expansions).encode()  # has no half characters
    return tuple(expansions), int(record.info["num_image_tokens"])


def _tensors_of(image: ImageInputs) -> dict[str, Tensor]:
    """Copies of a picture's tensors and features on the CPU, of their own memory."""
    tensors = {f"features/{path}": x for path, x in (image.features or {}).items()}
    tensors |= {f"image/{name}": x for name, x in image.tensors.items()}
    return {
        name: x.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, x in tensors.items()
    }


def _image_of(record: PrefixRecord, device: torch.device) -> ImageInputs:
    """The picture of a record with its features, which are on `device`.

    Raises:
        UnusableRecordError: it has none.
    """
    tensors = {}
    features = {}
    for name, x in record.tensors.items():
        group, _, path = name.partition("/")
        if group == "image":
            tensors[path] = x
        elif group == "features":
            features[path] = to_device(x, device)
    if not features:  # a model would compute the prompt as one without a picture
        raise UnusableRecordError("its record has no visual tokens")
    try:
        expansions, num_tokens = _expansions_of(record)
    except (KeyError, ValueError) as error:
        raise UnusableRecordError("its record does not say what stands for the picture") from error
    return ImageInputs(tensors, "".join(expansions), num_tokens, features)
