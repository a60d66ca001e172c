"""Loads a checkpoint's model and processor, or says plainly why it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.processing_utils import ProcessorMixin


class UnsupportedModelError(ValueError):
    """The checkpoint loads, or could, but is not built in a way that ragvl understands."""


def load_checkpoint(
    path: str | Path,
    *,
    dtype: torch.dtype,
    revision: str | None,
    trust_remote_code: bool,
    attn_implementation: str | None,
    processor_settings: Mapping[str, Any],
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model, in eval mode on the CPU, and its processor.

    Weights are read from safetensors only, and code in the checkpoint runs only with
    `trust_remote_code`.

    Raises:
        FileNotFoundError: `path` is meant as a folder, and it or its weights are not there.
        UnsupportedModelError: it is no image-text-to-text model, or weights are missing in it.
    """
    path = _checked_path(path)
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(path, **source)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not trust_remote_code:
        raise UnsupportedModelError(
            f"{path} holds a {config.model_type!r} model, which does not read pictures and write "
            "text; ragvl needs an image-text-to-text model such as LLaVA, Qwen-VL or InternVL"
        )
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    model, info = AutoModelForImageTextToText.from_pretrained(
        path,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        **attention,
        **source,
    )
    if missing := sorted(info["missing_keys"]):
        raise UnsupportedModelError(
            f"{path} lacks {len(missing)} weights, which would be random: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}; save the whole model into the folder"
        )
    return model.eval(), _load_processor(path, config, source, processor_settings)


def _checked_path(path: str | Path) -> str:
    """`path` as Hugging Face takes it, after checks that name the file which is missing."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no config.json, so it is no model folder")
        if not any(folder.glob("*.safetensors")):
            raise FileNotFoundError(
                f"{folder} holds no *.safetensors weights. Pickled weights (*.bin, *.pt) can run "
                "code and are never read: load them where you trust them and save the model "
                "again with save_pretrained()"
            )
        return str(folder)
    # A hub id is "name" or "owner/name"; whatever else it is, it is a path
    if isinstance(path, Path) or str(path)[:1] in "./~" or str(path).count("/") > 1:
        raise FileNotFoundError(f"there is no model folder {folder}")
    return path


def _load_processor(
    path: str, config: PretrainedConfig, source: dict[str, Any], settings: Mapping[str, Any]
) -> ProcessorMixin:
    """The checkpoint's processor, without its half for videos.

    That half needs torchvision, and nothing here uses it.
    """
    found, _ = ProcessorMixin.get_processor_dict(path, revision=source["revision"])
    processor_class = getattr(transformers, found.get("processor_class", ""), None)
    if processor_class is None and type(config) in PROCESSOR_MAPPING:
        processor_class = PROCESSOR_MAPPING[type(config)]
    if processor_class is None or processor_class.get_attributes()[-1] != "video_processor":
        return AutoProcessor.from_pretrained(path, **source, **settings)
    return without_video(processor_class).from_pretrained(path, **source, **settings)


def without_video(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """`processor_class` with its last part, the video processor, left out.

    It is the same class under the same name in all else. A processor's parts are those that
    `get_attributes` names.
    """
    attributes = processor_class.get_attributes()[:-1]
    body = {
        "get_attributes": classmethod(lambda _: list(attributes)),
        # A class that stands in no module cannot be pickled by its name
        "__reduce__": lambda self: (_without_video_again, (processor_class, vars(self))),
    }
    return type(processor_class.__name__, (processor_class,), body)


def _without_video_again(
    processor_class: type[ProcessorMixin], state: dict[str, Any]
) -> ProcessorMixin:
    """What was pickled, in the process that reads it."""
    processor = object.__new__(without_video(processor_class))
    vars(processor).update(state)
    return processor
