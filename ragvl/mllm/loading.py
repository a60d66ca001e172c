"""Loads a checkpoint's model and processor, or says plainly why it cannot."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.processing_utils import ProcessorMixin

from ragvl.checkpoints import Checkpoint, find_checkpoint
from ragvl.messages import quoted, reason, shown
from ragvl.mllm.processors import with_settings, without_saved_calls
from ragvl.mllm.quantized import check_quantization, finish_loading, is_quantized
from ragvl.mllm.structure import check_decoder_alone, check_structure
from ragvl.model_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    PEFT_MODEL,
    UnsuitableSettingError,
    UnsupportedModelError,
    read_json,
    shown_list,
    weight_files,
    weight_names,
    weight_shapes,
)

_LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "depth", "encoder_layers")
_VIDEO = "video_processor"  # a part of some processors
# What transformers says where a class needs a package that is not installed
_MISSING_PACKAGE = (
    re.compile(r"(\w+) requires the (\w+) library but it was not found"),
    re.compile(r"image processor classes: \w+: (\w+)\..*Missing optional dependencies: (\w+)"),
)
_SMALL_BUFFERS = 1 << 24  # numbers that a model holds besides its weights


def check_reader(
    path: str | Path,
    *,
    trust_remote_code: bool = False,
    to_train: bool = False,
    **location: Any,
) -> None:
    """Sees whether `path` means a model that reads pictures and writes text; nothing is loaded.

    Args:
        path: a folder or a hub id.
        trust_remote_code: see `MLLM.from_pretrained`.
        to_train: whether it is going to be trained.
        location: the revision and the like; see there.

    Raises:
        OSError: see `find_checkpoint`.
        UnsupportedModelError: it is another model, or damaged; or `to_train`, and its weights are
            quantised.
    """
    checkpoint = find_checkpoint(path, trust_remote_code=trust_remote_code, **location)
    config = _load_config(checkpoint, {"trust_remote_code": trust_remote_code})
    if to_train and is_quantized(config):
        raise UnsupportedModelError(
            f"{shown(checkpoint.folder)}: its weights are quantised, and what is trained could not "
            "be merged into them: train the model as it was before that, and quantise the result"
        )


def load_processor(
    checkpoint: Checkpoint, settings: Mapping[str, Any], *, trust_remote_code: bool
) -> tuple[ProcessorMixin, PretrainedConfig]:
    """A checkpoint's processor, with `settings` in force, and its configuration.

    Raises:
        UnsupportedModelError: it is no image-text-to-text model, or a file is damaged.
        ImportError: it needs a package that is not installed.
        ValueError: a setting is unknown or would have no effect.
    """
    code = {"trust_remote_code": trust_remote_code}
    config = _load_config(checkpoint, code)
    return _load_processor(checkpoint, config, code, settings), config


def load_model(
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    attn_implementation: str | None,
    trust_remote_code: bool,
    language_head: bool = True,
    read_apart: Collection[str] = (),
) -> PreTrainedModel:
    """A checkpoint's model, in eval mode on the device.

    Weights are read from safetensors only, and code in the checkpoint runs only with
    `trust_remote_code`. Adapters are merged into the model that they belong on. Without
    `language_head` that head may be missing, and is not read; and what adapters hold of modules
    that the model lacks, such as a score network, is left to whoever reads it.

    Raises:
        UnsupportedModelError: it is damaged, or lacks weights, or is quantised in a way that cannot
            be used.
        ImportError: it needs a package that is not installed.
    """
    check_quantization(checkpoint.folder, config, device)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "dtype": dtype}
    if is_quantized(config):  # most cannot be moved
        options["device_map"] = {"": device}
        if checkpoint.adapters is not None:
            raise UnsupportedModelError(
                f"{shown(checkpoint.adapters)}: adapters cannot be merged into "
                f"{shown(checkpoint.folder)} without error, whose weights are quantised: load the "
                "same model as it was before that, and give the folder as adapters="
            )
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    auto_class = _auto_class(checkpoint.folder, config, with_head=language_head)
    if checkpoint.adapters is not None and not language_head:
        code = {"trust_remote_code": trust_remote_code}
        if not _are_for(auto_class, config, code, checkpoint.adapters):
            auto_class = _auto_class(checkpoint.folder, config, with_head=True)
    model = load_weights(
        auto_class,
        checkpoint.folder,
        check=check_structure,
        language_head=language_head,
        read_apart=read_apart,
        config=config,
        **options,
    )
    if checkpoint.adapters is not None:
        model = _with_adapters(model, checkpoint.adapters, whole=language_head)
        model = model if language_head else model.base_model
    # What a checkpoint that is trained from this one calls its base
    model.name_or_path = model.config.name_or_path = checkpoint.name
    if not is_quantized(config):
        return model.to(device).eval()
    finish_loading(checkpoint.folder, model.eval())
    return model


def check_image_tokens(processor: ProcessorMixin, config: PretrainedConfig) -> None:
    """Refuses a model among whose tokens pictures have no place.

    Raises:
        UnsupportedModelError: the processor or the configuration names no image token.
    """
    if not hasattr(processor, "image_token") or not hasattr(config, "image_token_id"):
        raise UnsupportedModelError(
            f"{type(processor).__name__} and {type(config).__name__} do not both name an image "
            "token, so pictures have no place among this model's tokens"
        )


def check_attention(name: str | None) -> None:
    """Refuses an attention implementation that is not known.

    Raises:
        ValueError: it is neither one of transformers' nor a kernel's hub id.
    """
    known = ("eager", *AttentionInterface().valid_keys())
    if name is not None and name not in known and "/" not in name:  # "owner/name" is a hub kernel
        raise ValueError(
            f"attn_implementation={name!r} is unknown; known: {', '.join(known)}, or a kernel's "
            "hub id"
        )


@contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """Turns what is raised over a file of `path` into one line that names it.

    Args:
        path: the file, or the model's folder.
        what: of it cannot be loaded.

    Raises:
        UnsupportedModelError: something was raised that is the file's fault.
        ImportError: a package is not installed.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, FloatingPointError):
        raise  # these are not the file's fault
    except UnsuitableSettingError:  # the caller's
        raise
    except UnsupportedModelError as error:
        if str(path) in str(error):
            raise
        raise UnsupportedModelError(f"{shown(path)}: {error}") from error
    except Exception as error:
        if (missing := _missing_package(error)) is not None:
            name, package = missing
            raise ImportError(
                f"{shown(path)}: {name} needs {package}, which is not installed: pip install "
                f"{package}",
                name=package,
            ) from error
        if isinstance(error, ImportError):
            raise  # it says what is missing
        raise UnsupportedModelError(
            f"{shown(path)}: its {what} cannot be loaded: {reason(error)}"
        ) from error


