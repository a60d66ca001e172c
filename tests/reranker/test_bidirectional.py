"""Checkpoints whose tokens see those after them, as llama-nemotron-rerank-vl's do.

Their decoder is a causal one of transformers' with `is_causal` off, and the score a linear layer on
the mean of all states. Nothing of a prompt can be reused but the pictures' visual tokens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from plain import picture, plain_inputs
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from ragvl import Document, Reranker
from ragvl.reranker import LayerWeights, ScoreWeights

HEAD = ScoreWeights((LayerWeights("score.weight"),), pooling="mean")
PAIRS = [
    (query, Document(picture(i, 40 + 12 * i), caption=" ".join(["A barn"] * (i + 1))))
    for i, query in enumerate(("Red?", "Is it a mill?", "What color is the roof of the barn?"))
]


@pytest.fixture(scope="module")
def bidirectional(tiny_model, tmp_path_factory) -> Callable[[str], Path]:
    def folder(architecture: str) -> Path:
        copy = tmp_path_factory.getbasetemp() / f"bidirectional-{architecture}"
        if copy.exists():
            return copy
        shutil.copytree(tiny_model(architecture), copy)
        config = json.loads((copy / "config.json").read_text())
        config["text_config"]["is_causal"] = False
        (copy / "config.json").write_text(json.dumps(config))
        weights = load_file(copy / "model.safetensors")
        width = config["text_config"]["hidden_size"]
        weights["score.weight"] = torch.randn(1, width, generator=torch.Generator().manual_seed(1))
        save_file(weights, copy / "model.safetensors", {"format": "pt"})
        return copy

    return folder


@torch.inference_mode()
def plain_raw(reranker: Reranker, folder: Path, query: str, document: Document) -> float:
    """The published formula by transformers alone: one prompt, its states' mean, the raw logit."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = plain_inputs(reranker.mllm, document.load(), reranker.prompt(query, document))
    states = model(**inputs, use_cache=False).last_hidden_state[0]
    weight = load_file(folder / "model.safetensors")["score.weight"]
    return (weight.double() @ states.double().mean(0)).item()


@pytest.mark.parametrize("architecture", ["llava", "internvl", "qwen3_vl", "gemma3"])
def test_scores_are_those_of_the_plain_formula(architecture, bidirectional, caplog) -> None:
    folder = bidirectional(architecture)
    reranker = Reranker.from_pretrained(folder, head=HEAD, device="cpu", dtype="float32")
    expected = [plain_raw(reranker, folder, *pair) for pair in PAIRS]
    for batch_size in (1, None):
        raw = reranker.score(PAIRS, raw=True, batch_size=batch_size)
        np.testing.assert_allclose(raw.numpy(), expected, atol=1e-5, rtol=0)
    assert len([r for r in caplog.records if "scored whole" in r.getMessage()]) == 1


def test_a_last_tokens_score_is_not_read_off_a_prefix_either(bidirectional, tiny_model) -> None:
    folder = bidirectional("llava")
    reranker = Reranker.from_pretrained(folder, device="cpu", dtype="float32")
    causal = Reranker.from_pretrained(tiny_model("llava"), device="cpu", dtype="float32")
    raw, other = reranker.score(PAIRS, raw=True), causal.score(PAIRS, raw=True)
    assert ((raw - other).abs() > 1e-3).all(), "is_causal made a difference"
    mllm = reranker.mllm
    (yes,), (no,) = reranker.yes_token_ids, reranker.no_token_ids
    with torch.inference_mode():
        inputs = [plain_inputs(mllm, d.load(), reranker.prompt(q, d)) for q, d in PAIRS]
        logits = [mllm.model(**one, use_cache=False).logits[0, -1] for one in inputs]
    expected = [(one[yes] - one[no]).item() for one in logits]
    np.testing.assert_allclose(raw.numpy(), expected, atol=1e-5, rtol=0)
