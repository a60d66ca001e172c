"""Other code in a decoder's layers: scores within rounding, and bits as independent of company."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import ARCHITECTURES
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ragvl import Document, Reranker
from ragvl.mllm import MLLM
from ragvl.mllm.layers import LayerCode, code_in_force, replace_code

_QUERIES = ("Is it red?", "Which of the two buildings has more windows, A or B?")


def pairs() -> list[tuple[str, Document]]:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (48, 40 + 24 * i, 3), np.uint8) for i in range(4)]
    captions = ("A barn", None, "The lighthouse of Velmora, 1987", "A mill " * 5)
    documents = [
        Document(image=Image.fromarray(picture), caption=caption)
        for picture, caption in zip(pictures, captions, strict=True)
    ]
    return [(query, document) for query in _QUERIES for document in documents]


def load(folder: Path, layers: LayerCode, dtype: str = "float32", *, device: str = "cpu") -> MLLM:
    return MLLM.from_pretrained(folder, device=device, dtype=dtype, layers=layers)


_ON_CPU = [*(("fused", name, "cpu") for name in ARCHITECTURES), ("compiled", "qwen3_vl", "cpu")]
_ON_GPU = [
    pytest.param(layers, name, "cuda", marks=pytest.mark.gpu)  # in CUDA graphs
    for layers in ("fused", "compiled")
    for name in ("qwen3_vl", "gemma3")
]


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "architecture", "device"), [*_ON_CPU, *_ON_GPU])
def test_scores_are_those_of_eager_layers_and_independent_of_company(
    layers: LayerCode,
    architecture: str,
    device: str,
    tiny_model: Callable[[str], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tiny_model(architecture)
    expected = Reranker(load(folder, "eager", device=device)).score(pairs())
    mllm = load(folder, layers, device=device)
    assert code_in_force(mllm.decoder.layers) == layers
    assert "layers=" not in caplog.text
    cached = Reranker(mllm)
    with profile(activities=[ProfilerActivity.CPU]) as run:
        scores = cached.score(pairs())
    operators = {event.key for event in run.key_averages()}
    for operation in ("residual_rms_norm", "rotary_embedding"):
        assert (f"ragvl::{operation}" in operators) == (layers == "fused")
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    assert torch.equal(torch.cat([cached.score([pair]) for pair in pairs()]), scores)
    assert torch.equal(Reranker(mllm, prefix_cache=None).score(pairs()[::-1]).flip(0), scores)


@pytest.mark.slow
def test_layers_that_carry_a_state_keep_what_is_their_own(
    tiny_model: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    for architecture, code in (("llava_lfm2", "fused"), ("qwen3_5", "eager")):
        folder = tiny_model(architecture)
        mllm = load(folder, "fused")
        assert code_in_force(mllm.decoder.layers) == code
        scores, expected = (Reranker(x).score(pairs()) for x in (mllm, load(folder, "eager")))
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    assert "leaves the residual connections of Lfm2DecoderLayer as is" in caplog.text
    assert "layers='fused' is not for this model" in caplog.text  # part of a head is rotated


@pytest.mark.slow
def test_bfloat16_errs_no_more_than_eager_layers(tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model("gemma3")
    exact = Reranker(load(folder, "eager")).score(pairs())
    eager, fused = (
        (Reranker(load(folder, layers, "bfloat16")).score(pairs()) - exact).norm()
        for layers in ("eager", "fused")
    )
    assert fused <= 1.5 * eager


def test_gradients_come_from_the_layers_own_code(tiny_model: Callable[[str], Path]) -> None:
    def gradient(mllm: MLLM) -> Tensor:
        prompt = mllm.prompting.encode_prompt(mllm.prompting.render("Yes or No?"))
        mllm.decoder.hidden_states(mllm.model_inputs([prompt])).sum().backward()
        grad = mllm.decoder.layers[0].self_attn.k_proj.weight.grad
        assert grad is not None
        return grad

    eager, fused = (gradient(load(tiny_model("llava"), layers)) for layers in ("eager", "fused"))
    assert torch.equal(eager, fused)


def _logits(mllm: MLLM) -> Tensor:
    prompt = mllm.prompting.encode_prompt(mllm.prompting.render("Yes or No?"))
    with torch.no_grad():
        return mllm.model(**mllm.model_inputs([prompt])).logits


def test_autocast_runs_the_layers_own_code(tiny_model: Callable[[str], Path]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        eager, fused = (_logits(load(tiny_model("llava"), layers)) for layers in ("eager", "fused"))
    assert torch.equal(eager, fused)


@pytest.mark.parametrize("part", ["mlp", "input_layernorm"])
def test_a_part_replaced_after_loading_is_the_one_that_runs(
    part: str, tiny_model: Callable[[str], Path]
) -> None:
    eager, fused = (load(tiny_model("llava"), layers) for layers in ("eager", "fused"))
    before = _logits(eager)
    for mllm in (eager, fused):
        first, second = mllm.decoder.layers
        setattr(first, part, getattr(second, part))
    assert (_logits(eager) - before).abs().max() > 1e-2
    torch.testing.assert_close(_logits(fused), _logits(eager), rtol=0, atol=1e-4)


def test_the_last_adapter_made_of_a_model_decides(tiny_model: Callable[[str], Path]) -> None:
    fused = load(tiny_model("llava"), "fused")
    scores, environment = Reranker(fused).score(pairs()), fused.environment_name
    eager = MLLM(fused.model, fused.prompting.processor)
    assert code_in_force(fused.decoder.layers) == "eager"
    assert not any("forward" in vars(layer) for layer in fused.decoder.layers)
    assert eager.environment_name == fused.environment_name != environment
    assert not torch.equal(Reranker(eager).score(pairs()), scores)


def test_an_unknown_code_is_refused_before_loading(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layers='fast': expected one of eager, compiled, fused"):
        MLLM.from_pretrained(tmp_path / "none", layers="fast")  # type: ignore[arg-type]


class _Attention(nn.Linear):
    def forward(self, hidden_states: Tensor) -> tuple[Tensor]:
        return (super().forward(hidden_states),)


class _Layer(nn.Module):
    """A layer as Hugging Face's are built, with a factor on its residual connections."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.input_layernorm = LlamaRMSNorm(8)
        self.self_attn = _Attention(8, 8)
        self.post_attention_layernorm = LlamaRMSNorm(8)
        self.mlp = nn.Linear(8, 8)
        self.factor = factor

    def forward(self, hidden_states: Tensor) -> Tensor:
        (attended,) = self.self_attn(hidden_states=self.input_layernorm(hidden_states))
        hidden_states = self.factor * hidden_states + attended
        return self.factor * hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


@pytest.mark.parametrize(("factor", "in_force"), [(1.0, "fused"), (0.5, "eager")])
@torch.no_grad()
def test_layers_that_compute_something_else_keep_their_code(
    factor: float, in_force: LayerCode, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList(_Layer(factor) for _ in range(2))
    hidden = torch.randn(1, 3, 8)

    def run() -> Tensor:
        return layers[1](layers[0](hidden))

    expected = run()
    with caplog.at_level(logging.WARNING):
        replace_code(layers, "fused", run)
    assert code_in_force(layers) == in_force
    torch.testing.assert_close(run(), expected)
    said = "leaves the rotary embedding of _Attention as is" if factor == 1 else "results differ"
    assert [said in record.getMessage() for record in caplog.records] == [True]
