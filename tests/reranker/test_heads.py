"""Heads against float64 formulas, and raw scores through the reranker."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from plain import picture, plain_logits
from torch import Tensor

from ragvl import Document, Reranker
from ragvl.mllm import MLLM, AnswerTokenError, UnsupportedModelError
from ragvl.ops import relevance_head
from ragvl.reranker import Answers, Layer, ScoreNetwork
from ragvl.reranker.heads import ScoreHead, relevance

QUERIES = ("What color is the roof?", "Is there a mill by the river?")


def documents() -> list[Document]:
    return [
        Document(picture(i, 40 + 12 * i), caption=" ".join(["A barn"] * (i + 1))) for i in range(4)
    ]


def random_network(width: int, kind: str = "linear", **options: object) -> ScoreNetwork:
    """As published: one linear layer, or jina's two with ReLU between and a constant."""
    draw = torch.Generator().manual_seed(width)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw) / shape[-1] ** 0.5

    if kind == "linear":
        return ScoreNetwork((Layer(drawn(1, width), drawn(1)),), **options)
    layers = (Layer(drawn(24, width), drawn(24), "relu"), Layer(drawn(1, 24), drawn(1)))
    return ScoreNetwork(layers, **{"bias": -2.65, **options})


def in_float64(network: ScoreNetwork, state: Tensor) -> float:
    """The formula, of one normed and pooled state (D,)."""
    x = state.double()
    for layer in network.layers:
        x = layer.weight.double() @ x + (0 if layer.bias is None else layer.bias.double())
        x = x.clamp(min=0) if layer.activation == "relu" else x
    return float(network.scale * x[0] + network.bias)


