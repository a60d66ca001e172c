"""Ray Data: documents embedded, their prefixes warmed and pairs reranked, on many machines.

Needs `pip install "ragvl[ray]"`; `import ragvl` does not import it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ragvl.distributed.embed import EmbedDocuments
    from ragvl.distributed.partition import document_key, partition_by_document
    from ragvl.distributed.rerank import RerankPairs
    from ragvl.distributed.session import ClusterError, connected
    from ragvl.distributed.warm import WarmPrefixes
    from ragvl.distributed.worker import VersionMismatchError, versions

__all__ = [
    "ClusterError",
    "EmbedDocuments",
    "RerankPairs",
    "VersionMismatchError",
    "WarmPrefixes",
    "connected",
    "document_key",
    "partition_by_document",
    "versions",
]

# Imported when first used, so that tasks without a model do not wait for torch and transformers.
_HOME = {
    "ClusterError": "session",
    "EmbedDocuments": "embed",
    "RerankPairs": "rerank",
    "VersionMismatchError": "worker",
    "WarmPrefixes": "warm",
    "connected": "session",
    "document_key": "partition",
    "partition_by_document": "partition",
    "versions": "worker",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ragvl.distributed' has no attribute {name!r}")
    return getattr(import_module(f"ragvl.distributed.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
