"""The first stage: a dual encoder and an index find the candidates for a query."""

from __future__ import annotations

from ragvl.retriever.documents import encode_documents, readable
from ragvl.retriever.encoder import DualEncoder, check_encoder
from ragvl.retriever.index import IndexKind, VectorIndex
from ragvl.retriever.retriever import IndexMismatchError, RetrievedDocument, Retriever
from ragvl.retriever.storage import IndexFileError

__all__ = [
    "DualEncoder",
    "IndexFileError",
    "IndexKind",
    "IndexMismatchError",
    "RetrievedDocument",
    "Retriever",
    "VectorIndex",
    "check_encoder",
    "encode_documents",
    "readable",
]