@torch.inference_mode()
def plain_raw(reranker: Reranker, query: str, document: Document) -> float:
    """A score network's raw score by plain calls: the model's own normed states, in one piece."""
    mllm, network = reranker.mllm, reranker.head
    image = mllm.prompting.encode_image(document.load())
    prompt = mllm.prompting.encode_prompt(reranker.prompt(query, document), [image])
    batch = mllm.model_inputs([prompt])
    states = mllm.model.base_model(**batch, use_cache=False).last_hidden_state[0]
    pooled = states[-1] if network.pooling == "last" else states.double().mean(0)
    return in_float64(network, pooled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_network_computes_in_float32(tiny_mllm, pooling, kind, dtype) -> None:
    norm = tiny_mllm("qwen2_vl").final_norm
    width = len(norm.weight)
    network = random_network(width, kind, pooling=pooling, scale=0.5)
    # A norm with other weights than ones, and states of another size than one
    norm = replace(norm, weight=torch.rand(width) + 0.5)
    lengths = [3, 1, 40, 7]
    hidden = (9 * torch.randn(sum(lengths), width) + 1).to(dtype)
    rows = torch.tensor(lengths).cumsum(0) - 1
    raw = ScoreHead(network, norm)(hidden, rows)
    assert raw.dtype == torch.float32
    normed = hidden.double()
    normed /= (normed.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    normed *= norm.weight.double()
    pooled = [
        states[-1] if pooling == "last" else states.mean(0) for states in normed.split(lengths)
    ]
    expected = [in_float64(network, state) for state in pooled]
    np.testing.assert_allclose(raw.numpy(), expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_networks_score_does_not_depend_on_its_place_among_a_chunks(tiny_mllm, kind) -> None:
    norm = tiny_mllm("llava").final_norm
    for width in (len(norm.weight), 1536, 250):
        wide = replace(norm, weight=torch.rand(width))
        head = ScoreHead(random_network(width, kind), wide)
        hidden = torch.randn(32, width)
        rows = torch.arange(32)
        raw = head(hidden, rows)
        order = torch.randperm(32)
        assert torch.equal(head(hidden[order], rows), raw[order])
        others = torch.cat([hidden[:5], torch.randn(27, width)])
        assert torch.equal(head(others, rows)[:5], raw[:5])


@pytest.mark.parametrize("architecture", ["llava", "qwen2_vl", "gemma3"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_prefixes_are_reused_below_a_network(tiny_mllm, architecture, kind, caplog) -> None:
    mllm = tiny_mllm(architecture)
    reranker = Reranker(mllm, head=random_network(len(mllm.final_norm.weight), kind))
    pairs = [(query, document) for document in documents() for query in QUERIES]
    cold = reranker.score(pairs, raw=True)
    expected = [plain_raw(reranker, *pair) for pair in pairs]
    np.testing.assert_allclose(cold.numpy(), expected, atol=1e-5, rtol=0)
    assert "scored whole" not in caplog.text
    # bitwise the same warm, alone and in any order
    assert torch.equal(reranker.score(pairs, raw=True), cold)
    assert torch.equal(reranker.score(pairs[3:4], raw=True), cold[3:4])
    assert torch.equal(reranker.score(pairs[::-1], raw=True), cold.flip(0))
    assert torch.equal(reranker.score(pairs), relevance(cold))


@pytest.mark.parametrize("architecture", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_a_network_on_mean_states_scores_whole_prompts(
    tiny_mllm, architecture, batch_size, caplog
) -> None:
    mllm = tiny_mllm(architecture)
    network = random_network(len(mllm.final_norm.weight), pooling="mean")
    reranker = Reranker(mllm, head=network)
    pairs = [(query, document) for document in documents() for query in QUERIES]
    raw = reranker.score(pairs, raw=True, batch_size=batch_size)
    expected = [plain_raw(reranker, *pair) for pair in pairs]
    np.testing.assert_allclose(raw.numpy(), expected, atol=1e-5, rtol=0)
    assert caplog.text.count("read off the states of all tokens") == 1


# --- answers ------------------------------------------------------------------------------------


def test_raw_scores_are_log_odds(tiny_mllm: Callable[[str], MLLM]) -> None:
    reranker = Reranker(tiny_mllm("qwen2_vl"))
    pairs = [(QUERIES[0], document) for document in documents()]
    raw = reranker.score(pairs, raw=True)
    (yes,), (no,) = reranker.yes_token_ids, reranker.no_token_ids
    logits = [plain_logits(reranker.mllm, d.load(), reranker.prompt(q, d)) for q, d in pairs]
    expected = [(x[yes] - x[no]).item() for x in logits]
    np.testing.assert_allclose(raw.numpy(), expected, atol=1e-5, rtol=0)
    scores = reranker.score(pairs)
    np.testing.assert_allclose(scores.numpy(), 1 / (1 + np.exp(-raw.numpy())), rtol=1e-6)
    ranked = reranker.rank(QUERIES[0], documents())
    assert [r.raw for r in ranked] == sorted(raw.tolist(), reverse=True)
    assert [r.score for r in ranked] == [scores[r.index].item() for r in ranked]


def test_relevance_has_the_bits_of_the_operation() -> None:
    hidden = torch.randn(2000, 16) * torch.logspace(-3, 1.5, 2000)[:, None]
    logits, expected = relevance_head(hidden, torch.arange(2000), None, torch.randn(2, 16))
    raw = logits[:, 0] - logits[:, 1]
    assert torch.equal(relevance(raw), expected)
    assert torch.equal(relevance(raw[7:8]), expected[7:8])
    odd = relevance(torch.tensor([0.0, torch.inf, -torch.inf, torch.nan, 200.0, -200.0]))
    assert odd[:3].tolist() == [0.5, 1.0, 0.0]
    assert odd.isnan().tolist() == [False] * 3 + [True] + [False] * 2


def test_saturated_probabilities_do_not_tie(tiny_mllm) -> None:
    mllm = tiny_mllm("qwen2_vl")
    network = random_network(len(mllm.final_norm.weight))
    sure = replace(network, scale=1.0, bias=40.0)
    reranker = Reranker(mllm, head=sure)
    given = documents()
    ranked = reranker.rank(QUERIES[0], given)
    assert {r.score for r in ranked} == {1.0}
    plain = Reranker(mllm, head=network).rank(QUERIES[0], given)
    assert [r.index for r in ranked] == [r.index for r in plain]
    assert [r.index for r in plain] != sorted(r.index for r in plain)


def test_equal_scores_keep_the_order_of_the_input(tiny_mllm) -> None:
    mllm = tiny_mllm("qwen2_vl")
    reranker = Reranker(mllm)
    one, other = documents()[:2]
    given = [one, other, one, other, one]
    ranked = [r.index for r in reranker.rank(QUERIES[0], given)]
    assert ranked in ([0, 2, 4, 1, 3], [1, 3, 0, 2, 4])


def test_one_token_alone_gives_its_logit(tiny_mllm) -> None:
    mllm = tiny_mllm("qwen2_vl")
    ((yes,), (no,)) = mllm.prompting.answer_token_ids("Yes", "No")
    one = Reranker(mllm, head=Answers(token_ids=(yes,)))
    both = Reranker(mllm, head=Answers(token_ids=(yes, no)))
    pair = (QUERIES[0], documents()[0])
    logits = plain_logits(mllm, pair[1].load(), one.prompt(*pair))
    assert one.score([pair], raw=True).item() == pytest.approx(logits[yes].item(), abs=1e-5)
    assert torch.equal(both.score([pair]), Reranker(mllm).score([pair]))
    assert both.prompts_name != one.prompts_name


@pytest.mark.parametrize("ids", [(), (3, 3), (1, 2, 3), (-1, 2), (1, 10**6)])
def test_impossible_token_ids_are_refused(tiny_mllm, ids) -> None:
    with pytest.raises(AnswerTokenError, match="id"):
        Reranker(tiny_mllm("llava"), head=Answers(token_ids=ids))


# --- what does not fit --------------------------------------------------------------------------


def test_a_network_of_another_width_is_refused(tiny_mllm) -> None:
    width = len(tiny_mllm("llava").final_norm.weight)
    with pytest.raises(UnsupportedModelError, match=f"takes states of {width + 1} numbers"):
        Reranker(tiny_mllm("llava"), head=random_network(width + 1))


def test_networks_that_cannot_be_computed_are_refused() -> None:
    one = Layer(torch.ones(1, 8))
    broken = Layer(torch.tensor([[1.0, torch.nan]]))
    for layers, options, message in [
        ((), {}, "no layers"),
        ((Layer(torch.ones(8)),), {}, r"layer 0 .* no linear layer.*\[\(8,\)\]"),
        ((Layer(torch.ones(1, 8), torch.ones(2)),), {}, r"layer 0 .*\(1, 8\), \(2,\)"),
        ((Layer(torch.ones(0, 8)),), {}, "no linear layer"),
        ((Layer(torch.ones(3, 8)),), {}, "gives 3 scores"),
        ((Layer(torch.ones(3, 8)), Layer(torch.ones(1, 4))), {}, "gives 3 .* layer 1 takes 4"),
        ((broken,), {}, "the weight of layer 0 .* NaN"),
        ((replace(one, bias=torch.tensor([torch.inf])),), {}, "the bias of layer 0 .* infinity"),
        ((replace(one, activation="relu6"),), {}, "unknown activation 'relu6'; known: identity"),
        ((one,), {"pooling": "max"}, "pools by 'max'; known"),
        ((one,), {"scale": math.nan}, "the scale of a score network is nan"),
        ((one,), {"bias": "-2.65"}, "the bias of a score network is '-2.65'"),
    ]:
        with pytest.raises(UnsupportedModelError, match=message):
            ScoreNetwork(layers, **options)


def test_a_network_is_part_of_a_rerankers_name(tiny_mllm) -> None:
    mllm = tiny_mllm("llava")
    network = random_network(len(mllm.final_norm.weight))
    (layer,) = network.layers
    other = layer.weight.clone()
    other[0, 3] += 1e-6
    names = {
        Reranker(mllm, head=head).fingerprint
        for head in (
            None,
            network,
            replace(network, layers=(replace(layer, weight=other),)),
            replace(network, layers=(replace(layer, bias=None),)),
            replace(network, layers=(replace(layer, activation="tanh"),)),
            replace(network, bias=1.0),
            replace(network, scale=2.0),
            replace(network, pooling="mean"),
        )
    }
    assert len(names) == 8
    reranker = Reranker(mllm, head=network)
    with pytest.raises(ValueError, match="reads no answers"):
        _ = reranker.yes_token_ids
    with pytest.raises(ValueError, match="give one"):
        Reranker(mllm, head=network, answers=("Yes", "No"))
