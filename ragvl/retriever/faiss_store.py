"""Documents in memory, with their vectors in a FAISS index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ragvl.data.document import Document
from ragvl.retriever.index import VectorIndex
from ragvl.retriever.kinds import MixedIndex
from ragvl.retriever.saved_documents import DOCUMENTS_FILE, write_documents
from ragvl.retriever.storage import save_state
from ragvl.retriever.store import Hits, Where


class FaissStore:
    """Documents and a FAISS index in memory: a `VectorStore` that is saved into a folder.

    Args:
        index: has a vector for each document.
        documents: by id.

    Attributes:
        index: the FAISS index; documents are added and removed here, not there.
    """

    def __init__(self, index: VectorIndex, documents: Mapping[str, Document] | None = None) -> None:
        self.index = index
        self._documents = dict(documents or {})

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self.index.dim

    @property
    def encoder_fingerprint(self) -> str:
        """Names the encoder that makes the vectors."""
        return self.index.encoder_fingerprint

    @property
    def documents(self) -> dict[str, Document]:
        """By id, in the order in which they were added."""
        return dict(self._documents)

    @cached_property
    def mixed(self) -> MixedIndex:
        """What is searched; another one after documents were added or removed."""
        texts = {id for id, document in self._documents.items() if not document.pictures}
        return MixedIndex(self.index, texts)

    def get(self, ids: Iterable[str]) -> dict[str, Document]:
        """See `VectorStore`."""
        return {id: self._documents[id] for id in ids if id in self._documents}

    def check_new(self, documents: Mapping[str, Document]) -> None:
        """See `VectorStore`."""
        self.index.check_new(list(documents))

    def check_document(self, id: str, document: Document) -> None:
        """Every document can be kept."""

    def add(self, documents: Mapping[str, Document], vectors: np.ndarray) -> None:
        """See `VectorStore`."""
        self.index.add(list(documents), vectors)
        self._documents.update(documents)
        self.__dict__.pop("mixed", None)

    def remove(self, ids: Sequence[str]) -> None:
        """See `VectorStore`."""
        self.index.remove(ids)
        for id in set(ids):
            del self._documents[id]
        self.__dict__.pop("mixed", None)

    def search(
        self, queries: np.ndarray, k: int, where: Where | None = None, *, in_turn: bool = False
    ) -> list[Hits]:
        """See `VectorStore`."""
        among = None
        if where is not None:
            among = [id for id, document in self._documents.items() if where.matches(document)]
        return self.mixed.search(queries, k, among, in_turn=in_turn)

    def save(self, place: str | Path, about: Mapping[str, Any]) -> None:
        """See `VectorStore`; into a folder."""
        write = partial(write_documents, self._documents)
        metadata = {**self.index.metadata, **about}
        save_state(place, metadata, {**self.index.files(), DOCUMENTS_FILE: write})

    def close(self) -> None:
        """Nothing is open."""
