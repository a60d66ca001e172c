"""The second stage: relevance of documents to a query, by an MLLM's Yes and No."""

from __future__ import annotations

from ragvl.reranker.presets import PRESETS, Preset
from ragvl.reranker.reranker import RankedDocument, Reranker, WarmReport
from ragvl.reranker.templates import TEMPLATES, PromptTemplate
from ragvl.reranker.thresholds import (
    THRESHOLDS_FILE,
    SavedThresholds,
    Threshold,
    ThresholdError,
    check_threshold,
    resolve_threshold,
)

__all__ = [
    "PRESETS",
    "TEMPLATES",
    "THRESHOLDS_FILE",
    "Preset",
    "PromptTemplate",
    "RankedDocument",
    "Reranker",
    "SavedThresholds",
    "Threshold",
    "ThresholdError",
    "WarmReport",
    "check_threshold",
    "resolve_threshold",
]
