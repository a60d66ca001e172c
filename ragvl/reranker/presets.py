"""The prompts and heads that published rerankers were trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ragvl.messages import quoted
from ragvl.reranker.answers import Answers
from ragvl.reranker.score_weights import ScoreWeights
from ragvl.reranker.templates import PromptTemplate, Template


@dataclass(frozen=True)
class Preset:
    r"""A template, a head and limits. For a checkpoint of your own, write one.

    Attributes:
        name: what it is called.
        template: a template, or "auto": `caption` for a document with a caption, else `plain`.
        head: what its scores are read off: answer words, or a score network by where its weights
            are in the checkpoint's files.
        processor_settings: limits of the pictures; see `MLLM.from_pretrained`.
        activation: what `predict` makes of raw scores, the name of one of `ACTIVATIONS`.

    Example:
        >>> mine = Preset("mine", PromptTemplate("mine", "<image>\nIs it about {query}?"))
        >>> reranker = Reranker.from_pretrained(folder, preset=mine)
    """

    name: str
    template: Template | str = "auto"
    head: Answers | ScoreWeights = field(default_factory=Answers)
    processor_settings: Mapping[str, Any] = field(default_factory=dict)
    activation: str = "sigmoid"


# The paper's own; arXiv 2407.21439
RAGVL = Preset("ragvl")

# https://huggingface.co/lightonai/MonoQwen2-VL-v0.1
MONOQWEN2_VL = Preset(
    "monoqwen2-vl",
    PromptTemplate(
        "monoqwen2-vl",
        "<image>Assert the relevance of the previous image document to the following query, "
        "answer True or False. The query is: {query}",
    ),
    Answers(("True", "False"), ("True", "False")),
)

_QWEN3_SYSTEM_TURN = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".'
)
_QWEN3_INSTRUCT = (
    "<Instruct>: Given a search query, retrieve relevant candidates that answer the query."
)
# In pixels, whatever the names of the keys suggest
_QWEN3_LIMITS = {"size": {"shortest_edge": 4 * 32 * 32, "longest_edge": 1800 * 32 * 32}}

# https://github.com/QwenLM/Qwen3-VL-Embedding. The query comes before the document: no reuse.
QWEN3_VL_RERANKER = Preset(
    "qwen3-vl-reranker",
    PromptTemplate(
        "qwen3-vl-reranker",
        f"{_QWEN3_INSTRUCT}<Query>:{{query}}\n<Document>:<image>{{caption}}",
        _QWEN3_SYSTEM_TURN,
        caption_optional=True,
    ),
    Answers(("yes", "no"), ("yes", "no")),  # 9693 and 2152 in its vocabulary
    _QWEN3_LIMITS,
)

# The same words with the document first, so that its prefix is reused. Not what the checkpoint was
# trained on: evaluate before use, or train it on this.
QWEN3_VL_RERANKER_DOCUMENT_FIRST = Preset(
    "qwen3-vl-reranker-document-first",
    PromptTemplate(
        "qwen3-vl-reranker-document-first",
        f"{_QWEN3_INSTRUCT}\n<Document>:<image>{{caption}}\n<Query>:{{query}}",
        _QWEN3_SYSTEM_TURN,
        caption_optional=True,
    ),
    Answers(("yes", "no"), ("yes", "no")),
    _QWEN3_LIMITS,
)

PRESETS = {
    preset.name: preset
    for preset in (RAGVL, MONOQWEN2_VL, QWEN3_VL_RERANKER, QWEN3_VL_RERANKER_DOCUMENT_FIRST)
}


def resolve_preset(preset: Preset | str) -> Preset:
    """The preset that a name means.

    Raises:
        ValueError: there is none of that name.
    """
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {quoted(preset)}; known: {', '.join(PRESETS)}")
    return PRESETS[preset]
