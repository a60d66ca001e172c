"""Rerankers in sentence-transformers' format: what their files say of prompts, head and limits.

`modules.json` names the modules that a pair goes through: a Transformer, and behind it either a
LogitScore, which reads answer tokens, or Pooling and Dense layers, a score network. What each does
is in a file of its own; `config_sentence_transformers.json` is about the whole.
sentence-transformers itself is not needed, and none of its code is run.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragvl.messages import quoted, shown
from ragvl.model_files import (
    MODULES,
    UnsupportedModelError,
    is_file_name,
    read_json,
    read_json_list,
)
from ragvl.reranker.answers import Answers
from ragvl.reranker.heads import ACTIVATIONS, Pooling
from ragvl.reranker.lengths import NO_LIMITS, Lengths
from ragvl.reranker.presets import Preset
from ragvl.reranker.roles import RolesTemplate
from ragvl.reranker.score_weights import LayerWeights, ScoreWeights

_MODEL_SETTINGS = "config_sentence_transformers.json"
_TRANSFORMER_SETTINGS = "sentence_bert_config.json"
_OF_LOGITS = {"any-to-any": "logits", "text-generation": "logits"}
_OUTPUTS = {**_OF_LOGITS, "feature-extraction": "last_hidden_state"}  # by task
_HEAD_MODULES = {"LogitScore", "Pooling", "Dense"}
_POOLINGS: dict[object, Pooling] = {"lasttoken": "last", "mean": "mean"}
_OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# How a batch is filled up and handed over changes no score
_NO_EFFECT = {"padding", "padding_side", "pad_to_multiple_of", "return_tensors", "logits_to_keep"}
# How a model and its processor are loaded is for the caller to say
_LOADING = {"dtype", "torch_dtype", "attn_implementation", "device_map", "low_cpu_mem_usage"}
_LOADING |= {"use_safetensors", "use_cache", "use_fast", "revision", "token", "cache_dir"}
_OLD_NAMES = {"model_args": "model_kwargs", "tokenizer_args": "processor_kwargs"}
_OLD_NAMES["config_args"] = "config_kwargs"
# Of a Transformer: its own name for what it does, and what is in force for other kinds of models
_OF_OTHERS = {"module_output_name", "unpad_inputs", "query_length", "document_length"}
_OF_OTHERS |= {"query_expansion"}
_NO_TOKENIZER_LIMIT = 10**9  # transformers writes 10**30 where there is none


def preset_of_folder(folder: Path) -> Preset | None:
    """What a checkpoint in sentence-transformers' format was trained on.

    Args:
        folder: the checkpoint's, on this machine.

    Returns:
        A preset that scores as `sentence_transformers.CrossEncoder` does; None where the folder is
        not in that format.

    Raises:
        OSError: a file is missing or cannot be read.
        UnsupportedModelError: it is no reranker, or says what is not understood here; the message
            names the file.
    """
    if not os.path.lexists(folder / MODULES):
        return None
    modules = _modules(folder / MODULES)
    model = _checked_model(_File.of(folder / _MODEL_SETTINGS))
    transformer = _File.of(folder / _TRANSFORMER_SETTINGS)
    task = _checked_task(transformer)
    calls = _Calls(transformer, _tokenizer_limit(folder))
    return Preset(
        "sentence-transformers",
        template=RolesTemplate(
            add_generation_prompt=calls.add_generation_prompt,
            variables=calls.variables,
            instructions=_instructions(model),
            instruction=_default_instruction(model),
        ),
        head=_head(modules, task),
        processor_settings=calls.images,
        lengths=calls.lengths,
        activation=_activation(model, "activation_fn", "torch.nn.modules.activation.Sigmoid"),
    )


# --- files --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """Settings from a file, read so that what is wrong or unknown is refused by the file's name.

    Attributes:
        path: the file.
        values: what it holds.
    """

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path) -> _File:
        return cls(path, read_json(path))

    def refusal(self, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{shown(self.path)}: {what}")

    def get(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """A setting of this kind; `default` where it is not there, or null."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise self.refusal(f"{quoted(name)} is {shown(repr(value))}")
        return value

    def part(self, name: str) -> _File:
        """The settings that a name holds."""
        return _File(self.path, self.get(name, dict, {}))

    def check_known(self, known: Collection[str], what: str) -> None:
        """Refuses settings of other names, unless they set nothing."""
        for name, value in self.values.items():
            if name not in known and not (value is None or value is False or value == {}):
                raise self.refusal(f"{what} {quoted(name)}={shown(repr(value))} is not understood")


@dataclass(frozen=True)
class _Module:
    """A module that a pair goes through.

    Attributes:
        kind: its class.
        name: the name of its folder; empty for the checkpoint's.
        settings: its `config.json`; None where it is of no kind that a head consists of.
    """

    kind: str
    name: str
    settings: _File | None


