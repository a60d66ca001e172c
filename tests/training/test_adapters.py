"""Adapters only where training is allowed, whatever pattern names the layers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_models import ARCHITECTURES
from transformers import TrainingArguments

from ragvl.data.webqa import WebQA
from ragvl.mllm import MLLM
from ragvl.training import command
from ragvl.training.adapters import LoraSettings, layers_to_adapt, trainable
from ragvl.training.examples import AnswerExamples
from ragvl.training.trainer import TrainingDivergedError, train

# Layers of decoders, and of every tiny vision tower too
EVERYWHERE = r".*\.(q_proj|v_proj|qkv|fc1|up_proj)"


@pytest.fixture
def fresh(tiny_model: Callable[[str], Path]) -> Callable[[str], MLLM]:
    """A model that the test may change."""
    return lambda name: MLLM.from_pretrained(tiny_model(name), device="cpu")


def arguments(folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=1, learning_rate=1e-2,
        save_steps=2, use_cpu=True, disable_tqdm=True, report_to="none",
    )  # fmt: skip


def in_decoder(mllm: MLLM) -> str:
    """The name of the decoder in the whole model."""
    decoder = mllm.model.get_decoder()
    return next(name for name, module in mllm.model.named_modules() if module is decoder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_adapters_compute_in_the_models_dtype_and_learn_in_float32(
    dtype: torch.dtype, tiny_model: Callable[[str], Path]
) -> None:
    mllm = MLLM.from_pretrained(tiny_model("llava"), device="cpu", dtype=dtype)
    model = trainable(mllm, LoraSettings(rank=4, alpha=12), freeze_vision=True)
    layer = next(m for m in model.modules() if hasattr(m, "lora_A"))
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(up)
    x = torch.randn(3, 5, layer.in_features, dtype=dtype, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(x)
    towards = torch.randn_like(y)
    y.backward(towards)

    exact = [t.detach().double().requires_grad_() for t in (x, down, up)]
    wide, a, b = exact
    expected = wide @ layer.base_layer.weight.double().T + 12 / 4 * (wide @ a.T) @ b.T
    expected.backward(towards.double())
    assert y.dtype == dtype
    assert down.grad.dtype == up.grad.dtype == torch.promote_types(dtype, torch.float32)
    unit = 8 * torch.finfo(dtype).eps
    for got, want in [(y, expected)] + [
        (one.grad, other.grad) for one, other in zip((x, down, up), exact, strict=True)
    ]:
        assert (got.double() - want).abs().max() <= unit * want.abs().max()
    # What PEFT's own would keep for the way back is a copy of the input in float32
    assert {t.dtype for t in saved if t.shape[-1] == x.shape[-1]} == {dtype}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_frozen_tower_has_no_adapters(architecture: str, fresh: Callable[[str], MLLM]) -> None:
    mllm = fresh(architecture)
    own = set(mllm.model.parameters())
    decoder = in_decoder(mllm)
    for target_modules in (None, "all-linear", EVERYWHERE, ".*", ["q_proj", "v_proj"]):
        lora = LoraSettings(rank=2, target_modules=target_modules)
        targets = layers_to_adapt(mllm, lora, freeze_vision=True).targets
        model = trainable(mllm, lora, freeze_vision=True)
        learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert own.isdisjoint(learning.values()), "adapters, and no weight of the model"
        names = {n.partition(".lora_")[0].removeprefix("base_model.model.") for n in learning}
        assert names == set(targets) != set()
        assert all(name.startswith(decoder) for name in names)
        mllm.model = model.unload()


@pytest.mark.parametrize("architecture", ["llava", "qwen2_5_vl"])
def test_frozen_weights_stay_and_adapters_load_again(
    architecture: str, fresh: Callable[[str], MLLM], questions: WebQA, tmp_path: Path
) -> None:
    """Whether they are merged by training or by PEFT; Qwen's head is its embedding table."""
    mllm, base = fresh(architecture), fresh(architecture)
    before = {name: tensor.clone() for name, tensor in mllm.model.state_dict().items()}
    lora = LoraSettings(rank=2, target_modules=EVERYWHERE)
    train(mllm, arguments(tmp_path), AnswerExamples(questions, mllm.prompting), lora=lora)
    merged = MLLM.from_pretrained(tmp_path, device="cpu").model.state_dict()
    changed = [name for name, tensor in merged.items() if not tensor.equal(before[name])]
    assert changed
    assert [name for name in changed if not name.startswith(in_decoder(mllm))] == []
    adapters = PeftModel.from_pretrained(base.model, tmp_path / "checkpoint-2")
    for name, tensor in adapters.merge_and_unload().state_dict().items():
        torch.testing.assert_close(tensor, merged[name], rtol=0, atol=0)


