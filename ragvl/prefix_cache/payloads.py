"""What a record below the device holds: keys and values, or the visual tokens they come from."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ragvl.mllm import Features, ImageInputs, Prefilled, Prompt
from ragvl.prefix_cache.record import PrefixRecord
from ragvl.runtime import to_device

Kind = Literal["kv", "features"]


class UnusableRecordError(ValueError):
    """A record is whole, and is not what a prefix of this model would be."""


def kv_record(prefix: Prompt, done: Prefilled, tensors: dict[str, Tensor]) -> PrefixRecord:
    """A record of what `PagePool.read` gave for a prefix."""
    return _record("kv", prefix, done, tensors)


def features_record(prefix: Prompt, done: Prefilled) -> PrefixRecord:
    """A record of the visual tokens, and of what else the decoder needs of the picture."""
    (image,) = prefix.images
    tensors = {f"features/{path}": x for path, x in (done.features or {}).items()}
    for name, x in image.tensors.items():
        # The vision tower has read the pixels; the model only looks whether there were some
        tensors[f"image/{name}"] = x[:0].flatten() if x.is_floating_point() else x
    owned = {
        name: x.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, x in tensors.items()
    }
    return _record("features", prefix, done, owned)


def kind_of(record: PrefixRecord) -> Kind:
    """Which of the two it is.

    Raises:
        UnusableRecordError: it is none of them.
    """
    match record.info.get("kind"):
        case "kv" | "features" as kind:
            return kind
    raise UnusableRecordError("its record does not say what it holds")


def prefix_of(record: PrefixRecord) -> tuple[list[int], str, int]:
    """The prefix's token ids, its picture's expansion, and the position after it.

    Raises:
        UnusableRecordError: the record lacks one of them, or they are none.
    """
    ids = record.tensors.get("input_ids")
    if ids is None or ids.dtype != torch.int32 or ids.dim() != 1 or not len(ids) or ids.min() < 0:
        raise UnusableRecordError("its record has no token ids")
    try:
        expansion, next_position = record.info["expansion"], int(record.info["next_position"])
        expansion.encode()  # has no half characters
    except (KeyError, ValueError) as error:
        raise UnusableRecordError("its record does not say where it ends") from error
    if not 0 < next_position <= len(ids) + 1:  # some models count from 1
        raise UnusableRecordError("its record ends at a position that its tokens do not reach")
    return ids.tolist(), expansion, next_position


def features_of(record: PrefixRecord, device: torch.device) -> tuple[Prompt, Features]:
    """What `MLLM.prefill` takes to compute the prefix from its visual tokens.

    Raises:
        UnusableRecordError: it has none.
    """
    ids, expansion, _ = prefix_of(record)
    images = {}
    features = {}
    for name, x in record.tensors.items():
        group, _, path = name.partition("/")
        if group == "image":
            images[path] = x
        elif group == "features":
            features[path] = to_device(x, device)
    if not features:  # a model would compute the prefix of a prompt without a picture
        raise UnusableRecordError("its record has no visual tokens")
    image = ImageInputs(images, expansion, int(record.info["num_image_tokens"]))
    return Prompt(ids, (image,)), features


def _record(
    kind: Kind, prefix: Prompt, done: Prefilled, tensors: dict[str, Tensor]
) -> PrefixRecord:
    (image,) = prefix.images
    info = {
        "kind": kind,
        "expansion": image.expansion,
        "num_image_tokens": str(image.num_tokens),
        "next_position": str(done.next_position),
    }
    ids = torch.tensor(prefix.input_ids, dtype=torch.int32)
    return PrefixRecord({"input_ids": ids, **tensors}, info)
