"""The three stages that are evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from ragvl.generator import Generator
from ragvl.reranker import Reranker
from ragvl.retriever import DualEncoder


@dataclass(frozen=True)
class Models:
    """The three stages.

    Attributes:
        encoder: retrieves.
        reranker: reranks.
        generator: answers; None to stop before that.
    """

    encoder: DualEncoder
    reranker: Reranker
    generator: Generator | None = None
