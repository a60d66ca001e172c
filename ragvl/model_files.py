"""What a model's folder must hold, checked before anything of it is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from ragvl.files import check_regular, open_regular
from ragvl.messages import quoted, reason, shown

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
MODULES = "modules.json"  # of sentence-transformers' format
PEFT_MODEL = "base_model.model."  # what the names of a model's weights begin with in adapters

_MAX_JSON_BYTES = 256 << 20  # the largest published tokenizer has 33 MB
_JSON_FILES = (
    CONFIG,
    ADAPTER_CONFIG,
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "chat_template.json",
)
_NO_PICKLES = (
    "Pickled weights (*.bin, *.pt) can run code and are never read: load them where you trust them "
    "and save the model again with save_pretrained()"
)


class UnsupportedModelError(ValueError):
    """A checkpoint is damaged or incomplete, or not built in a way that ragvl understands."""


class UnsuitableSettingError(ValueError):
    """What the caller wants set is not among what this checkpoint has."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        OSError: it cannot be read.
        UnsupportedModelError: it holds something else.
    """
    return _read_json(path, dict, "an object")


def read_json_list(path: Path) -> list[Any]:
    """The JSON list that a file holds; see `read_json`."""
    return _read_json(path, list, "a list")


def _read_json(path: Path, kind: type, expected: str) -> Any:
    with open_regular(path, max_bytes=_MAX_JSON_BYTES) as file:
        content = file.read()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UnsupportedModelError(f"{shown(path)} holds no JSON: {reason(error)}") from error
    if not isinstance(value, kind):
        raise UnsupportedModelError(
            f"{shown(path)} holds a JSON {type(value).__name__}, and {expected} is expected"
        )
    return value


def module_folders(folder: Path) -> list[str]:
    """The names of the folders in `folder` that sentence-transformers' modules are in.

    Raises:
        OSError, UnsupportedModelError: the file that names them is damaged.
    """
    if not os.path.lexists(folder / MODULES):
        return []
    entries = read_json_list(folder / MODULES)
    names = [entry.get("path") for entry in entries if isinstance(entry, dict)]
    return [name for name in names if name and is_file_name(name)]


def is_file_name(name: object) -> bool:
    """Whether a name leads to what is in a folder itself."""
    return isinstance(name, str) and PurePosixPath(name).name == name and "\\" not in name


def check_settings(folder: Path) -> None:
    """Reads every JSON file that loading a model from `folder` may read.

    Raises:
        OSError, UnsupportedModelError: one of them is damaged; the message names it.
    """
    for name in _JSON_FILES:
        if os.path.lexists(folder / name):
            read_json(folder / name)


def weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """The files that hold a model's weights, and which of them each is to hold; None if not said.

    Only safetensors files in the folder itself are taken, whatever an index names.

    Raises:
        FileNotFoundError: there are none, or one of them is missing.
        UnsupportedModelError: the index is damaged, or names something else.
    """
    name = read_json(folder / CONFIG).get("transformers_weights")
    if name is None:
        candidates = (WEIGHTS, WEIGHTS_INDEX)
        name = next((name for name in candidates if os.path.lexists(folder / name)), None)
        if name is None:
            raise FileNotFoundError(
                f"{shown(folder)} holds no *.safetensors weights: neither {WEIGHTS} nor "
                f"{WEIGHTS_INDEX}. {_NO_PICKLES}"
            )
    if isinstance(name, str) and name.endswith(".json"):
        _check_name(name.removesuffix(".index.json"), folder / CONFIG)
        return _shards(folder / name)
    _check_name(name, folder / CONFIG)
    return {folder / name: None}


def check_weights(files: dict[Path, set[str] | None]) -> None:
    """Reads the headers of safetensors files.

    Args:
        files: see `weight_files`.

    Raises:
        OSError: one is missing or cannot be read.
        UnsupportedModelError: one is damaged, or lacks weights that it should hold.
    """
    for path in files:
        if not os.path.lexists(path):
            raise FileNotFoundError(f"{shown(path)} is missing; the model's weights are not whole")
    for path, expected in files.items():
        names = weight_names(path)
        if missing := sorted((expected or set()) - names):
            raise UnsupportedModelError(
                f"{shown(path)} lacks {len(missing)} weights that the index says it holds: "
                f"{shown_list(missing)}"
            )


def weight_names(path: Path) -> set[str]:
    """The names of the weights in a safetensors file; see `weight_shapes`."""
    return set(weight_shapes(path))


def weight_shapes(path: Path) -> dict[str, list[int]]:
    """The shapes of the weights in a safetensors file, after checking its header.

    Raises:
        OSError: it cannot be read.
        UnsupportedModelError: it is damaged.
    """
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UnsupportedModelError(
            f"{shown(path)} is no whole safetensors file: {reason(error)}"
        ) from error


def shown_list(names: Iterable[str]) -> str:
    """The first three of `names`, for a message."""
    first, more = list(names)[:3], len(list(names)) > 3
    return shown(", ".join(first)) + (", ..." if more else "")


def _shards(index: Path) -> dict[Path, set[str] | None]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnsupportedModelError(f"{shown(index)} has no weight_map that names files")
    files: dict[Path, set[str] | None] = {}
    for weight, name in weight_map.items():
        _check_name(name, index)
        held = files.setdefault(index.parent / name, set())
        assert held is not None
        held.add(weight)
    return files


def _check_name(name: object, source: Path) -> None:
    if not is_file_name(name) or not str(name).endswith(".safetensors"):
        raise UnsupportedModelError(
            f"{shown(source)} names the weights file {quoted(name)}: weights are read only from "
            f"*.safetensors files in the folder itself. {_NO_PICKLES}"
        )
