"""Every image-text-to-text architecture of transformers is taken apart, or refused by name."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import ARCHITECTURES, MORE_ARCHITECTURES, build_tiny
from tiny_models.parts import chatml_tokenizer
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available

from ragvl.mllm import MLLM, UnsupportedModelError
from ragvl.mllm.structure import check_structure

REFUSED = {
    "florence2": "florence2 has an encoder for what it is given",
    "idefics2": "Idefics2Processor does not report which text stands for a picture",
    "mllama": "MllamaProcessor does not report which text stands for a picture; none does",
    "git": "GitProcessor and GitConfig do not both name an image token",
}
DEPTHS = (
    "num_hidden_layers",
    "num_layers",
    "n_layers",
    "depth",
    "encoder_layers",
    "decoder_layers",
)


def make_shallow(config: Any) -> None:
    for name in DEPTHS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, 2)
    for name in config.sub_configs:
        if (part := getattr(config, name, None)) is not None:
            make_shallow(part)


@cache
def default_model(model_type: str) -> PreTrainedModel | None:
    """A model of the architecture's default sizes, two layers deep and without weights.

    None where it has no defaults that fit together, or needs another package.
    """
    try:
        config = CONFIG_MAPPING[model_type]()
        make_shallow(config)
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except Exception:
        return None


@pytest.fixture(scope="module")
def problems() -> dict[str, str | None]:
    """Why each architecture is refused; None where it is not."""
    found: dict[str, str | None] = {}
    for model_type in NAMES:
        model = default_model(model_type)
        if model is None:
            continue
        try:
            check_structure(model)
            found[model_type] = None
        except UnsupportedModelError as error:
            found[model_type] = str(error)
    return found


@pytest.mark.slow
def test_every_architecture_is_taken_apart_or_refused(problems: dict[str, str | None]) -> None:
    assert len(problems) > 0.8 * len(NAMES)
    for model_type, problem in problems.items():
        if problem is not None:
            model = default_model(model_type)
            assert model is not None
            lacking = {model_type, *(type(part).__name__ for part in model.modules())}
            assert lacking & set(problem.split()), "what lacks something is named"


def test_those_that_are_tested_are_taken_apart(problems: dict[str, str | None]) -> None:
    tested = problems.keys() & {*ARCHITECTURES, *MORE_ARCHITECTURES}
    assert len(tested) > 10
    assert [name for name in tested if problems[name]] == []


def test_an_encoder_beside_the_decoder_is_the_reason(problems: dict[str, str | None]) -> None:
    for model_type in ("florence2", "udop", "vision-encoder-decoder"):
        assert "has an encoder for what it is given" in (problems.get(model_type) or "")


@pytest.mark.parametrize(("architecture", "reason"), REFUSED.items())
def test_a_checkpoint_of_another_architecture_is_refused_with_its_reason(
    architecture: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_tiny(architecture, tmp_path)

    def read(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", read)
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        MLLM.from_pretrained(folder, device="cpu")
    assert str(caught.value).count("\n") == 0
    assert str(folder) in str(caught.value)


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
@pytest.mark.parametrize("name", ["molmo2", "cohere2_vision"])
def test_a_package_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    """Some image processors of transformers exist for torchvision alone."""
    config = CONFIG_MAPPING[name]()
    config.save_pretrained(tmp_path)
    processor_class = PROCESSOR_MAPPING[type(config)].__name__
    tokenizer = chatml_tokenizer(["<|image|>"], image_token="<|image|>")
    tokenizer.save_pretrained(tmp_path)
    image_processor = processor_class.replace("Processor", "ImageProcessor")
    settings = {"processor_class": processor_class, "image_processor_type": image_processor}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ImportError, match=f"{image_processor} needs torchvision, .*: pip install"):
        MLLM.from_pretrained(tmp_path, device="cpu")
