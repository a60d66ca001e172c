"""A thin client of `ragvl serve`: what the library takes and gives, over HTTP."""

from __future__ import annotations

from ragvl.client.client import AsyncClient, Client
from ragvl.client.errors import ApiError
from ragvl.client.results import (
    Answer,
    Found,
    Kept,
    KeptDocument,
    KnownDocument,
    KnownDocuments,
    Ranked,
    Reranking,
    Scores,
    Search,
    Usage,
)

__all__ = [
    "Answer",
    "ApiError",
    "AsyncClient",
    "Client",
    "Found",
    "Kept",
    "KeptDocument",
    "KnownDocument",
    "KnownDocuments",
    "Ranked",
    "Reranking",
    "Scores",
    "Search",
    "Usage",
]
