"""`dtype="int8"`: products in 8 bits, exactly as the reference has them, whatever the company."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plain import picture
from torch import nn

from ragvl import Document, Query, Reranker
from ragvl.mllm import MLLM, resolve_model_dtype
from ragvl.mllm.int8 import Int8Linear, is_rounded, round_products, unrounded
from ragvl.mllm.layers import code_in_force
from ragvl.ops import int8_linear_reference
from ragvl.ops.int8_linear import slow_products_problem
from ragvl.runtime import multiplies_bfloat16

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    slow_products_problem() is not None, reason=str(slow_products_problem())
)

ARCHITECTURES = ["llava", "qwen3_vl", "gemma3", "qwen3_5"]
OTHER_DTYPE = torch.bfloat16 if multiplies_bfloat16() else torch.float32  # of what is not rounded


def pairs() -> list[tuple[Query, Document]]:
    documents = [
        Document(image=picture(number), caption=caption)
        for number, caption in enumerate(("A wall", None, "the sea in spring"), start=40)
    ]
    questions = ("What color is it?", "Is the tall tower beside the river?")
    return [(Query(question), document) for question in questions for document in documents]


def load(folder: Path, **options: str) -> Reranker:
    return Reranker.from_pretrained(folder, device="cpu", dtype="int8", **options)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_those_of_the_reference_and_independent_of_company(
    architecture: str, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = load(tiny_model(architecture), prefix_cache="64MiB")
    scores = reranker.score(pairs(), progress=False)
    assert torch.equal(reranker.score(pairs(), progress=False), scores), "warm"
    alone = [reranker.score([pair], progress=False) for pair in pairs()]
    assert torch.equal(torch.cat(alone), scores)
    cold = Reranker(reranker.mllm, prefix_cache=None)
    assert torch.equal(cold.score(pairs()[::-1], progress=False).flip(0), scores)

    def forward(self: Int8Linear, x: torch.Tensor) -> torch.Tensor:
        return int8_linear_reference(x, self._current(), self.bias)

    monkeypatch.setattr(Int8Linear, "forward", forward)
    expected = Reranker(reranker.mllm, prefix_cache=None).score(pairs(), progress=False)
    assert torch.equal(scores, expected)


def test_every_product_but_the_heads_is_rounded(tiny_model: Callable[[str], Path]) -> None:
    exact = MLLM.from_pretrained(tiny_model("llava"), device="cpu", dtype=OTHER_DTYPE)
    mllm = load(tiny_model("llava")).mllm
    assert (mllm.dtype, mllm.dtype_name) == (OTHER_DTYPE, "int8")
    assert exact.dtype == OTHER_DTYPE
    modules = dict(mllm.model.named_modules())
    for name, product in exact.model.named_modules():
        if not isinstance(product, nn.Linear):
            continue
        if product is exact.model.get_output_embeddings():
            assert not isinstance(modules[name], Int8Linear)
            continue
        rounded = modules[name]
        assert isinstance(rounded, Int8Linear)
        step = rounded.scales[:, None]
        error = (rounded.weight * step - product.weight).abs()
        assert (error <= step * (0.5 + 1e-4)).all()
    assert mllm.fingerprint != exact.fingerprint
    assert mllm.weights_name != exact.weights_name, "thresholds are another's"


def test_a_weight_that_is_changed_counts(tiny_model: Callable[[str], Path]) -> None:
    reranker = load(tiny_model("llava"), prefix_cache="64MiB")
    before, name = reranker.score(pairs(), progress=False), reranker.mllm.fingerprint
    with torch.no_grad():
        reranker.mllm.decoder.layers[0].mlp.up_proj.weight.neg_()
    after = reranker.score(pairs(), progress=False)
    assert reranker.mllm.fingerprint != name
    assert not torch.equal(after, before)
    assert torch.equal(Reranker(reranker.mllm, prefix_cache=None).score(pairs()), after)


def test_another_process_loads_the_same(tiny_model: Callable[[str], Path]) -> None:
    mllm = load(tiny_model("llava")).mllm
    again = pickle.loads(pickle.dumps(mllm))
    assert is_rounded(again.model)
    assert again.fingerprint == mllm.fingerprint


@pytest.mark.slow
def test_layers_of_other_code(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert code_in_force(load(tiny_model("llava"), layers="fused").mllm.decoder.layers) == "fused"
    monkeypatch.setattr("ragvl.mllm.int8.multiplies_bfloat16", lambda: False)  # so float32
    eager, fused = (load(tiny_model("qwen3_vl"), layers=code) for code in ("eager", "fused"))
    assert code_in_force(fused.mllm.decoder.layers) == "fused"
    with unrounded():
        expected, scores = (one.score(pairs(), progress=False) for one in (eager, fused))
    torch.testing.assert_close(scores, expected, rtol=0, atol=2e-3)


def test_rounding_is_left_out_where_two_ways_are_compared() -> None:
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    product = Int8Linear(nn.Linear(40, 24))
    weight = product.weight.double() * product.scales.double()[:, None]
    exact = x.double() @ weight.T + product.bias.double()
    with unrounded():
        assert (product(x) - exact).abs().max() < 1e-5
    assert (product(x) - exact).abs().max() > 1e-3


def test_what_chooses_experts_stays_as_it_is() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.experts = nn.Linear(8, 4), nn.ModuleList([nn.Linear(8, 8)])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = Experts()

        def get_output_embeddings(self) -> None:
            return None

        get_input_embeddings = get_output_embeddings

    model = Model()
    round_products(model)  # type: ignore[arg-type]
    assert type(model.mlp.gate) is nn.Linear
    assert isinstance(model.mlp.experts[0], Int8Linear)
    with pytest.raises(ValueError, match="Model has no product that can be rounded"):
        round_products(model)  # type: ignore[arg-type]


def test_the_fastest_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert resolve_model_dtype("fastest", CPU) == (OTHER_DTYPE, True)
        assert resolve_model_dtype("fastest", torch.device("cuda")) == (torch.bfloat16, False)
    assert "dtype='fastest' is 'int8' here, which rounds what is multiplied" in caplog.text
    assert "dtype='fastest' is 'bfloat16' here" in caplog.text


def test_where_it_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="dtype='int8' is for a CPU: on cuda load"):
        resolve_model_dtype("int8", torch.device("cuda"))
    with pytest.raises(
        ValueError, match=r"dtype='int4' is not .*or of a model 'int8' or 'fastest'"
    ):
        resolve_model_dtype("int4", CPU)
    monkeypatch.setattr("ragvl.mllm.int8.slow_products_problem", lambda: "this CPU has no VNNI")
    with pytest.raises(ValueError, match="dtype='int8': this CPU has no VNNI; give 'float32'"):
        resolve_model_dtype("int8", CPU)
    assert resolve_model_dtype("fastest", CPU)[1] is False
