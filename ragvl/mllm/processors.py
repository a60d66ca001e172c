"""A checkpoint's processor with the caller's settings, and without calls that were saved in it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image
from transformers import PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import (
    AudioKwargs,
    ImagesKwargs,
    ProcessorMixin,
    TextKwargs,
    VideosKwargs,
)

from ragvl.messages import reason, shown

# What a call to an image processor says, and no checkpoint
_CALL_ONLY = ("return_tensors", "device", "data_format", "input_data_format", "disable_grouping")
_LIMITS = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
_LARGEST_PROBE = 1 << 24  # pixels


def plain_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Takes out of a tokenizer what would cut, fill up or otherwise shape our calls of it.

    `tokenizer.json` may hold a truncation or padding that somebody's last call left there, and
    `tokenizer_config.json` a call's keywords, which processors pass to every part of theirs.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False  # True spells out control tokens as text
    tokenizer.split_special_tokens = False
    for kind in (TextKwargs, ImagesKwargs, VideosKwargs, AudioKwargs):
        for name in kind.__annotations__.keys() - {"padding_side"}:
            tokenizer.init_kwargs.pop(name, None)


def plain_image_processor(image_processor: BaseImageProcessor) -> None:
    """Takes out of an image processor what belongs to a call of it, such as `return_tensors`."""
    for name in _CALL_ONLY:
        if hasattr(image_processor, name):
            setattr(image_processor, name, getattr(type(image_processor), name, None))


def without_saved_calls(processor: ProcessorMixin) -> None:
    """Takes out of a processor's parts what was saved in them and would shape our calls."""
    tokenizer = getattr(processor, "tokenizer", None)
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is not None:
        plain_image_processor(image_processor)
    if tokenizer is not None:
        plain_tokenizer(tokenizer)
        for name in _image_settings(image_processor):
            tokenizer.init_kwargs.pop(name, None)