def _missing_package(error: Exception) -> tuple[str, str] | None:
    """The class of transformers that cannot be made for want of a package, and that package."""
    found = next(filter(None, (pattern.search(str(error)) for pattern in _MISSING_PACKAGE)), None)
    return None if found is None else (found[1], found[2].lower())


def load_weights(
    auto_class: type,
    folder: Path,
    *,
    check: Callable[[PreTrainedModel], None] = lambda _: None,
    language_head: bool = True,
    read_apart: Collection[str] = (),
    **options: Any,
) -> PreTrainedModel:
    """A model with all of its weights, from a folder that `find_checkpoint` checked.

    Args:
        auto_class: one of transformers' Auto classes.
        folder: the model's.
        check: looks at the model without weights, before they are read.
        language_head: False lets the weights of that head be missing.
        read_apart: names of weights that the caller reads; transformers' report does not appear
            where it would be about these alone.
        options: what else `from_pretrained` takes.

    Raises:
        UnsupportedModelError: weights are missing, or have another shape than the configuration
            says.
    """
    _check_shape(auto_class, folder, check, options)
    with naming(folder, "model"), _report_held_back() as report:
        model, info = auto_class.from_pretrained(  # type: ignore[attr-defined]
            str(folder),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # it is refused below, in one line
            **options,
        )
        others = info["missing_keys"] or info["mismatched_keys"]
        if not others and set(info["unexpected_keys"]) <= set(read_apart):
            report.clear()
    needless = set() if language_head else _head_weights(model)
    if missing := sorted(set(info["missing_keys"]) - needless):
        raise UnsupportedModelError(
            f"{shown(folder)} lacks {len(missing)} weights of the model, which would be random: "
            f"{shown_list(missing)}; {_advice(model)}"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        name, there, wanted = mismatched[0]
        raise UnsupportedModelError(
            f"{shown(folder)}: {len(mismatched)} weights have another shape than {CONFIG} says, as "
            f"{shown(name)}: {tuple(there)}, not {tuple(wanted)}"
        )
    return model


@contextmanager
def _report_held_back() -> Iterator[list[logging.LogRecord]]:
    """Has transformers' report of a load wait for the end of the block, in this thread.

    It is logged then, unless it was taken out of the list.
    """
    held: list[logging.LogRecord] = []
    thread = get_ident()

    def passes(record: logging.LogRecord) -> bool:
        if get_ident() != thread or "LOAD REPORT" not in record.getMessage():
            return True
        held.append(record)
        return False

    log = logging.getLogger(PreTrainedModel.__module__)
    log.addFilter(passes)
    try:
        yield held
    finally:
        log.removeFilter(passes)
        for record in held:
            log.handle(record)


def _advice(model: PreTrainedModel) -> str:
    """What to do where weights are missing."""
    if not is_quantized(model.config):
        return "save the whole model into the folder"
    return (
        f"if they belong to modules that are not quantised, {CONFIG} has to say so under the names "
        "that they have here (modules_to_not_convert, llm_int8_skip_modules or ignore)"
    )


def _head_weights(model: PreTrainedModel) -> set[str]:
    """The names of the weights of a model's language-model head."""
    head = model.get_output_embeddings()
    paths = [path for path, module in model.named_modules() if module is head]
    return {f"{path}.{name}" for path in paths for name in head._parameters}


def _check_shape(
    auto_class: Any,
    folder: Path,
    check: Callable[[PreTrainedModel], None],
    options: dict[str, Any],
) -> None:
    """Refuses a model that `check` does, and one far larger than the weights beside it.

    Both would be refused in the end; weights that are missing would be made first, and fill the
    memory.
    """
    code = {"trust_remote_code": options["trust_remote_code"]}
    with naming(folder / CONFIG, "configuration"):
        config = options.get("config") or AutoConfig.from_pretrained(str(folder), **code)
    shapes = [shape for path in weight_files(folder) for shape in weight_shapes(path).values()]
    layers = max(_layer_counts(config.to_dict()), default=0)
    if layers <= len(shapes):
        with naming(folder / CONFIG, "configuration"), torch.device("meta"):
            model = auto_class.from_config(config, **code)
        with naming(folder, "model"):
            check(model)
        held = sum(map(math.prod, shapes))
        wanted = sum(x.numel() for x in (*model.parameters(), *model.buffers()))
        # Of quantised weights several are packed in a number
        if is_quantized(config) or wanted <= 2 * held + _SMALL_BUFFERS:
            return
    raise UnsupportedModelError(
        f"{shown(folder / CONFIG)} is of another model than the weights beside it, which has "
        f"{sum(map(math.prod, shapes)):,} parameters in {len(shapes)} tensors"
    )


def _auto_class(folder: Path, config: PretrainedConfig, *, with_head: bool) -> type:
    """The class of transformers' that makes the model, or has the checkpoint's own code make it."""
    own = getattr(config, "auto_map", None) or {}
    if not with_head and (type(config) in MODEL_MAPPING or AutoModel.__name__ in own):
        return AutoModel
    known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if known or AutoModelForImageTextToText.__name__ in own:
        return AutoModelForImageTextToText
    raise UnsupportedModelError(
        f"{shown(folder / CONFIG)}: the code that comes with the model makes no "
        f"{AutoModelForImageTextToText.__name__} of it, only {shown_list(own)}: its parts are not "
        "known"
    )


def _layer_counts(settings: object) -> Iterator[int]:
    if isinstance(settings, dict):
        for name, value in settings.items():
            if name in _LAYER_COUNTS and isinstance(value, int):
                yield value
            yield from _layer_counts(value)


def _load_config(checkpoint: Checkpoint, code: dict[str, Any]) -> PretrainedConfig:
    file = checkpoint.folder / CONFIG
    settings = read_json(file)
    model_type = settings.get("model_type")
    trusted = code["trust_remote_code"]
    if "auto_map" in settings and model_type not in CONFIG_MAPPING and not trusted:
        raise UnsupportedModelError(
            f"{shown(file)}: the model runs Python code that comes with it; pass "
            "trust_remote_code=True if you have read it and trust it"
        )
    with naming(file, "configuration"):
        config = AutoConfig.from_pretrained(str(checkpoint.folder), **code)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not trusted:
        raise UnsupportedModelError(
            f"{shown(checkpoint.folder)} holds a {quoted(config.model_type)} model, which does not "
            "read pictures and write text; ragvl needs an image-text-to-text model such as LLaVA, "
            "Qwen-VL or InternVL"
        )
    with naming(file, "configuration"):
        check_decoder_alone(config)
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        if part is not None:  # what somebody's last call wanted back is not what ours do
            part.return_dict, part.output_hidden_states = True, False
            part.output_attentions = False
    return config


def _are_for(auto_class: Any, config: PretrainedConfig, code: dict[str, Any], folder: Path) -> bool:
    """Whether adapters name the modules of the model that `auto_class` makes."""
    with naming(folder / ADAPTER_CONFIG, "configuration"), torch.device("meta"):
        model = auto_class.from_config(config, **code)
    modules = {path for path, _ in model.named_modules()}
    saved = _saved_modules(read_json(folder / ADAPTER_CONFIG).get("modules_to_save"))
    paths = [
        name.removeprefix(PEFT_MODEL).split(".")
        for name in weight_names(folder / ADAPTER_WEIGHTS)
        if not _is_of(name, saved)
    ]
    # What an adapter calls its weight stands behind its module's path, in one part or two
    return all({".".join(path[:-1]), ".".join(path[:-2])} & modules for path in paths)


def _saved_modules(value: object) -> list[str]:
    """The names of modules of which PEFT keeps another copy whole."""
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _is_of(weight: str, modules: Iterable[str]) -> bool:
    return any(f".{name}." in f".{weight}" for name in modules)


def _with_adapters(model: PreTrainedModel, folder: Path, *, whole: bool) -> PreTrainedModel:
    """`model` with the adapters in `folder` merged into its weights.

    Unless `whole`, modules that the adapters bring and the model lacks are passed over.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ImportError(
            f"{shown(folder)} is a folder of adapters: install PEFT to load it (pip install "
            "'ragvl[train]'), or merge them where it is installed: "
            "PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(...)",
            name="peft",
        ) from error
    with naming(folder / ADAPTER_CONFIG, "adapters' settings"):
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
    if config.is_prompt_learning:
        raise UnsupportedModelError(
            f"{shown(folder)} holds {shown(config.peft_type)} adapters, which add to the prompt "
            "and cannot be merged into the weights"
        )
    saved = _saved_modules(getattr(config, "modules_to_save", None))
    paths = [f".{path}" for path, _ in model.named_modules()]
    absent = [name for name in saved if not any(path.endswith(f".{name}") for path in paths)]
    if not whole and absent:
        config.modules_to_save = [name for name in saved if name not in absent] or None
    with naming(folder / ADAPTER_WEIGHTS, "adapters"):
        adapted = PeftModel(model, config)
        result = adapted.load_adapter(str(folder), "default")
        foreign, missing = sorted(result.unexpected_keys), sorted(result.missing_keys)
        foreign = [name for name in foreign if whole or not _is_of(name, absent)]
        if foreign or missing:
            raise UnsupportedModelError(
                f"{shown(folder / ADAPTER_WEIGHTS)} does not fit its model: {len(foreign)} weights "
                f"have no place in it and {len(missing)} are not there, as "
                f"{shown_list(foreign or missing)}"
            )
        return adapted.merge_and_unload(safe_merge=True)


def _load_processor(
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    code: dict[str, Any],
    settings: Mapping[str, Any],
) -> ProcessorMixin:
    """The checkpoint's processor without its half for videos, with `settings` in force.

    That half needs torchvision, and nothing here uses it.
    """
    folder = checkpoint.processor_folder
    with naming(folder, "processor"):
        saved, _ = ProcessorMixin.get_processor_dict(str(folder))
        processor_class = getattr(transformers, saved.get("processor_class", ""), None)
        if processor_class is None and type(config) in PROCESSOR_MAPPING:
            processor_class = PROCESSOR_MAPPING[type(config)]
        if processor_class is None:
            processor_class = AutoProcessor
        elif _VIDEO in processor_class.get_attributes():
            processor_class = without_video(processor_class)

    def load(**given: Any) -> ProcessorMixin:
        with naming(folder, "processor"):
            processor = processor_class.from_pretrained(str(folder), **code, **given)
        without_saved_calls(processor)
        return processor

    return with_settings(load, settings)


class _NoVideo:
    """Has no setting: each that a processor looks for in its video part is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def without_video(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """`processor_class` with one of its parts, the video processor, left out.

    It is the same class under the same name in all else. A processor's parts are those that
    `get_attributes` names, in the order of its constructor's arguments.
    """
    parts = processor_class.get_attributes()
    place = parts.index(_VIDEO)

    def init(self: ProcessorMixin, *args: Any, **kwargs: Any) -> None:
        given = dict(zip(parts, args, strict=False)) | kwargs
        given.pop(_VIDEO, None)
        ProcessorMixin.__init__(self, **given)

    def from_args_and_dict(cls: Any, args: list[Any], *others: Any, **kwargs: Any) -> Any:
        args = [*args[:place], None, *args[place:]]
        return super(made, cls).from_args_and_dict(args, *others, **kwargs)

    body = {
        "get_attributes": classmethod(lambda _: [part for part in parts if part != _VIDEO]),
        "from_args_and_dict": classmethod(from_args_and_dict),
        # A class that stands in no module cannot be pickled by its name
        "__reduce__": lambda self: (_without_video_again, (processor_class, vars(self))),
    }
    # What `processor_class` takes for its base, and hands its parts to
    base = type(ProcessorMixin.__name__, (ProcessorMixin,), {"__init__": init, _VIDEO: _NoVideo()})
    made: Any = type(processor_class.__name__, (processor_class, base), body)
    return made


def _without_video_again(
    processor_class: type[ProcessorMixin], state: dict[str, Any]
) -> ProcessorMixin:
    """What was pickled, in the process that reads it."""
    processor = object.__new__(without_video(processor_class))
    vars(processor).update(state)
    return processor