def _modules(path: Path) -> list[_Module]:
    """The modules behind the Transformer.

    Raises:
        UnsupportedModelError: the first is no Transformer in the folder itself, or a module's class
            is not sentence-transformers' own.
    """
    modules = [_module(path, entry) for entry in read_json_list(path)]
    if not modules or modules[0].kind != "Transformer" or modules[0].name:
        raise UnsupportedModelError(
            f"{shown(path)}: the first module must be a Transformer in the folder itself"
        )
    return modules[1:]


def _module(path: Path, entry: object) -> _Module:
    file = _File(path, entry if isinstance(entry, dict) else {})
    reference, name = file.get("type", str, ""), file.get("path", str, "")
    package, _, kind = reference.rpartition(".")
    if package.split(".")[0] != "sentence_transformers":
        raise file.refusal(
            f"the module {quoted(reference)} is none of sentence-transformers': its code comes "
            "with the checkpoint, and is not run"
        )
    if name and not is_file_name(name):
        raise file.refusal(f"a module is in {quoted(name)}, which is no folder in this one")
    if kind not in _HEAD_MODULES:  # it may have no such file
        return _Module(kind, name, None)
    return _Module(kind, name, _File.of(path.parent / name / "config.json"))


# --- the whole ----------------------------------------------------------------------------------


def _checked_model(model: _File) -> _File:
    kind = model.get("model_type", str, "SentenceTransformer")
    if kind != "CrossEncoder":
        raise model.refusal(
            f"the model is a {quoted(kind)}, and a reranker is a 'CrossEncoder'. To score with it "
            "all the same, say how: preset='ragvl', or one of your own"
        )
    return model


def _instructions(model: _File) -> dict[str, str]:
    prompts = model.get("prompts", dict, {})
    if not all(isinstance(text, str | None) for text in prompts.values()):
        raise model.refusal(f"its prompts are no texts: {shown(prompts)}")
    return {name: text or "" for name, text in prompts.items()}


def _default_instruction(model: _File) -> str | None:
    name = model.get("default_prompt_name", str)
    if name is None:
        return None
    prompts = _instructions(model)
    if name not in prompts:
        raise model.refusal(f"it has no prompt of its default's name {quoted(name)}")
    return prompts[name] or None


def _activation(file: _File, name: str, default: str) -> str:
    """The name in `ACTIVATIONS` of one of torch's classes."""
    reference = file.get(name, str, default)
    kind = reference.rpartition(".")[2].lower()
    if not reference.startswith("torch.") or kind not in ACTIVATIONS:
        raise file.refusal(
            f"{quoted(name)} is {quoted(reference)}; known are torch's {', '.join(ACTIVATIONS)}"
        )
    return kind


# --- the Transformer ----------------------------------------------------------------------------


def _checked_task(file: _File) -> str:
    """What the Transformer gives to the next module."""
    task = file.get("transformer_task", str, "feature-extraction")
    if task not in _OUTPUTS:
        raise file.refusal(
            f"the transformer_task {quoted(task)} is none of {', '.join(map(repr, _OUTPUTS))}"
        )
    message = file.part("modality_config").part("message")
    if not message.values:
        raise file.refusal(
            "its modality_config has no 'message': pairs are joined by the tokenizer and not by a "
            "chat template, so there is no place for pictures"
        )
    form = message.get("format", str, "structured")
    if form == "flat":
        raise file.refusal("its messages are plain texts ('flat'), without a place for pictures")
    how = message.get("method", str), message.get("method_output_name", object)
    if form not in ("structured", "auto") or how != ("forward", _OUTPUTS[task]):
        raise file.refusal(f"its messages go through {shown(dict(message.values))}")
    return task


class _Calls:
    """How sentence-transformers calls the processor.

    Args:
        file: the Transformer's settings.
        tokenizer_limit: how many tokens the tokenizer's own settings let it give; None: any number.

    Attributes:
        add_generation_prompt: prompts end with the beginning of an answer.
        variables: values for variables of the chat template.
        images: settings of the image processor.
        lengths: to how many tokens a prompt is cut.
    """

    def __init__(self, file: _File, tokenizer_limit: int | None) -> None:
        renamed = {_OLD_NAMES.get(name, name): value for name, value in file.values.items()}
        file = _File(file.path, renamed)
        file.check_known(
            {
                *_OF_OTHERS,
                *_OLD_NAMES.values(),
                "transformer_task",
                "modality_config",
                "processing_kwargs",
                "max_seq_length",
            },
            "the setting",
        )
        file.part("model_kwargs").check_known(_LOADING, "of model_kwargs")
        file.part("config_kwargs").check_known(_LOADING, "of config_kwargs")
        processor = file.part("processor_kwargs")
        pixels = {"min_pixels", "max_pixels", "size"}
        own = {*pixels, "model_max_length"}
        processor.check_known({*_LOADING, *_NO_EFFECT, *own}, "of processor_kwargs")
        calls = file.part("processing_kwargs")
        calls.check_known({"common", "text", "image", "audio", "video", "chat_template"}, "calls'")
        self.images = {
            **{name: value for name, value in processor.values.items() if name in pixels},
            **calls.part("image").values,
        }
        text, common, chat = (calls.part(name) for name in ("text", "common", "chat_template"))
        sizes = {*_NO_EFFECT, "max_length", "truncation"}
        text.check_known(sizes, "calls' text")
        common.check_known(sizes, "calls' common")
        self.add_generation_prompt = chat.get("add_generation_prompt", bool, False)
        ours = {*sizes, "add_generation_prompt", "restore_suffix"}
        self.variables = {name: x for name, x in chat.values.items() if name not in ours}
        if refused := {"chat_template", "continue_final_message", "tools"} & self.variables.keys():
            raise file.refusal(f"calls' chat_template {shown(sorted(refused))} is not understood")
        own_limit = processor.get("model_max_length", int) or file.get("max_seq_length", int)
        limit = _length_limit([chat, text, common], own_limit or tokenizer_limit)
        keep_end = chat.get("restore_suffix", bool, True)
        self.lengths = NO_LIMITS if limit is None else Lengths(prompt=limit, keep_end=keep_end)


