"""Quantised checkpoints load where their package is there, and are refused by name where not.

BitNet's needs no package but accelerate, so it stands for all that load.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from plain import picture, plain_scores
from torch import Tensor, nn
from transformers.integrations.bitnet import AutoBitLinear, BitLinear
from typer.testing import CliRunner

from ragvl import Document, Query, Reranker
from ragvl.cli import app
from ragvl.mllm import MLLM, UnsupportedModelError, check_reader, company_problem
from ragvl.mllm.quantized import check_head_weight

ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    """BitNet's few operations need no compiler."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def quantized(tiny_model, tmp_path) -> Callable[..., Path]:
    """A tiny LLaVA's folder that says how it is quantised."""

    def folder(**settings: Any) -> Path:
        to = tmp_path / "model"
        shutil.copytree(tiny_model("llava"), to)
        config = json.loads((to / "config.json").read_text())
        (to / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
        return to

    return folder


def load(folder: Path, **options: Any) -> Reranker:
    return Reranker.from_pretrained(folder, device="cpu", dtype="float32", **options)


# --- what is not here ---------------------------------------------------------------------------

PACKAGES: list[tuple[str, dict[str, Any]]] = [
    ("torchao", {"quant_method": "torchao", "quant_type": "int8_weight_only"}),
    ("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    ("bitsandbytes", {"load_in_8bit": True}),
    ("compressed-tensors", {"quant_method": "compressed-tensors", "format": "pack-quantized"}),
    ("optimum", {"quant_method": "gptq", "bits": 4}),
]


@pytest.mark.parametrize(("package", "settings"), PACKAGES)
def test_a_package_that_is_not_installed_is_named(package, settings, quantized):
    if find_spec(package.replace("-", "_")) is not None:
        pytest.skip(f"{package} is installed")
    folder = quantized(**settings)
    with pytest.raises(ImportError, match=rf"weights are quantised .*{package}") as caught:
        load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    outcome = CliRunner().invoke(app, ["rerank", "q", "--text", "a", "--model", str(folder)])
    assert outcome.exit_code == 1
    assert package in outcome.output and "Traceback" not in outcome.output


@pytest.mark.parametrize("settings", [{"quant_method": "mine"}, {"bits": 4}])
def test_an_unknown_method_is_refused(settings, quantized):
    with pytest.raises(UnsupportedModelError, match=r"config\.json: the weights are quantised"):
        load(quantized(**settings))


# --- what is ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_quantised_model_is_scored(quantized, tiny_model):
    reranker = load(quantized(**ONLINE))
    kinds = [type(module) for module in reranker.mllm.model.modules()]
    assert AutoBitLinear in kinds
    pairs = [
        (Query("Red?"), Document(picture(1), caption="A barn")),
        (Query("Is it a mill?"), Document(picture(2, 90), caption="A long mill by a river")),
        (Query("Red?"), Document(text="A red barn")),
    ]
    cold = reranker.score(pairs)
    # What is multiplied is rounded to 8 bits, so the last bits of a state may make more of a step
    torch.testing.assert_close(cold, plain_scores(reranker, pairs), atol=2e-3, rtol=0)
    assert (cold - load(tiny_model("llava")).score(pairs)).abs().max() > 0.01
    assert torch.equal(reranker.score(pairs), cold), "from the cache"
    alone = torch.cat([reranker.score([pair]) for pair in pairs])
    assert torch.equal(alone, cold), "in any company"
    assert pickle.loads(pickle.dumps(reranker.mllm)).fingerprint == reranker.mllm.fingerprint


def test_every_byte_of_quantised_weights_is_named(quantized, tiny_mllm):
    mllm = MLLM.from_pretrained(quantized(**ONLINE), device="cpu", dtype="float32")
    assert mllm.fingerprint != tiny_mllm("llava").fingerprint
    before = mllm.fingerprint
    layer = next(one for one in mllm.model.modules() if isinstance(one, AutoBitLinear))
    with torch.no_grad():
        layer.weight[-1, -1] += 1
    assert mllm.fingerprint != before


def test_a_quantised_head_is_refused(quantized):
    head = BitLinear(16, 8, bias=False)
    with pytest.raises(UnsupportedModelError, match=r"head is quantised \(BitLinear.*: lm_head"):
        check_head_weight(head)
    with pytest.raises(UnsupportedModelError, match="computes its logits otherwise"):
        load(quantized(**ONLINE, modules_to_not_convert=["vision_tower"]))


class _OneScale(nn.Linear):
    """Rounds what it multiplies by the largest number of all rows."""

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().max() / 127
        return super().forward((x / scale).round() * scale)


@pytest.fixture
def mixing(quantized) -> MLLM:
    mllm = MLLM.from_pretrained(quantized(**ONLINE), device="cpu", dtype="float32")
    mlp = mllm.decoder.layers[0].mlp
    mlp.up_proj = _OneScale(mlp.up_proj.in_features, mlp.up_proj.out_features)
    return mllm


def test_products_that_mix_rows_are_not_deterministic(mixing, tiny_mllm):
    assert company_problem(tiny_mllm("llava").model) is None
    with pytest.raises(UnsupportedModelError, match=r"_OneScale depend on other rows.*determinis"):
        Reranker(mixing)
    reranker = Reranker(mixing, deterministic=False)
    assert reranker.score([("Red?", Document(text="A barn"))]).isfinite().all()


def test_adapters_are_not_merged_into_quantised_weights(quantized, tiny_model, tmp_path):
    base = MLLM.from_pretrained(tiny_model("llava"), device="cpu", dtype="float32")
    adapted = get_peft_model(base.model, LoraConfig(r=2, target_modules=r".*q_proj"))
    adapted.save_pretrained(tmp_path / "adapters")
    with pytest.raises(UnsupportedModelError, match=r"cannot be merged .*as it was before that"):
        load(quantized(**ONLINE), adapters=tmp_path / "adapters")


def test_quantised_weights_are_not_trained(quantized):
    folder = quantized(**ONLINE)
    check_reader(folder)
    with pytest.raises(UnsupportedModelError, match=r"quantise the result"):
        check_reader(folder, to_train=True)
