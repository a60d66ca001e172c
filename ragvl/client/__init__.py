"""A thin client of `ragvl serve`: what the library takes and gives, over HTTP."""

from __future__ import annotations

from ragvl.client.client import AsyncClient, Client
from ragvl.client.errors import ApiError
from ragvl.client.results import Answer, Found, Ranked, Reranking, Scores, Search, Usage

__all__ = [
    "Answer",
    "ApiError",
    "AsyncClient",
    "Client",
    "Found",
    "Ranked",
    "Reranking",
    "Scores",
    "Search",
    "Usage",
]