def test_what_is_left_out_is_said(
    fresh: Callable[[str], MLLM], caplog: pytest.LogCaptureFixture
) -> None:
    """Frozen layers; a head whose own weights the loss reads; an embedding table that it shares."""
    mllm = fresh("qwen2_5_vl")
    trainable(mllm, LoraSettings(rank=2, target_modules=".*"), freeze_vision=True)
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(said) == 3
    assert all("14 layers get adapters" in message for message in said)
    assert any("visual" in message and "freeze_vision" in message for message in said)
    assert any("lm_head" in message and "the loss reads" in message for message in said)
    assert any("embed_tokens" in message and "lm_head's too" in message for message in said)


def test_an_unfrozen_tower_has_them_where_named(
    fresh: Callable[[str], MLLM], caplog: pytest.LogCaptureFixture
) -> None:
    lora = LoraSettings(rank=2, target_modules=r".*vision_tower.*q_proj")
    model = trainable(fresh("llava"), lora, freeze_vision=False)
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learning and all("vision_tower" in name for name in learning)
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]
    trainable(fresh("llava"), LoraSettings(rank=2), freeze_vision=False)
    assert "names no layer of the vision tower" in caplog.text


@pytest.mark.parametrize(
    ("target_modules", "complaint"),
    [
        ("nothing_like_that", r"'nothing_like_that' matches no layer; .* such as 'model\."),
        ("q_proj", r"'q_proj' matches no layer"),  # as an expression, a whole name
        (".*vision_tower.*q_proj", "matches 2 layers that cannot train, .*: freeze_vision"),
        ("lm_head", "lm_head: the loss reads the head's own weights"),
        (["q_proj", "typo_proj"], "'typo_proj' matches no layer"),
        (["q_proj", "fc1"], "'fc1' matches 2 layers that cannot train"),
    ],
    ids=str,
)
def test_a_pattern_that_names_nothing_is_refused_before_work(
    target_modules: list[str] | str,
    complaint: str,
    fresh: Callable[[str], MLLM],
    questions: WebQA,
    tmp_path: Path,
) -> None:
    mllm = fresh("llava")
    lora = LoraSettings(rank=2, target_modules=target_modules)
    with pytest.raises(ValueError, match=complaint):
        train(
            mllm, arguments(tmp_path / "new"), AnswerExamples(questions, mllm.prompting), lora=lora
        )
    assert not (tmp_path / "new").exists()


def test_the_command_checks_patterns_before_it_reads_the_data(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    flags = {
        "model": tiny_model("llava"),
        "data": tmp_path,  # which holds none
        "output_dir": tmp_path / "new",
        "lora.rank": 2,
        "lora.target_modules": ".*vision_tower.*",
    }
    with pytest.raises(ValueError, match="cannot train"):
        command.run("generator", [f"--{name}={value}" for name, value in flags.items()])


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (".*[qv]_proj", ".*[qv]_proj"),
        ("[qv]_proj", "[qv]_proj"),
        ("all-linear", "all-linear"),
        ("[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("null", None),
    ],
)
def test_layers_as_flags_name_them(written: str, expected: list[str] | str | None) -> None:
    needed = ["--model=m", "--data=d", "--output_dir=o", "--lora.rank=2"]
    planned = command.plan("generator", [*needed, f"--lora.target_modules={written}"])
    assert planned.lora.target_modules == expected


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"rank": -1}, "expected 0 or more"),
        ({"alpha": -1}, "expected 0 or more"),
        ({"dropout": 1.0}, "expected 0 or more"),
        ({"rank": 2, "target_modules": "(unclosed"}, "'\\(unclosed' is no regular expression"),
        ({"rank": 2, "target_modules": []}, "names no layers"),
        ({"target_modules": "q_proj"}, "no adapters"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LoraSettings(**settings)


def test_training_that_fails_leaves_no_adapters(
    fresh: Callable[[str], MLLM], questions: WebQA, tmp_path: Path
) -> None:
    mllm = fresh("llava")
    with torch.no_grad():
        mllm.model.get_output_embeddings().weight[3] = float("nan")
    before = {name: tensor.clone() for name, tensor in mllm.model.state_dict().items()}
    with pytest.raises(TrainingDivergedError):
        train(
            mllm,
            arguments(tmp_path),
            AnswerExamples(questions, mllm.prompting),
            lora=LoraSettings(rank=2),
        )
    after = mllm.model.state_dict()
    assert after.keys() == before.keys()
    torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
