"""The second stage: relevance of documents to a query, read off an MLLM by a head."""

from __future__ import annotations

from ragvl.reranker.answers import Answers
from ragvl.reranker.arguments import checked_request
from ragvl.reranker.heads import Layer, ScoreNetwork
from ragvl.reranker.lengths import Lengths
from ragvl.reranker.presets import PRESETS, Preset
from ragvl.reranker.ranked import (
    RankedDocument,
    ScoredPair,
    WarmReport,
    place_prior,
    relevance_order,
)
from ragvl.reranker.reranker import Reranker, preset_of_checkpoint
from ragvl.reranker.roles import RolesTemplate
from ragvl.reranker.score_weights import LayerWeights, ScoreWeights
from ragvl.reranker.templates import TEMPLATES, PromptTemplate, resolve_template
from ragvl.reranker.thresholds import (
    RETRIEVER_WEIGHT,
    THRESHOLDS_FILE,
    SavedThresholds,
    Threshold,
    ThresholdError,
    check_threshold,
    resolve_threshold,
    saved_fusions,
    thresholds_file,
)

__all__ = [
    "PRESETS",
    "RETRIEVER_WEIGHT",
    "TEMPLATES",
    "THRESHOLDS_FILE",
    "Answers",
    "Layer",
    "LayerWeights",
    "Lengths",
    "Preset",
    "PromptTemplate",
    "RankedDocument",
    "Reranker",
    "RolesTemplate",
    "SavedThresholds",
    "ScoreNetwork",
    "ScoreWeights",
    "ScoredPair",
    "Threshold",
    "ThresholdError",
    "WarmReport",
    "check_threshold",
    "checked_request",
    "place_prior",
    "preset_of_checkpoint",
    "relevance_order",
    "resolve_template",
    "resolve_threshold",
    "saved_fusions",
    "thresholds_file",
]
