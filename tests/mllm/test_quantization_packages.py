"""Checkpoints that torchao, bitsandbytes and compressed-tensors have quantised, where these are.

Each is written as the package's users write it, and its scores are those of a plain call.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from plain import picture, plain_scores
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models.parts import spread
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig, TorchAoConfig

from ragvl import Document, Query, Reranker
from ragvl.mllm import MLLM, UnsupportedModelError

DENSE = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
PAIRS = [
    (Query("Red?"), Document(picture(1), caption="A barn")),
    (Query("Is it a mill?"), Document(picture(2, 90), caption="A long mill by a river")),
    (Query("Red?"), Document(text="A red barn")),
    (Query("What color is the roof of the tower?"), Document(picture(3, 70), caption="x " * 20)),
]


def load(folder: Path, **options: Any) -> Reranker:
    return Reranker.from_pretrained(folder, device="cpu", dtype="float32", **options)


# --- how each package writes one ----------------------------------------------------------------

Write = Callable[[Path, Path], None]  # a model's folder, and where its quantised form goes


def by_transformers(package: str, settings: Callable[[], Any]) -> Write:
    def write(source: Path, to: Path) -> None:
        pytest.importorskip(package)
        model = AutoModelForImageTextToText.from_pretrained(
            source, quantization_config=settings(), dtype=torch.float32, device_map={"": "cpu"}
        )
        model.save_pretrained(to)

    return write


def torchao(name: str, **settings: Any) -> Write:
    def config() -> TorchAoConfig:
        from torchao import quantization

        how = getattr(quantization, name)(**{key: get() for key, get in settings.items()})
        return TorchAoConfig(how, modules_to_not_convert=DENSE)

    return by_transformers("torchao", config)


def _per_tensor() -> Any:
    from torchao.quantization import PerTensor

    return PerTensor()


def bitsandbytes(**settings: Any) -> Write:
    return by_transformers(
        "bitsandbytes", lambda: BitsAndBytesConfig(**settings, llm_int8_skip_modules=DENSE)
    )


def compressed_tensors(
    form: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None
) -> Write:
    def write(source: Path, to: Path) -> None:
        pytest.importorskip("compressed_tensors")
        from compressed_tensors.compressors import ModelCompressor
        from compressed_tensors.quantization import (
            QuantizationConfig,
            apply_quantization_config,
        )
        from compressed_tensors.quantization.utils import calculate_qparams

        model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
        group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
        ignore = ["lm_head", "re:.*vision_tower.*", "re:.*projector.*"]
        settings = {"config_groups": {"one": group}, "ignore": ignore, "format": form}
        apply_quantization_config(model, QuantizationConfig.model_validate(settings))
        for module in model.modules():
            if (scheme := getattr(module, "quantization_scheme", None)) is not None:
                size = scheme.weights.group_size or module.in_features
                groups = module.weight.detach().unflatten(-1, (-1, size))
                scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
                module.weight_scale.data.copy_(scale)
        compressor = ModelCompressor.from_pretrained_model(model, form)
        compressor.compress_model(model)
        model.save_pretrained(to)
        compressor.update_config(str(to))
        change_config(to, ignore=ignore)  # transformers looks for them under their names in it

    return write


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= changes
    file.write_text(json.dumps(config))


INT8 = {"num_bits": 8, "strategy": "channel"}
BY_TOKEN = {"num_bits": 8, "strategy": "token", "dynamic": True}
FULL = {"bnb_4bit_compute_dtype": torch.float32}
# How far a score with a cached prefix may be from a plain call: where what is multiplied is rounded
# too, the last bits of a state may make a whole step. Prompts that are scored whole are exact.
KINDS: dict[str, tuple[Write, float]] = {
    "torchao int8": (torchao("Int8WeightOnlyConfig"), 1e-5),
    "torchao float8": (torchao("Float8WeightOnlyConfig"), 1e-5),
    "torchao int8 by int8": (torchao("Int8DynamicActivationInt8WeightConfig"), 5e-3),
    "bitsandbytes int8": (bitsandbytes(load_in_8bit=True, llm_int8_threshold=0.0), 5e-3),
    "bitsandbytes fp4": (bitsandbytes(load_in_4bit=True, **FULL), 5e-3),
    "bitsandbytes nf4": (
        bitsandbytes(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            **FULL,
        ),
        5e-3,
    ),
    "compressed-tensors w8a16": (compressed_tensors("int-quantized", INT8), 1e-5),
    "compressed-tensors w4a16": (
        compressed_tensors(
            "pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 16}
        ),
        1e-5,
    ),
    "compressed-tensors w8a8": (compressed_tensors("int-quantized", INT8, BY_TOKEN), 3e-2),
}
MIXING: dict[str, Write] = {
    "torchao": torchao("Int8DynamicActivationInt8WeightConfig", granularity=_per_tensor),
    "bitsandbytes": bitsandbytes(load_in_8bit=True),
    "compressed-tensors": compressed_tensors(
        "int-quantized", INT8, {"num_bits": 8, "strategy": "tensor", "dynamic": True}
    ),
}


@pytest.fixture(scope="module")
def dense(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA whose rows are as long as bitsandbytes' blocks of 64 weights."""
    source, to = tiny_model("llava"), tmp_path_factory.mktemp("dense")
    config = AutoConfig.from_pretrained(source)
    config.text_config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 16})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        spread(model)
    model.save_pretrained(to)
    return _with_processor(source, to)


