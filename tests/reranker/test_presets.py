"""Presets prompt published checkpoints as their training did."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plain import plain_scores

from ragvl import Document, Reranker
from ragvl.mllm import MLLM
from ragvl.model_files import UnsupportedModelError
from ragvl.reranker import PRESETS, Answers, Preset, PromptTemplate
from ragvl.reranker.presets import TRAINED_TEMPLATE

QUERY = "What color is the roof?"
ARCHITECTURE = {
    "ragvl": "internvl",
    "monoqwen2-vl": "qwen2_vl",
    "qwen3-vl-reranker": "qwen3_vl",
    "qwen3-vl-reranker-document-first": "qwen3_vl",
}


def documents() -> list[Document]:
    noise = np.random.default_rng(0).integers(0, 255, (3, 60, 48, 3), np.uint8)
    pictures = [Image.fromarray(x) for x in noise]
    return [Document(pictures[0], caption="A barn"), *map(Document, pictures[1:])]


def reranker_of(preset: Preset | str, folder: Path) -> Reranker:
    return Reranker.from_pretrained(folder, preset=preset, device="cpu", dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURE)
def test_scores_equal_plain_scoring_on_the_presets_prompt(
    name: str, tiny_model: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    reranker = reranker_of(name, tiny_model(ARCHITECTURE[name]))
    words = [
        reranker.mllm.prompting.tokenizer.decode(ids[:1])
        for ids in (reranker.yes_token_ids, reranker.no_token_ids)
    ]
    for word, answer in zip(words, PRESETS[name].head.words, strict=True):
        assert answer.startswith(word.strip())  # a small vocabulary may split it
    with caplog.at_level(logging.WARNING, "ragvl"):
        scores = reranker.score([(QUERY, document) for document in documents()])
        reranker.score([(QUERY, document) for document in documents()])
    # the one that asks the query first cannot reuse anything, and says so once
    whole = [record for record in caplog.records if "scored whole" in record.getMessage()]
    assert len(whole) == (name == "qwen3-vl-reranker")
    expected = plain_scores(reranker, [(QUERY, document) for document in documents()])
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-5, rtol=0)


def test_the_prompts_are_the_published_ones(tiny_model: Callable[[str], Path]) -> None:
    with_caption, without, _ = documents()
    mono = reranker_of("monoqwen2-vl", tiny_model("qwen2_vl"))
    assert mono.prompt(QUERY, with_caption) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        "Assert the relevance of the previous image document to the following query, answer True "
        f"or False. The query is: {QUERY}<|im_end|>\n<|im_start|>assistant\n"
    )
    qwen = reranker_of("qwen3-vl-reranker", tiny_model("qwen3_vl"))
    start = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n<Instruct>: Given a search query, retrieve relevant candidates that "
        "answer the query."
    )
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    end = "<|im_end|>\n<|im_start|>assistant\n"
    assert qwen.prompt(QUERY, with_caption) == (
        f"{start}<Query>:{QUERY}\n<Document>:{image}A barn{end}"
    )
    assert qwen.prompt(QUERY, without) == f"{start}<Query>:{QUERY}\n<Document>:{image}{end}"


def test_limits_reach_the_processor(tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model("qwen2_vl")
    wide = Image.new("RGB", (560, 560), "green")
    free = reranker_of("monoqwen2-vl", folder).mllm.prompting.encode_image(wide).num_tokens
    limited = Preset(
        "limited", processor_settings={"size": {"shortest_edge": 16, "longest_edge": 1024}}
    )
    reranker = reranker_of(limited, folder)
    assert reranker.mllm.prompting.encode_image(wide).num_tokens < free
    assert reranker.mllm.fingerprint != reranker_of("monoqwen2-vl", folder).mllm.fingerprint


def test_a_template_of_a_newer_training_is_refused_by_name(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model("llava"), tmp_path / "trained")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, TRAINED_TEMPLATE: "newest"}))
    with pytest.raises(UnsupportedModelError, match=r"'newest' is none of auto.*preset='ragvl'"):
        Reranker.from_pretrained(folder, template="plain", device="cpu")
    assert reranker_of("ragvl", folder).template_name == "auto"


def test_a_preset_of_ones_own(tiny_model: Callable[[str], Path]) -> None:
    template = PromptTemplate("mine", "<image>\nIs it about {query}?")
    mine = Preset("mine", template, Answers(("good", "bad")))
    reranker = reranker_of(mine, tiny_model("llava"))
    assert "Is it about mills?" in reranker.prompt("mills", documents()[0])
    # what is given besides a preset goes before it
    other = Reranker.from_pretrained(
        tiny_model("llava"), preset=mine, template="plain", answers=("Yes", "No"), device="cpu"
    )
    assert "Is this image relevant" in other.prompt("mills", documents()[1])
    assert other.yes_token_ids != reranker.yes_token_ids
    with pytest.raises(ValueError, match="unknown preset 'ragvll'; known: ragvl, monoqwen2-vl"):
        reranker_of("ragvll", tiny_model("llava"))


def test_a_system_turn_needs_a_model_with_turns(tiny_mllm: Callable[[str], MLLM]) -> None:
    template = PRESETS["qwen3-vl-reranker"].template
    reranker = Reranker(tiny_mllm("paligemma"), template=template)
    with pytest.raises(ValueError, match="system turn and this model knows no turns"):
        reranker.prompt(QUERY, documents()[0])