def _length_limit(sized: Sequence[_File], limit: int | None) -> int | None:
    """To how many tokens prompts are cut, by the first of `sized` that says so; None for no cut."""
    for file in sized:
        truncation = file.values.get("truncation", True)
        if truncation in (False, "do_not_truncate"):
            return None
        if "truncation" in file.values:
            break
    given = [file.get("max_length", int) for file in sized]
    return next((length for length in given if length is not None), limit)


def _tokenizer_limit(folder: Path) -> int | None:
    path = folder / "tokenizer_config.json"
    if not os.path.lexists(path):
        return None
    limit = _File.of(path).get("model_max_length", (int, float))
    return None if limit is None or limit >= _NO_TOKENIZER_LIMIT else int(limit)


# --- the head -----------------------------------------------------------------------------------


def _head(modules: Sequence[_Module], task: str) -> Answers | ScoreWeights:
    """What the modules behind the Transformer read scores off."""
    modules = [module for module in modules if module.kind != "Dropout"]  # for training only
    kinds = [module.kind for module in modules]
    if task in _OF_LOGITS and kinds == ["LogitScore"]:
        return _answers(_settings(modules[0]))
    if task not in _OF_LOGITS and kinds[:1] == ["Pooling"] and set(kinds[1:]) == {"Dense"}:
        return _network([_settings(module) for module in modules], modules[1:])
    raise UnsupportedModelError(
        f"{MODULES} has a Transformer for {task!r}, and behind it {shown(', '.join(kinds))}: known "
        "are LogitScore behind 'any-to-any' or 'text-generation', and Pooling and Dense behind "
        "'feature-extraction'"
    )


def _settings(module: _Module) -> _File:
    assert module.settings is not None  # see _HEAD_MODULES
    return module.settings


def _answers(file: _File) -> Answers:
    """LogitScore: the logit of one token, less that of another if there is one."""
    file.check_known({"true_token_id", "false_token_id", "module_input_name"}, "the setting")
    true_id, false_id = (file.get(f"{which}_token_id", int) for which in ("true", "false"))
    if true_id is None or file.get("module_input_name", str, "causal_logits") != "causal_logits":
        raise file.refusal("it reads no token of 'causal_logits'")
    return Answers(token_ids=(true_id,) if false_id is None else (true_id, false_id))


def _network(files: Sequence[_File], dense: Sequence[_Module]) -> ScoreWeights:
    """Pooling, and Dense layers from its 'sentence_embedding' to 'scores'."""
    pooling, *layers = files
    held = "sentence_embedding"
    for file in layers:
        taken = file.get("module_input_name", str, "sentence_embedding")
        if taken != held:
            raise file.refusal(f"it takes {quoted(taken)}, and the module before gives {held!r}")
        held = file.get("module_output_name", str, taken)
    if held != "scores":
        raise layers[-1].refusal(f"it gives {quoted(held)}, and a reranker's last gives 'scores'")
    named = zip(layers, dense, strict=True)
    return ScoreWeights(tuple(_layer(*each) for each in named), pooling=_pooling(pooling))


def _layer(file: _File, module: _Module) -> LayerWeights:
    known = {"in_features", "out_features", "bias", "activation_function"}
    file.check_known({*known, "module_input_name", "module_output_name"}, "the setting")
    return LayerWeights(
        "linear.weight",
        "linear.bias" if file.get("bias", bool, True) else None,
        _activation(file, "activation_function", "torch.nn.modules.activation.Tanh"),
        f"{module.name}/model.safetensors",
    )


def _pooling(file: _File) -> Pooling:
    modes = [mode for name, mode in _OLD_POOLINGS.items() if file.get(name, bool, False)]
    mode = file.get("pooling_mode", (str, list), modes or "mean")
    mode = mode[0] if isinstance(mode, list) and len(mode) == 1 else mode
    if not isinstance(mode, str) or mode not in _POOLINGS:
        raise file.refusal(f"it pools by {shown(mode)}; known: {', '.join(map(repr, _POOLINGS))}")
    return _POOLINGS[mode]