def _with_processor(source: Path, to: Path) -> Path:
    for file in source.iterdir():
        if not (to / file.name).exists():
            shutil.copy(file, to)
    return to


@pytest.fixture(scope="module")
def quantized(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Write], Path]:
    """The dense model's folder as it is quantised; do not write into it."""

    @cache
    def folder(write: Write) -> Path:
        to = tmp_path_factory.mktemp("quantized")
        write(dense, to)
        return _with_processor(dense, to)

    return folder


# --- what is scored -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_a_plain_call(kind, quantized, dense, monkeypatch):
    write, tolerance = KINDS[kind]
    reranker = load(quantized(write))
    before = reranker.mllm.fingerprint
    cold = reranker.score(PAIRS)
    plain = plain_scores(reranker, PAIRS)
    torch.testing.assert_close(cold, plain, atol=tolerance, rtol=0)
    with monkeypatch.context() as patch:
        patch.setattr("ragvl.reranker.reranker.reuse_problem", lambda _: "not to be reused here")
        whole = Reranker(reranker.mllm).score(PAIRS)
    torch.testing.assert_close(whole, plain, atol=1e-5, rtol=0)
    assert (cold - load(dense).score(PAIRS)).abs().max() > 1e-4
    assert torch.equal(reranker.score(PAIRS), cold), "from the cache"
    assert torch.equal(reranker.score(PAIRS[::-1]).flip(0), cold), "in another order"
    uncached = Reranker(reranker.mllm, prefix_cache=None)
    alone = torch.cat([uncached.score([pair]) for pair in PAIRS])
    assert torch.equal(alone, cold), "in any company"
    assert reranker.mllm.fingerprint == before, "nothing is left to the first call"
    assert pickle.loads(pickle.dumps(reranker.mllm)).fingerprint == before


@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_and_their_scales_are_named(kind, quantized, tmp_path):
    folder = shutil.copytree(quantized(KINDS[kind][0]), tmp_path / "model")
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as opened:
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    parts = [name for name in weights if "layers.0.mlp.up_proj." in name and "shape" not in name]
    assert len(parts) >= 2

    def fingerprint(changed: str | None = None) -> str:
        now = {name: weight.clone() for name, weight in weights.items()}
        if changed is not None:
            now[changed].view(torch.uint8).view(-1)[-2] ^= 4  # of a float32, what bfloat16 keeps
        save_file(now, file, metadata)
        return MLLM.from_pretrained(folder, device="cpu", dtype="float32").fingerprint

    read = [name for name in parts if not name.endswith(("zero_point", "weight_format"))]
    read = [name for name in read if "quant_state" not in name]  # settings, not numbers
    names = [fingerprint(), *map(fingerprint, read)]
    assert len(set(names)) == len(names)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("package", MIXING)
def test_one_scale_for_all_rows_is_refused(package, quantized):
    folder = quantized(MIXING[package])
    with pytest.raises(UnsupportedModelError, match=r"depend on other rows.*deterministic=False"):
        load(folder)
    assert load(folder, deterministic=False).score(PAIRS).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "skipped"),
    [
        ("bitsandbytes int8", "llm_int8_skip_modules"),
        ("bitsandbytes nf4", "llm_int8_skip_modules"),
        ("compressed-tensors w8a16", "ignore"),
    ],
)
def test_dense_modules_under_other_names_are_refused(kind, skipped, quantized, tmp_path):
    folder = shutil.copytree(quantized(KINDS[kind][0]), tmp_path / "model")
    change_config(folder, **{skipped: ["lm_head", "vision_tower", "multi_modal_projector"]})
    with pytest.raises(UnsupportedModelError, match=r"not quantised, config.json has to say so"):
        load(folder)


def test_dense_weights_in_another_dtype_are_refused(quantized):
    folder = quantized(KINDS["bitsandbytes nf4"][0])
    with pytest.raises(UnsupportedModelError, match=r"stay float32 beside .*dtype='float32'"):
        MLLM.from_pretrained(folder, device="cpu", dtype="bfloat16")
