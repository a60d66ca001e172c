"""Fast multimodal reranking with MLLMs, and training that survives noisy images."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Eager, and light: a module and a function share this name, and the function must win.
from ragvl.fast_rerank import fast_rerank
from ragvl.mkl import ask_for_strict_sums

if TYPE_CHECKING:
    from ragvl.client import AsyncClient, Client
    from ragvl.data.document import Document
    from ragvl.data.query import Query
    from ragvl.generator import Generator
    from ragvl.pipeline import Answer, RagVL
    from ragvl.prefix_cache import PrefixCache
    from ragvl.reranker import RankedDocument, Reranker
    from ragvl.retriever import Retriever

ask_for_strict_sums()  # before anything is multiplied

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "Document",
    "Generator",
    "PrefixCache",
    "Query",
    "RagVL",
    "RankedDocument",
    "Reranker",
    "Retriever",
    "fast_rerank",
]

# Imported when first used, so that `import ragvl` does not wait for torch and transformers.
_HOME = {
    "Answer": "ragvl.pipeline",
    "AsyncClient": "ragvl.client",
    "Client": "ragvl.client",
    "Document": "ragvl.data.document",
    "Generator": "ragvl.generator",
    "PrefixCache": "ragvl.prefix_cache",
    "Query": "ragvl.data.query",
    "RagVL": "ragvl.pipeline",
    "RankedDocument": "ragvl.reranker",
    "Reranker": "ragvl.reranker",
    "Retriever": "ragvl.retriever",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ragvl' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
