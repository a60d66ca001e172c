from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from ragvl import Document, Reranker
from ragvl.mllm import MLLM, UnsupportedModelError

pytestmark = pytest.mark.filterwarnings("ignore:.*tokenizer.*:UserWarning")


@pytest.fixture
def adapters(tiny_model, tmp_path) -> Callable[..., tuple[Path, torch.nn.Module]]:
    """A folder of random adapters on the tiny LLaVA, and the model with them apart."""

    def make(config: LoraConfig | None = None) -> tuple[Path, torch.nn.Module]:
        base = MLLM.from_pretrained(tiny_model("llava"), device="cpu", dtype="float32")
        torch.manual_seed(0)
        adapted = get_peft_model(
            base.model,
            config
            or LoraConfig(
                r=4, target_modules=r".*language_model.*(k_proj|up_proj)", init_lora_weights=False
            ),
        )
        adapted.save_pretrained(tmp_path / "adapters")
        return tmp_path / "adapters", adapted

    return make


def score(mllm: MLLM) -> torch.Tensor:
    picture = torch.arange(48 * 64 * 3, dtype=torch.uint8).reshape(48, 64, 3).numpy()
    return Reranker(mllm).score([("Red?", Document(picture, caption="a roof"))])


def test_a_folder_of_adapters_loads_merged(adapters, tiny_model, tiny_mllm):
    folder, adapted = adapters()
    loaded = MLLM.from_pretrained(folder, device="cpu", dtype="float32")
    assert loaded.architecture == "llava"
    assert not any("lora" in name for name, _ in loaded.model.named_parameters())
    with torch.no_grad():
        base = MLLM.from_pretrained(tiny_model("llava"), device="cpu", dtype="float32")
        prompt = base.prompting.encode_prompt(base.prompting.render("Yes or No?"))
        expected = adapted(**base.model_inputs([prompt])).logits
        torch.testing.assert_close(loaded.model(**loaded.model_inputs([prompt])).logits, expected)
    assert abs(score(loaded) - score(tiny_mllm("llava"))) > 1e-4
    assert loaded.fingerprint != tiny_mllm("llava").fingerprint


def test_a_base_beside_its_adapters_is_found_from_anywhere(adapters, tiny_model, monkeypatch):
    folder, _ = adapters()
    shutil.copytree(tiny_model("llava"), folder / "base")
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "base"
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    monkeypatch.chdir("/")
    assert MLLM.from_pretrained(folder, device="cpu").architecture == "llava"


def test_adapters_are_merged_into_the_model_that_is_given(adapters, tiny_model):
    folder, adapted = adapters(
        LoraConfig(r=2, target_modules=r".*v_proj", modules_to_save=["lm_head"])
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name or "lm_head.modules_to_save" in name:
                weight.add_(0.1)
    adapted.save_pretrained(folder)
    _config(folder, base_model_name_or_path="/it/was/trained/here")
    with pytest.raises(FileNotFoundError, match="give the folder as adapters="):
        MLLM.from_pretrained(folder)
    base = tiny_model("llava")
    loaded = MLLM.from_pretrained(base, adapters=folder, device="cpu", dtype="float32")
    with torch.no_grad():
        prompt = loaded.prompting.encode_prompt(loaded.prompting.render("Yes or No?"))
        batch = loaded.model_inputs([prompt])
        torch.testing.assert_close(loaded.model(**batch).logits, adapted(**batch).logits)
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_config\.json"):
        MLLM.from_pretrained(base, adapters=base)
    with pytest.raises(UnsupportedModelError, match="a folder of adapters itself"):
        MLLM.from_pretrained(folder, adapters=folder)


def test_a_tokenizer_beside_adapters_is_the_models_or_refused(adapters, tiny_model):
    folder, _ = adapters()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_model("llava") / name, folder / name)
    assert MLLM.from_pretrained(folder, device="cpu").architecture == "llava"
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(UnsupportedModelError, match="another chat template than its model"):
        MLLM.from_pretrained(folder, device="cpu")
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["added_tokens"].pop()
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedModelError, match=r"another tokenizer .*save the whole"):
        MLLM.from_pretrained(folder, device="cpu")


def _config(folder: Path, **changes: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors")


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def _cut(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_pickled, r"is a folder of adapters, and holds no adapter_model\.safetensors"),
        (_cut, r"adapter_model\.safetensors is no whole safetensors file"),
        (lambda f: _weights(f, dict.popitem), r"0 weights have no place .* and 1 are not there"),
        (lambda f: _weights(f, lambda w: w.update(x=torch.ones(1))), "does not fit its model: 1 w"),
        (
            lambda f: _weights(f, lambda w: w.update({k: v[:1].clone() for k, v in w.items()})),
            "its adapters cannot be loaded",
        ),
        (lambda f: _config(f, base_model_name_or_path=None), "does not name their model"),
        (
            lambda f: _config(f, base_model_name_or_path="/no/such/model"),
            r"on '/no/such/model', which cannot be used: there is no model folder",
        ),
        (
            lambda f: _config(f, base_model_name_or_path=str(f)),
            "a folder of adapters itself",
        ),
        (lambda f: _config(f, peft_type="MAGIC"), "adapters' settings cannot be loaded"),
        (lambda f: (f / "adapter_config.json").write_text("{"), r"adapter_config\.json holds no"),
        (lambda f: shutil.copy(f / "adapter_model.safetensors", f / "model.safetensors"), "both"),
    ],
)
def test_damaged_adapters_are_named_in_one_line(damage, message, adapters):
    folder, _ = adapters()
    damage(folder)
    with pytest.raises((OSError, UnsupportedModelError), match=message) as caught:
        MLLM.from_pretrained(folder, device="cpu")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_adapters_that_add_to_the_prompt_are_refused(adapters):
    folder, _ = adapters(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(UnsupportedModelError, match="PROMPT_TUNING adapters"):
        MLLM.from_pretrained(folder, device="cpu")


def test_without_peft_the_error_says_what_to_do(adapters, monkeypatch):
    folder, _ = adapters()
    monkeypatch.setitem(sys.modules, "peft", None)  # as where it is not installed
    with pytest.raises(ImportError, match=r"folder of adapters: install PEFT.*ragvl\[train\]"):
        MLLM.from_pretrained(folder, device="cpu")
