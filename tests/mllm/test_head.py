"""The final norm and the head rows against the modules that they stand for."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_models import ARCHITECTURES
from torch import nn

from ragvl.mllm import MLLM, UnsupportedModelError
from ragvl.mllm.head import LanguageHead, Norm


class Decoder(nn.Module):
    def __init__(self, norm: nn.Module | None) -> None:
        super().__init__()
        if norm is not None:
            self.norm = norm


class Model(nn.Module):
    """As much of a language model as the head looks at."""

    def __init__(self, norm: nn.Module | None, head: nn.Module | None = None, **config: float):
        super().__init__()
        self.decoder = Decoder(norm)
        self.lm_head = head or nn.Linear(8, 20)
        self.config = transformers.LlamaConfig(**config)

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def gemma_norm() -> nn.Module:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

    return randomised(Gemma3RMSNorm(8, eps=1e-3))


def llama_norm() -> nn.Module:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    return randomised(LlamaRMSNorm(8, eps=1e-3))


NORMS = {
    "rms": (lambda: randomised(nn.RMSNorm(8, eps=1e-3)), "rms"),
    "llama": (llama_norm, "rms"),
    "gemma, times 1 + w": (gemma_norm, "rms"),
    "layer": (lambda: randomised(nn.LayerNorm(8, eps=1e-3)), "layer"),
    "layer without bias": (lambda: randomised(nn.LayerNorm(8, bias=False)), "layer"),
    "fresh weights, no eps": (lambda: nn.RMSNorm(8), "rms"),
}


@pytest.mark.parametrize("name", NORMS)
def test_norm_is_recognised_by_what_it_computes(name):
    build, kind = NORMS[name]
    module = build()
    norm = Norm(Model(module)).read()
    assert norm.kind == kind
    hidden = torch.randn(5, 8) * 0.1  # small, so that eps counts
    torch.testing.assert_close(norm(hidden), module(hidden), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NORMS)
def test_norm_is_recognised_in_half_precision(name, dtype):
    build, kind = NORMS[name]
    module = build().to(dtype)
    norm = Norm(Model(module)).read()
    assert norm.kind == kind
    hidden = torch.randn(5, 8).to(dtype)
    torch.testing.assert_close(norm(hidden), module(hidden).float(), rtol=0.03, atol=0.03)


def test_norm_follows_its_weights():
    module = nn.RMSNorm(8, eps=1e-6)
    norm = Norm(Model(module))
    randomised(module)
    hidden = torch.randn(3, 8)
    torch.testing.assert_close(norm.read()(hidden), module(hidden))


def test_nan_weights_are_the_models_and_not_an_unknown_norm():
    module = nn.RMSNorm(8, eps=1e-6)
    module.weight.data[3] = float("nan")
    assert Norm(Model(module)).read()(torch.ones(8)).isnan().sum() == 1


def test_unknown_norm_is_refused():
    class Softmax(nn.RMSNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.softmax(-1)

    with pytest.raises(UnsupportedModelError, match="Softmax is neither an RMS norm nor a layer"):
        Norm(Model(Softmax(8)))
    with pytest.raises(UnsupportedModelError, match="GroupNorm is neither"):
        Norm(Model(nn.GroupNorm(2, 8)))
    with pytest.raises(UnsupportedModelError, match="Identity is neither"):
        Norm(Model(nn.Identity()))
    with pytest.raises(UnsupportedModelError, match="Decoder has no final norm"):
        Norm(Model(None))


@pytest.mark.parametrize(
    ("config", "scale"),
    [({}, 1.0), ({"logit_scale": 0.25}, 0.25), ({"logits_scaling": 8.0}, 0.125)],
)
@pytest.mark.parametrize("has_bias", [True, False])
def test_rows_hold_scale_and_bias(config, scale, has_bias):
    linear = randomised(nn.Linear(8, 20, bias=has_bias))
    model = Model(nn.RMSNorm(8, eps=1e-6), linear, **config)
    head = LanguageHead(model, linear, Norm(model))
    rows, bias = head.rows([3, 17])
    torch.testing.assert_close(rows, linear.weight[[3, 17]] * scale)
    if has_bias:
        torch.testing.assert_close(bias, linear.bias[[3, 17]] * scale)
    else:
        assert bias is None


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "paligemma"])
def test_logits_are_the_models_own(architecture, tiny_mllm):
    mllm = tiny_mllm(architecture)
    batch = mllm.model_inputs([mllm.prompting.encode_prompt(mllm.prompting.render("What is it?"))])
    with torch.inference_mode():
        logits = mllm.model(**batch).logits[0]
        hidden = mllm.decoder.hidden_states(batch)[0]
        ours = mllm.head.logits(hidden, range(logits.shape[-1]))
    torch.testing.assert_close(ours, logits, rtol=0, atol=1e-5)


def test_softcap_is_the_one_the_model_obeys(tiny_model):
    mllm = MLLM.from_pretrained(tiny_model("paligemma"), device="cpu")
    with torch.no_grad():
        mllm.model.lm_head.weight *= 100
        batch = mllm.model_inputs(
            [mllm.prompting.encode_prompt(mllm.prompting.render("What is it?"))]
        )
        largest = mllm.model(**batch).logits.abs().max()
    # Transformers 5.17 does not look at PaliGemma's softcap, 5.23 does
    assert mllm.head.softcap == (3.0 if largest <= 3 else None)


def test_logits_computed_in_another_way_are_refused(tiny_model):
    mllm = MLLM.from_pretrained(tiny_model("llava"), device="cpu")
    mllm.model.lm_head.register_forward_hook(lambda _module, _args, output: output * 2)
    with pytest.raises(UnsupportedModelError, match="computes its logits otherwise"):
        MLLM(mllm.model, mllm.prompting.processor)
