"""The first stage: a dual encoder and an index find the candidates for a query."""

from __future__ import annotations

from ragvl.retriever.documents import encode_documents
from ragvl.retriever.encoder import DualEncoder, check_encoder
from ragvl.retriever.index import VectorIndex
from ragvl.retriever.kinds import kinds_of, search_in_turn
from ragvl.retriever.retriever import IndexMismatchError, RetrievedDocument, Retriever
from ragvl.retriever.storage import IndexFileError, check_index

__all__ = [
    "DualEncoder",
    "IndexFileError",
    "IndexMismatchError",
    "RetrievedDocument",
    "Retriever",
    "VectorIndex",
    "check_encoder",
    "check_index",
    "encode_documents",
    "kinds_of",
    "search_in_turn",
]
