from __future__ import annotations

import json
import logging
import pickle
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models.parts import chatml_tokenizer

from ragvl import Generator, Reranker
from ragvl.mllm import MLLM, UnsupportedModelError
from ragvl.mllm.loading import without_video


@pytest.fixture
def folder(tiny_model, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model("llava"), tmp_path / "model")


@pytest.mark.parametrize(
    "path", ["no/such/folder", "/no/such", "./such", "~/no-such", Path("such")]
)
def test_missing_folder(path):
    with pytest.raises(FileNotFoundError, match="there is no model folder"):
        MLLM.from_pretrained(path)


def test_folder_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json, so it is no model folder"):
        MLLM.from_pretrained(tmp_path)


def test_pickled_weights_are_never_read(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"Pickled weights .* save_pretrained"):
        MLLM.from_pretrained(folder)


def test_a_model_without_pictures(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(
        UnsupportedModelError, match="a 'llama' model, which does not read pictures"
    ):
        MLLM.from_pretrained(tmp_path)


def test_missing_weights_are_not_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    (name,) = [name for name in weights if "lm_head" in name]
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"lacks 1 weights.*lm_head\.weight"):
        MLLM.from_pretrained(folder)


def test_code_in_a_checkpoint_is_not_run_unasked(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MineConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        MLLM.from_pretrained(folder)
    assert not (folder / "ran").exists()


def test_trusted_code_that_makes_another_kind_of_model_is_refused_by_name(
    tiny_model, tmp_path, monkeypatch
):
    """As of llama-nemotron-rerank-vl, whose code comes with it and makes a classifier."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "m")])
    folder = shutil.copytree(tiny_model("internvl"), tmp_path / "nemotron")
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    config |= {"model_type": "llama_nemotron_vl", "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        "from transformers import InternVLConfig\n"
        "class Config(InternVLConfig):\n    model_type = 'llama_nemotron_vl'\n"
    )
    for head in (True, False):
        with pytest.raises(UnsupportedModelError, match=r"only .*ForSequenceClassification: its"):
            MLLM.from_pretrained(folder, device="cpu", trust_remote_code=True, language_head=head)


def test_device_and_dtype(folder):
    mllm = MLLM.from_pretrained(folder, device="cpu", dtype="bfloat16")
    assert (mllm.device, mllm.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert {parameter.dtype for parameter in mllm.model.parameters()} == {torch.bfloat16}
    assert MLLM.from_pretrained(folder, device="cpu").dtype == torch.float32
    assert not mllm.model.training


def test_attention_implementation_is_passed_on(folder):
    mllm = MLLM.from_pretrained(str(folder), device="cpu", attn_implementation="eager")
    assert mllm.model.config.get_text_config()._attn_implementation.endswith("eager")


@pytest.mark.parametrize("architecture", ["llava", "qwen2_5_vl", "gemma3"])
def test_loading_and_scoring_warn_of_nothing(architecture, tiny_model, caplog):
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mllm = MLLM.from_pretrained(tiny_model(architecture), device="cpu")
            mllm.generate(
                [mllm.prompting.encode_prompt(mllm.prompting.render("What is it?"))],
                max_new_tokens=2,
            )
    finally:
        library.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize(
    ("positions", "tokenizer_length", "expected"),
    [(1024, 300, 1024), (200, 1024, 200), (200, int(1e30), 200)],
)
def test_max_length_is_the_models_own(positions, tokenizer_length, expected, folder):
    for name, key, value in (
        ("config.json", None, positions),
        ("tokenizer_config.json", "model_max_length", tokenizer_length),
    ):
        settings = json.loads((folder / name).read_text())
        if key is None:
            settings["text_config"]["max_position_embeddings"] = value
        else:
            settings[key] = value
        (folder / name).write_text(json.dumps(settings))
    assert MLLM.from_pretrained(folder, device="cpu").prompting.max_length == expected


def test_a_processor_without_an_image_token_is_refused(tiny_mllm):
    mllm = tiny_mllm("llava")
    with pytest.raises(UnsupportedModelError, match="do not both name an image token"):
        MLLM(mllm.model, mllm.prompting.tokenizer)


def test_an_unknown_attention_is_refused_before_the_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"'sdap' is unknown; known: eager, .*sdpa"):
        MLLM.from_pretrained(folder, attn_implementation="sdap")


@pytest.mark.parametrize("loader", [MLLM, Reranker, Generator])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chat_template_kwargs": {"foo\n": 1}}, r"chat_template_kwargs.* reads no 'foo\\n'"),
        ({"chat_template_kwargs": {"foo": object()}}, "chat_template_kwargs"),
        ({"date": "yesterday"}, "date='yesterday'"),
        ({"processor_settings": {"sise": 1}}, "processor_settings: .*'sise'"),
        ({"caption_tokens": 0}, "caption_tokens=0"),
        ({"caption_tokens": "9"}, "caption_tokens='9'"),
    ],
)
def test_an_argument_is_refused_before_the_weights(loader, arguments, message, folder, monkeypatch):
    if loader is MLLM and "caption_tokens" in arguments:
        pytest.skip("it cuts no captions")

    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr("ragvl.mllm.loading.load_weights", load)
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        loader.from_pretrained(folder, device="cpu", **arguments)
    assert not isinstance(caught.value, UnsupportedModelError)  # which would blame the model


def test_a_processor_without_its_video_part_comes_back_from_its_folder(tmp_path: Path) -> None:
    """Wherever that part stands: of PerceptionLM's it is the first, of most the last."""
    tokenizer = chatml_tokenizer(
        ["<|image|>", "<|video|>"], image_token="<|image|>", video_token="<|video|>"
    )
    image_processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32})
    processor_class = without_video(transformers.PerceptionLMProcessor)
    processor = processor_class(None, image_processor, tokenizer, patch_size=8, pooling_ratio=3)
    processor.save_pretrained(tmp_path)
    again = pickle.loads(pickle.dumps(processor_class.from_pretrained(tmp_path)))
    assert type(again).__name__ == "PerceptionLMProcessor"
    assert (again.patch_size, again.pooling_ratio) == (8, 3)
    assert again.image_processor.size == image_processor.size
    assert again.tokenizer.image_token == "<|image|>"
    assert "video_processor" not in vars(again)