def merge_settings(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what `over` says in its place, also where that is spelled otherwise.

    A picture's limits are spelled `size` with two edges, or `min_pixels` and `max_pixels`.
    """
    kept = dict(base)
    if isinstance(kept.get("size"), Mapping) and _LIMITS.keys() & over.keys():
        size = kept.pop("size")
        kept |= {name: size[edge] for name, edge in _LIMITS.items() if edge in size}
    if "size" in over:
        kept = {name: value for name, value in kept.items() if name not in _LIMITS}
    return {**kept, **over}


def with_settings(
    load: Callable[..., ProcessorMixin], settings: Mapping[str, Any]
) -> ProcessorMixin:
    """A processor in which every one of `settings` is in force.

    Args:
        load: loads the checkpoint's processor, with what its constructor is to be given.
        settings: of the image processor, or of the processor's constructor. A Qwen-VL's limits are
            `size={"shortest_edge": ..., "longest_edge": ...}`, or `min_pixels` and `max_pixels`;
            they win over what the checkpoint has saved under either name.

    Raises:
        ValueError: a setting is unknown, refused, or has no effect; the message names it.
    """
    processor = load()
    if not settings:
        return processor
    image_processor = getattr(processor, "image_processor", None)
    of_images = _image_settings(image_processor)
    own = _own_settings(processor)
    if unknown := sorted(settings.keys() - of_images - own):
        raise ValueError(
            f"processor_settings: {type(processor).__name__} has no "
            f"{shown(', '.join(map(repr, unknown)))}; it has {', '.join(sorted(of_images | own))}"
        )
    if given := {name: settings[name] for name in settings.keys() & own}:
        processor = load(**given)
        image_processor = getattr(processor, "image_processor", None)
        _check_in_force(processor, given)
    if given := {name: settings[name] for name in settings.keys() & of_images}:
        processor.image_processor = _rebuilt(image_processor, given)
    return processor


def _image_settings(image_processor: Any) -> set[str]:
    """The names of what can be set in an image processor."""
    if image_processor is None:
        return set()
    declared = getattr(image_processor, "valid_kwargs", None)
    names = image_processor.to_dict() if declared is None else declared.__annotations__
    return {name for name in names if not name.startswith("_")} - set(_CALL_ONLY)


def _own_settings(processor: ProcessorMixin) -> set[str]:
    """The names of what a processor's constructor takes besides its parts."""
    parameters = inspect.signature(type(processor).__init__).parameters.values()
    named = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    return named - {"self", "video_processor", *type(processor).get_attributes()}


def _rebuilt(image_processor: BaseImageProcessor, settings: dict[str, Any]) -> BaseImageProcessor:
    """An image processor like this one, with other settings."""
    settings = _with_limits_as_size(image_processor, settings)
    probe = Image.new("RGB", (64, 48))
    try:
        # From what is in force, since fields that the checkpoint saved may shadow others
        rebuilt = type(image_processor)(**{**image_processor.to_dict(), **settings})
        rebuilt(images=[probe], return_tensors="pt")
    except Exception as error:
        raise ValueError(
            f"processor_settings: {type(image_processor).__name__} cannot work with "
            f"{shown(settings)}: {reason(error)}"
        ) from error
    _check_in_force(rebuilt, settings)
    _check_limits(rebuilt, settings)
    return rebuilt


def _with_limits_as_size(
    image_processor: BaseImageProcessor, settings: dict[str, Any]
) -> dict[str, Any]:
    """`settings` with `min_pixels` and `max_pixels` as edges of `size`, where those count."""
    limits = {_LIMITS[name]: settings[name] for name in _LIMITS if name in settings}
    if limits and "size" in settings:
        raise ValueError(
            "processor_settings: size and min_pixels or max_pixels are two names of the same "
            "limits; give one of them"
        )
    size = _plain(getattr(image_processor, "size", None))
    if not limits or not isinstance(size, dict) or not set(_LIMITS.values()) <= size.keys():
        return settings
    rest = {name: value for name, value in settings.items() if name not in _LIMITS}
    return {**rest, "size": {**size, **limits}}


def _check_in_force(part: Any, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        actual = _plain(getattr(part, name, None))
        wanted = _plain(value)
        sides = set(actual.values()) if isinstance(actual, dict) else set()
        if actual != wanted and (isinstance(wanted, dict) or sides != {wanted}):
            raise ValueError(
                f"processor_settings: {name}={shown(value)} has no effect on "
                f"{type(part).__name__}, whose {name} stays {shown(actual)}"
            )


def _check_limits(image_processor: BaseImageProcessor, settings: Mapping[str, Any]) -> None:
    """Has a small and a large picture resized, where `size` is limits in pixels."""
    size = _plain(settings.get("size"))
    if not isinstance(size, dict) or not set(_LIMITS.values()) <= size.keys():
        return
    low, high = size["shortest_edge"], size["longest_edge"]
    smaller = _pixels_made(image_processor, low // 2)
    if smaller is None:  # edges in fact
        return
    larger = _pixels_made(image_processor, min(2 * high, _LARGEST_PROBE))
    if low > high or smaller < low or (larger is not None and larger > high):
        raise ValueError(
            f"processor_settings: {type(image_processor).__name__} cannot keep to {low} to {high} "
            f"pixels: it makes {smaller} of a small picture and {larger} of a large one"
        )


def _pixels_made(image_processor: BaseImageProcessor, pixels: int) -> int | None:
    """To how many a square picture of so many is resized; None where it does not report that."""
    side = math.isqrt(max(pixels, 1024))
    output = image_processor(images=[Image.new("RGB", (side, side))], return_tensors="pt")
    grid = output.get("image_grid_thw")
    return None if grid is None else int(grid.prod()) * image_processor.patch_size**2


def _plain(value: Any) -> Any:
    """Sizes as a dict of what they say, sequences as tuples."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if isinstance(value, Mapping) or hasattr(value, "shortest_edge"):
        return {name: number for name, number in dict(value).items() if number is not None}
    return value
