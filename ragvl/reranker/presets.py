"""The prompts and heads that published rerankers were trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ragvl.messages import quoted, shown
from ragvl.model_files import CONFIG, UnsupportedModelError, read_json
from ragvl.reranker.answers import Answers
from ragvl.reranker.lengths import NO_LIMITS, Lengths
from ragvl.reranker.score_weights import LayerWeights, ScoreWeights
from ragvl.reranker.templates import TEMPLATES, PromptTemplate, Template


@dataclass(frozen=True)
class Preset:
    r"""What a checkpoint was trained on. For one of your own, write one.

    Attributes:
        name: what it is called.
        template: a template, or "auto": see `Reranker`.
        head: what its scores are read off: answer words, or a score network by where its weights
            are in the checkpoint's files.
        processor_settings: limits of the pictures; see `MLLM.from_pretrained`.
        lengths: limits of the prompts.
        activation: what `predict` makes of raw scores, the name of one of `ACTIVATIONS`.
        architecture: the name that checkpoints give it in `config.json`, where no other model has
            that name: such a checkpoint needs no preset to be named.
        source: where its authors say so.

    Examples:
        >>> mine = Preset("mine", PromptTemplate("mine", "<image>\nIs it about {query}?"))
        >>> reranker = Reranker.from_pretrained(folder, preset=mine)
    """

    name: str
    template: Template | str = "auto"
    head: Answers | ScoreWeights = field(default_factory=Answers)
    processor_settings: Mapping[str, Any] = field(default_factory=dict)
    lengths: Lengths = NO_LIMITS
    activation: str = "sigmoid"
    architecture: str | None = None
    source: str | None = None


def _pixels(least: int, most: int) -> dict[str, Any]:
    """Limits of a picture in a Qwen-VL, in pixels, whatever the names of the keys suggest."""
    return {"size": {"shortest_edge": least, "longest_edge": most}}


# Of a checkpoint's configuration: the name of the template that it was trained with
TRAINED_TEMPLATE = "ragvl_template"

RAGVL = Preset("ragvl", source="https://arxiv.org/abs/2407.21439")

MONOQWEN2_VL = Preset(
    "monoqwen2-vl",
    PromptTemplate(
        "monoqwen2-vl",
        "<image>Assert the relevance of the previous image document to the following query, "
        "answer True or False. The query is: {query}",
        query_pictures=False,
    ),
    Answers(("True", "False"), ("True", "False")),
    source="https://huggingface.co/lightonai/MonoQwen2-VL-v0.1",
)

# What its `compute_score` does. The score is read off a token that is put behind the prompt.
JINA_RERANKER_M0 = Preset(
    "jina-reranker-m0",
    PromptTemplate(
        "jina-reranker-m0",
        "**Document**:\n{document}\n**Query**:\n{query}",
        chat=False,
        picture="<|vision_start|><|image_pad|><|vision_end|>",
        mixes=False,
        ending=(100,),
    ),
    ScoreWeights(
        (
            LayerWeights("score.0.weight", "score.0.bias", "relu"),
            LayerWeights("score.2.weight", "score.2.bias"),
        ),
        bias=-2.65,
    ),
    _pixels(4 * 28 * 28, 768 * 28 * 28),
    Lengths(prompt=10240, last=1, text=10240 - 512),  # 512 tokens are left to the query
    architecture="JinaVLForRanking",
    source="https://huggingface.co/jinaai/jina-reranker-m0",
)

_QWEN3_SYSTEM_TURN = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".'
)
_QWEN3_INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."

# The query comes before the document: no reuse
QWEN3_VL_RERANKER = Preset(
    "qwen3-vl-reranker",
    PromptTemplate(
        "qwen3-vl-reranker",
        "<Instruct>: {instruction}<Query>:{query}\n<Document>:{document}",
        _QWEN3_SYSTEM_TURN,
        instruction=_QWEN3_INSTRUCTION,
        separator="",
        pictures_first=True,
        empty="NULL",
    ),
    Answers(("yes", "no"), ("yes", "no")),  # 9693 and 2152 in its vocabulary
    _pixels(4 * 32 * 32, 1800 * 32 * 32),
    Lengths(prompt=10240 + 5, last=5, keep_special=True),
    source="https://github.com/QwenLM/Qwen3-VL-Embedding",
)

# The same words with the document first, so that its prefix is reused. Not what the checkpoint was
# trained on: evaluate before use, or train it on this.
QWEN3_VL_RERANKER_DOCUMENT_FIRST = replace(
    QWEN3_VL_RERANKER,
    name="qwen3-vl-reranker-document-first",
    template=PromptTemplate(
        "qwen3-vl-reranker-document-first",
        "<Instruct>: {instruction}\n<Document>:{document}\n<Query>:{query}",
        _QWEN3_SYSTEM_TURN,
        instruction=_QWEN3_INSTRUCTION,
        separator="",
        pictures_first=True,
        empty="NULL",
    ),
)

PRESETS = {
    preset.name: preset
    for preset in (
        RAGVL,
        MONOQWEN2_VL,
        JINA_RERANKER_M0,
        QWEN3_VL_RERANKER,
        QWEN3_VL_RERANKER_DOCUMENT_FIRST,
    )
}
"""The presets that `from_pretrained(preset=...)` takes by name."""


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


def preset_of_architecture(folder: Path) -> Preset | None:
    """The preset of the checkpoint in `folder`, if its configuration names one's architecture.

    Raises:
        OSError: the configuration cannot be read.
        UnsupportedModelError: it holds no JSON object.
    """
    if not (folder / CONFIG).exists():
        return None
    names = read_json(folder / CONFIG).get("architectures")
    known = [preset for preset in PRESETS.values() if preset.architecture is not None]
    return next((x for x in known if isinstance(names, list) and x.architecture in names), None)


def preset_of_training(folder: Path) -> Preset | None:
    """The paper's preset with the template that `ragvl train reranker` put prompts in.

    Raises:
        OSError: the configuration cannot be read.
        UnsupportedModelError: it holds no JSON object, or names a template that is not known.
    """
    if not (folder / CONFIG).exists():
        return None
    name = read_json(folder / CONFIG).get(TRAINED_TEMPLATE)
    if name is None:
        return None
    if name not in TEMPLATES:
        raise UnsupportedModelError(
            f"{shown(folder / CONFIG)}: {TRAINED_TEMPLATE}={quoted(name)} is none of "
            f"{', '.join(TEMPLATES)}: a newer ragvl trained it; give preset='ragvl' and a template"
        )
    return replace(RAGVL, template=name)
