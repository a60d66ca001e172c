"""Checkpoints that bring a score network in their files, and have no language-model head."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from plain import picture
from safetensors.torch import load_file, save_file
from torch import Tensor

from ragvl import Document, Reranker
from ragvl.mllm import MLLM, UnsupportedModelError
from ragvl.reranker import LayerWeights, Preset, ScoreWeights

LINEAR = ScoreWeights((LayerWeights("score.weight"),), pooling="mean")
# jina-reranker-m0's
MLP = ScoreWeights(
    (LayerWeights("score.0.weight", "score.0.bias", "relu"), LayerWeights("score.2.weight")),
    bias=-2.65,
)
DENSE = ScoreWeights((LayerWeights("linear.weight", "linear.bias", file="2_Dense/w.safetensors"),))
QUERY = "What color is the roof?"


def drawn(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=draw) / shape[-1] ** 0.5


def score_tensors(width: int) -> dict[str, Tensor]:
    return {
        "score.weight": drawn(1, width),
        "score.0.weight": drawn(12, width).bfloat16(),  # as published
        "score.0.bias": drawn(12),
        "score.2.weight": drawn(1, 12),
    }


def with_scores(
    source: Path, to: Path, change: Callable[[dict[str, Tensor]], object] = lambda _: None
) -> Path:
    """The checkpoint without a language-model head, with score networks, in two shards."""
    shutil.copytree(source, to)
    weights = load_file(to / "model.safetensors")
    (to / "model.safetensors").unlink()
    width = next(len(w) for name, w in weights.items() if name.endswith("input_layernorm.weight"))
    weights.pop("lm_head.weight", None)
    weights |= score_tensors(width)
    dense = {"linear.weight": drawn(1, width), "linear.bias": drawn(1)}
    change(weights)
    change(dense)
    (to / "2_Dense").mkdir()
    save_file(dense, to / "2_Dense" / "w.safetensors")
    names = sorted(weights)
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: weights[n] for n in names if files[n] == file}, to / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": files}
    (to / "model.safetensors.index.json").write_text(json.dumps(index))
    return to


def load(folder: Path, head: ScoreWeights, **options: object) -> Reranker:
    preset = Preset("scored", head=head)
    return Reranker.from_pretrained(
        folder, preset=preset, device="cpu", **{"dtype": "float32", **options}
    )


@torch.inference_mode()
def expected_raw(
    reranker: Reranker, full: MLLM, head: ScoreWeights, pair: tuple[str, Document], folder: Path
) -> float:
    """In float64, on the hidden states of the whole model with its own head and norm."""
    image = full.prompting.encode_image(pair[1].load())
    prompt = full.prompting.encode_prompt(reranker.prompt(*pair), [image])
    batch = full.model_inputs([prompt])
    states = full.model.base_model(**batch, use_cache=False).last_hidden_state[0].double()
    x = states.mean(0) if head.pooling == "mean" else states[-1]
    if head is DENSE:
        dense = load_file(folder / "2_Dense" / "w.safetensors")
        return float(dense["linear.weight"].double() @ x + dense["linear.bias"])
    scores = {name: tensor.double() for name, tensor in score_tensors(len(x)).items()}
    if head is LINEAR:
        return float(scores["score.weight"] @ x)
    x = (scores["score.0.weight"] @ x + scores["score.0.bias"]).clamp(min=0)
    return float(scores["score.2.weight"] @ x) - 2.65


@pytest.fixture(scope="module")
def scored(tiny_model, tmp_path_factory) -> Callable[[str], Path]:
    def folder(architecture: str) -> Path:
        path = tmp_path_factory.getbasetemp() / f"scored-{architecture}"
        return path if path.exists() else with_scores(tiny_model(architecture), path)

    return folder


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llava", "qwen2_vl", "internvl", "qwen3_vl"])
@pytest.mark.parametrize("head", [LINEAR, MLP, DENSE], ids=["linear", "mlp", "dense"])
def test_a_network_is_read_from_the_checkpoint(architecture, head, scored, tiny_mllm) -> None:
    reranker = load(scored(architecture), head)
    pairs = [
        (QUERY, Document(picture(1), caption="A barn")),
        (QUERY, Document(picture(2, 90), caption="A long mill by a river")),
        ("Is it a mill?", Document(picture(3, 44), caption="A mill")),
    ]
    full = tiny_mllm(architecture)
    expected = [expected_raw(reranker, full, head, pair, scored(architecture)) for pair in pairs]
    raw = reranker.score(pairs, raw=True)
    np.testing.assert_allclose(raw.numpy(), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_bfloat16_models_are_scored_in_float32(scored) -> None:
    """Against float64 on the very states that the bfloat16 decoder gives."""
    reranker = load(scored("qwen2_vl"), MLP, dtype="bfloat16", prefix_cache=None)
    mllm = reranker.mllm
    document = Document(picture(1), caption="A barn")
    prompt = mllm.prompting.encode_prompt(
        reranker.prompt(QUERY, document), [mllm.prompting.encode_image(document.load())]
    )
    hidden = mllm.hidden_states([prompt])[0, -1].double()
    norm = mllm.norm.module
    normed = hidden / (hidden.square().mean() + norm.variance_epsilon).sqrt()
    x = normed * norm.weight.double()
    scores = {name: tensor.double() for name, tensor in score_tensors(len(x)).items()}
    x = (scores["score.0.weight"] @ x + scores["score.0.bias"]).clamp(min=0)
    expected = float(scores["score.2.weight"] @ x) - 2.65
    head = reranker.head.on(mllm)
    raw = head(mllm.hidden_states([prompt])[0], torch.tensor([len(prompt) - 1]))
    assert raw.item() == pytest.approx(expected, abs=2e-6)
    # Through halves the decoder rounds otherwise, by no more than bfloat16 does
    assert reranker.score([(QUERY, document)], raw=True).item() == pytest.approx(expected, abs=0.02)


def test_a_model_without_a_language_model_head_says_what_it_cannot(scored, tiny_model) -> None:
    folder = scored("qwen2_vl")
    with pytest.raises(UnsupportedModelError, match=r"lacks 1 weights.*lm_head\.weight"):
        Reranker.from_pretrained(folder, device="cpu")
    reranker = load(folder, MLP)
    with pytest.raises(UnsupportedModelError, match="Qwen2VLModel has no language-model head"):
        Reranker(reranker.mllm)
    prompt = reranker.mllm.prompting.probe_prompt()
    with pytest.raises(UnsupportedModelError, match="neither writes nor scores by answer words"):
        reranker.mllm.generate([prompt], max_new_tokens=1)
    with pytest.raises(UnsupportedModelError, match="no language-model head"):
        reranker.mllm.next_token_share(prompt, [1])
    # a model that has one may leave it out
    full = MLLM.from_pretrained(tiny_model("qwen2_vl"), device="cpu")
    without = MLLM.from_pretrained(tiny_model("qwen2_vl"), device="cpu", language_head=False)
    assert torch.equal(full.hidden_states([prompt]), without.hidden_states([prompt]))
    assert without.kv_layout == full.kv_layout
    names = [name for name, _ in without.model.named_parameters()]
    assert not any("lm_head" in name for name in names)


def test_it_goes_to_another_process_by_its_folder(scored) -> None:
    reranker = load(scored("qwen2_vl"), MLP)
    pairs = [(QUERY, Document(picture(1), caption="A barn"))]
    raw = reranker.score(pairs, raw=True)
    again = pickle.loads(pickle.dumps(reranker))
    assert torch.equal(again.score(pairs, raw=True), raw)
    assert again.fingerprint == reranker.fingerprint


def _rename(weights: dict[str, Tensor]) -> None:
    for name in ("score.0.bias", "linear.bias"):
        if name in weights:
            weights[f"{name}s"] = weights.pop(name)


def _widen(weights: dict[str, Tensor]) -> None:
    for name in ("score.0.weight", "linear.weight"):
        if name in weights:
            weights[name] = torch.ones(len(weights[name]), weights[name].shape[1] + 1)


def _spoil(weights: dict[str, Tensor]) -> None:
    for name in ("score.0.weight", "linear.weight"):
        if name in weights:
            weights[name] = weights[name].clone()
            weights[name][0, 2] = torch.nan


@pytest.mark.parametrize("head", [MLP, DENSE], ids=["mlp", "dense"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename, r"lacks weights of the score network, which would be random: .*\.bias"),
        (_widen, r"takes states of \d+ numbers, and those of the model have \d+"),
        (_spoil, "the weight of layer 0 of the score network holds NaN"),
    ],
    ids=["missing", "of another width", "nan"],
)
def test_weights_that_do_not_fit_are_refused_before_the_model_is_read(
    change, message, head, tiny_model, tmp_path, monkeypatch
) -> None:
    folder = with_scores(tiny_model("qwen2_vl"), tmp_path / "broken", change)
    monkeypatch.setattr(MLLM, "from_pretrained", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UnsupportedModelError, match=f"broken.*{message}"):
        load(folder, head)


def test_a_missing_file_is_refused_before_the_model_is_read(scored, tmp_path, monkeypatch) -> None:
    folder = shutil.copytree(scored("qwen2_vl"), tmp_path / "copy")
    shutil.rmtree(folder / "2_Dense")
    monkeypatch.setattr(MLLM, "from_pretrained", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(FileNotFoundError, match=r"2_Dense.w\.safetensors is missing"):
        load(folder, DENSE)


# --- in adapters --------------------------------------------------------------------------------


@pytest.mark.parametrize("with_head", [True, False], ids=["of the whole model", "of its base"])
@torch.no_grad()
def test_a_network_that_was_trained_with_adapters_is_read_from_them(
    with_head, scored, tiny_model, tmp_path
) -> None:
    """As PEFT saves `modules_to_save=["score"]`, beside adapters by either class's names."""
    full = MLLM.from_pretrained(tiny_model("qwen2_vl"), device="cpu", dtype="float32")
    torch.manual_seed(0)
    settings = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    adapted = get_peft_model(full.model if with_head else full.model.base_model, settings)
    adapted.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    width = full.model.config.get_text_config().hidden_size
    trained = torch.full((1, width), 0.5)
    save_file(
        {**weights, "base_model.model.score.weight": trained},
        tmp_path / "adapter_model.safetensors",
        {"format": "pt"},
    )
    config = tmp_path / "adapter_config.json"
    found = json.loads(config.read_text()) | {"modules_to_save": ["score"]}
    config.write_text(json.dumps(found | {"base_model_name_or_path": str(scored("qwen2_vl"))}))

    document = Document(picture(1), caption="A barn")
    for reranker in (
        load(tmp_path, LINEAR),
        load(scored("qwen2_vl"), LINEAR, adapters=tmp_path),
    ):
        assert not any("lora" in name for name, _ in reranker.mllm.model.named_modules())
        image = full.prompting.encode_image(document.load())
        prompt = full.prompting.encode_prompt(reranker.prompt(QUERY, document), [image])
        batch = full.model_inputs([prompt])
        states = full.model.base_model(**batch, use_cache=False).last_hidden_state[0].double()
        expected = float(trained.double() @ states.mean(0))
        raw = reranker.score([(QUERY, document)], raw=True)
        assert raw.item() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UnsupportedModelError, match=r"[19] weights have no place in it"):
        Reranker.from_pretrained(tiny_model("qwen2_vl"), adapters=tmp_path, device="cpu")
