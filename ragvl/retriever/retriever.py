"""Finds the documents that fit a query: the first stage of RagVL."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from ragvl.data.document import Document, DocumentLike
from ragvl.data.images import DocumentError
from ragvl.data.query import QueryLike
from ragvl.messages import shown
from ragvl.retriever.disk_store import DISK_MANIFEST, DiskStore
from ragvl.retriever.encoding import Encoder, check_content, text_of
from ragvl.retriever.faiss_store import FaissStore
from ragvl.retriever.fusion import FUSED, Fusion, Order, ReciprocalRank, parse_fusion
from ragvl.retriever.index import IndexKind, SearchDevice, VectorIndex, check_ids, check_new_ids
from ragvl.retriever.milvus import MilvusAddress, MilvusStore
from ragvl.retriever.saved_documents import (
    DOCUMENTS_FILE,
    by_id,
    read_documents,
    write_documents,
)
from ragvl.retriever.storage import IndexFileError, load_state, save_state
from ragvl.retriever.store import Hits, VectorStore, Where
from ragvl.retriever.views import View, estimated_fusion, retriever_name, search_fused

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]


class IndexMismatchError(ValueError):
    """A saved index was built by another encoder, so its vectors mean nothing to this one."""


@dataclass(frozen=True)
class RetrievedDocument:
    """A retrieved document.

    Attributes:
        id: its id in the retriever.
        document: the document, as it was added.
        score: what it was ordered by. Of a `Retriever` the inner product of the query's and the
            document's unit vectors (their cosine); a text's and a picture's do not compare. Of a
            `FusedRetriever` what its fusion counts.
    """

    id: str
    document: Document
    score: float


class DocumentRetriever(ABC):
    """Documents by id that can be searched, by whatever order."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def __len__(self) -> int:
        """How many documents there are."""

    @property
    @abstractmethod
    def documents(self) -> dict[str, Document]:
        """All documents by id, in the order in which they were added."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Names what decides the order: an encoder's weights, or those of two and their fusion."""

    @abstractmethod
    def _get(self, ids: Iterable[str]) -> dict[str, Document]:
        """Those of the documents that are there, by id."""

    def get(self, id: str) -> Document | None:
        """The document of that id; None if there is none."""
        return self._get([id]).get(id)

    def retrieve(
        self, query: QueryLike, k: int = 20, *, where: Where | None = None
    ) -> list[RetrievedDocument]:
        """The `k` documents that fit `query` best, the best first; all of them if there are fewer.

        Args:
            query: a text, a picture, or a `Query` of both.
            k: how many.
            where: search these documents only.

        Raises:
            TypeError: the query is none.
            ImageError: its picture cannot be used.
            ValueError: the query is empty, or has nothing that an encoder reads; `k` is below 1, or
                there are no documents.
        """
        return self.retrieve_batch([query], k, where=where)[0]

    def retrieve_batch(
        self, queries: Sequence[QueryLike], k: int = 20, *, where: Where | None = None
    ) -> list[list[RetrievedDocument]]:
        """`retrieve` for many queries at once.

        Raises:
            TypeError: `queries` is a single query, or one of them is none.
            ImageError: a query's picture cannot be used.
            ValueError: see `retrieve`.
        """
        if not len(self):
            raise ValueError("the retriever holds no documents; add some first")
        found = self._search(queries, k, where)
        documents = self._get({id for hits in found for id, _ in hits})
        return [  # of a database another process may have removed one since
            [RetrievedDocument(id, documents[id], score) for id, score in hits if id in documents]
            for hits in found
        ]

    @abstractmethod
    def _search(self, queries: Sequence[QueryLike], k: int, where: Where | None) -> list[Hits]:
        """Ids and scores for each query."""

    def add(
        self,
        documents: Iterable[DocumentLike],
        *,
        batch_size: int = 32,
        on_error: OnError = "raise",
        progress: bool = True,
    ) -> list[str]:
        """Adds documents; all of them, or on an error none.

        A document without an id gets its picture's path for one, or a hash of what it holds, so
        that the same document has the same id another day.

        Args:
            documents: new ones.
            batch_size: pictures or texts per forward pass.
            on_error: "raise" at a document that cannot be used, or "skip" it: a line of the log
                names it.
            progress: show a progress bar when encoding takes more than a second.

        Returns:
            The ids of those that were added.

        Raises:
            DocumentError: a document cannot be used; the message names it.
            TypeError: an item is neither a document nor a picture.
            ValueError: an id is there already, or twice among `documents`; or there are too few
                to start an "ivfpq" index.
        """
        new = by_id(documents)
        try:
            encoded = self._encoded(new, batch_size=batch_size, progress=progress)
        except DocumentError:
            if on_error == "raise":
                raise
            new = {id: one for id, one in new.items() if self._is_usable(id, one)}
            encoded = self._encoded(new, batch_size=batch_size, progress=progress)
        self._insert(new, encoded)
        return list(new)

    @abstractmethod
    def _encoded(
        self, new: Mapping[str, Document], *, batch_size: int, progress: bool
    ) -> list[Encoded]:
        """What each retriever gets of new documents; nothing is added yet."""

    @abstractmethod
    def _insert(self, new: Mapping[str, Document], encoded: Sequence[Encoded]) -> None:
        """Adds new documents."""

    @abstractmethod
    def _retrievers_of(self, document: Document) -> list[Retriever]:
        """Those that have to encode and keep a document."""

    def _is_usable(self, id: str, document: Document) -> bool:
        """Whether it can be encoded and kept; a line of the log says why not."""
        try:
            for retriever in self._retrievers_of(document):
                retriever.encoder.check_document(document)
                retriever.store.check_document(id, document)
        except DocumentError as error:
            logger.warning("skipped: %s", error)
            return False
        return True

    @abstractmethod
    def remove(self, ids: Sequence[str]) -> None:
        """Removes documents; all of them, or on an error none.

        Raises:
            TypeError: `ids` is a single string.
            ValueError: an id is not there.
        """

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Saves vectors, and the documents' ids, texts and picture paths (made absolute).

        What finds the encoders again is saved too. A picture that lives in memory is not; `load`
        asks for it. What an earlier `save` left in `folder` stays until the new state is whole.

        What is in Milvus is there already: `folder` is the address then, see `MilvusStore.save`.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of what is open; also what `with` does at the end of its block."""


class Retriever(DocumentRetriever):
    """Documents, searched by the cosine between a query and what an encoder reads of them.

    A `DualEncoder` sees a document's pictures, or else its texts. Where both kinds are there they
    take turns in a result, the best picture first: see `taking_turns`. A `TextEncoder` reads
    captions and texts.

    Retrieving is thread-safe, but not while documents are added or removed.

    Args:
        encoder: makes the vectors.
        documents: to begin with; see `add`.
        kind: "exact", "hnsw" or "ivfpq"; see `VectorIndex`.
        device: where to search; see `VectorIndex`.
        store: where documents and vectors are kept, and so how they are searched; by default in
            memory, by FAISS. See `MilvusStore`.
        batch_size: pictures or texts per forward pass.
        progress: show a progress bar when encoding takes more than a second.

    Raises:
        ImportError: FAISS is not installed.
        IndexMismatchError: the store's vectors are another encoder's.
        DocumentError, TypeError, ValueError: see `add`.

    Examples:
        >>> retriever = Retriever(DualEncoder.from_pretrained(path), ["cat.jpg", "dog.jpg"])
        >>> [item.id for item in retriever.retrieve("a cat", k=1)]
        ['cat.jpg']
    """

    def __init__(
        self,
        encoder: Encoder,
        documents: Iterable[DocumentLike] = (),
        *,
        kind: IndexKind = "exact",
        device: SearchDevice = "auto",
        store: VectorStore | None = None,
        batch_size: int = 32,
        progress: bool = True,
    ) -> None:
        self.encoder = encoder
        if store is None:
            fingerprint = encoder.fingerprint
            index = VectorIndex(
                encoder.dim, kind=kind, encoder_fingerprint=fingerprint, device=device
            )
            store = FaissStore(index)
        elif (store.dim, store.encoder_fingerprint) != (encoder.dim, encoder.fingerprint):
            raise IndexMismatchError(
                f"the store has vectors of length {store.dim} by encoder "
                f"{shown(store.encoder_fingerprint)}, and this one is {encoder.fingerprint}, of "
                f"length {encoder.dim}"
            )
        self.store = store
        self.add(documents, batch_size=batch_size, progress=progress)

    def __len__(self) -> int:
        return len(self.store)

    @property
    def documents(self) -> dict[str, Document]:
        """See `DocumentRetriever.documents`."""
        return self.store.documents

    @property
    def name(self) -> str:
        """See `DocumentRetriever.name`."""
        return self.encoder.fingerprint

    def _get(self, ids: Iterable[str]) -> dict[str, Document]:
        return self.store.get(ids)

    def _encoded(
        self, new: Mapping[str, Document], *, batch_size: int, progress: bool
    ) -> list[Encoded]:
        self.store.check_new(new)  # before the long work
        vectors = self.encoder.encode_documents(
            list(new.values()), batch_size=batch_size, progress=progress
        )
        return [(self, new, vectors)]

    def _insert(self, new: Mapping[str, Document], encoded: Sequence[Encoded]) -> None:
        for _, _, vectors in encoded:
            self.store.add(new, vectors)

    def _retrievers_of(self, document: Document) -> list[Retriever]:  # noqa: ARG002  it has all
        return [self]

    def remove(self, ids: Sequence[str]) -> None:
        """See `DocumentRetriever.remove`."""
        self.store.remove(ids)

    def _search(self, queries: Sequence[QueryLike], k: int, where: Where | None) -> list[Hits]:
        vectors = self.encoder.encode_queries(queries)
        return self.store.search(vectors, k, where, in_turn=self.encoder.reads_pictures)

    @property
    def about(self) -> dict[str, Any]:
        """What is saved of its encoder."""
        order: Order = "picture" if self.encoder.reads_pictures else "caption"
        return {"order": order, "encoder": dict(self.encoder.origin)}

    def save(self, folder: str | Path) -> None:
        """See `DocumentRetriever.save`."""
        self.store.save(folder, self.about)

    def close(self) -> None:
        """See `DocumentRetriever.close`."""
        self.store.close()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        encoder: Encoder,
        *,
        documents: Iterable[DocumentLike] = (),
        device: SearchDevice = "auto",
    ) -> Retriever:
        """Loads what `save` wrote, or opens a collection of Milvus; nothing is encoded again.

        Args:
            folder: where it was saved; a `DiskStore`'s folder; or see `MilvusAddress`.
            encoder: the encoder that built it.
            documents: those whose pictures live in memory, looked up by id (or by what they hold
                where they had none). Others in it replace what was saved.
            device: where to search; see `VectorIndex`.

        Raises:
            FileNotFoundError: there is no saved index in `folder`.
            IndexFileError: it is damaged.
            IndexMismatchError: another encoder built it, or two encoders.
            MilvusError, ImportError: see `MilvusStore.open`.
            ValueError: a picture that lived in memory is not among `documents`, or one of
                `documents` is not in the index.
        """
        if (store := open_store(folder)) is not None:
            if list(documents):
                raise ValueError(f"{folder} has its documents: leave out documents=[...]")
            _check_builder(folder, store.metadata, encoder)
            return cls(encoder, store=store)
        metadata, state = load_state(folder)
        if "views" in metadata:
            raise IndexMismatchError(
                f"the index in {shown(folder)} is of pictures and captions: open it with "
                "FusedRetriever.load"
            )
        _check_builder(folder, metadata, encoder)
        saved = read_documents(state / DOCUMENTS_FILE, by_id(documents))
        index = VectorIndex.from_state(metadata, state, device=device)
        if saved.keys() != set(index.ids):
            raise _other_documents(state)
        return cls(encoder, store=FaissStore(index, saved))


Encoded = tuple[Retriever, Mapping[str, Document], np.ndarray]
"""A retriever, the documents that it gets, and their vectors."""


class FusedRetriever(DocumentRetriever):
    """Documents searched by their pictures and by their captions, in one order made of both.

    A document without caption and text is found by its pictures only, one without a picture by its
    texts only. Where one order has no place for a document, that counts neither for nor against it;
    a query without a text is one for the pictures' order alone.

    Retrieving is thread-safe, but not while documents are added or removed.

    Args:
        picture: the one that looks at pictures.
        caption: the one that reads captions and texts.
        fusion: makes one order of two.
        documents: to begin with, beside those that the two hold; see `add`.
        batch_size: pictures or texts per forward pass.
        progress: show a progress bar when encoding takes more than a second.

    Attributes:
        picture: finds by pictures; documents are added and removed here, not there.
        caption: finds by captions.
        fusion: may be replaced.

    Raises:
        DocumentError, TypeError, ValueError: see `add`; or an encoder is of the wrong kind.

    Examples:
        >>> retriever = FusedRetriever(
        ...     Retriever(DualEncoder.from_pretrained(clip)),
        ...     Retriever(TextEncoder.from_pretrained(minilm)),
        ...     documents=[Document("cat.jpg", "A cat."), Document("dog.jpg", "A dog.")],
        ... )
    """

    def __init__(
        self,
        picture: Retriever,
        caption: Retriever,
        fusion: Fusion | None = None,
        documents: Iterable[DocumentLike] = (),
        *,
        batch_size: int = 32,
        progress: bool = True,
    ) -> None:
        if not picture.encoder.reads_pictures or caption.encoder.reads_pictures:
            raise ValueError(
                "the first retriever must have an encoder of pictures (DualEncoder), the second "
                "one of texts (TextEncoder)"
            )
        if not (isinstance(picture.store, FaissStore) and isinstance(caption.store, FaissStore)):
            raise ValueError(
                "two encoders are searched in memory: a collection of Milvus is of one encoder"
            )
        self.picture = picture
        self.caption = caption
        self._stores: dict[Order, FaissStore] = {
            "picture": picture.store,
            "caption": caption.store,
        }
        self.fusion = fusion or ReciprocalRank()
        self._documents = {**picture.documents, **caption.documents}
        self.add(documents, batch_size=batch_size, progress=progress)

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def documents(self) -> dict[str, Document]:
        """See `DocumentRetriever.documents`."""
        return dict(self._documents)

    @property
    def name(self) -> str:
        """See `DocumentRetriever.name`."""
        return retriever_name(self._encoders, self.fusion)

    @property
    def _encoders(self) -> dict[Order, Encoder]:
        return {"picture": self.picture.encoder, "caption": self.caption.encoder}

    def _get(self, ids: Iterable[str]) -> dict[str, Document]:
        return {id: self._documents[id] for id in ids if id in self._documents}

    def _encoded(
        self, new: Mapping[str, Document], *, batch_size: int, progress: bool
    ) -> list[Encoded]:
        check_new_ids(list(new), self._documents)  # of two indexes each knows only what it holds
        for document in new.values():
            check_content(document)
        parts = [
            (self.picture, {id: one for id, one in new.items() if one.pictures}),
            (self.caption, {id: one for id, one in new.items() if text_of(one)}),
        ]
        for retriever, part in parts:
            retriever.store.check_new(part)  # before the long work
        return [
            encoded
            for retriever, part in parts
            for encoded in retriever._encoded(part, batch_size=batch_size, progress=progress)
        ]

    def _insert(self, new: Mapping[str, Document], encoded: Sequence[Encoded]) -> None:
        for retriever, part, vectors in encoded:
            retriever.store.add(part, vectors)
        self._documents.update(new)

    def _retrievers_of(self, document: Document) -> list[Retriever]:
        retrievers = [self.picture] if document.pictures else []
        return retrievers + ([self.caption] if text_of(document) or not retrievers else [])

    def remove(self, ids: Sequence[str]) -> None:
        """See `DocumentRetriever.remove`."""
        check_ids(list(dict.fromkeys(ids)) if not isinstance(ids, str) else ids)
        if unknown := [id for id in ids if id not in self._documents]:
            raise ValueError(f"not in the retriever: {unknown[0]!r}")
        for store in self._stores.values():
            store.remove([id for id in ids if id in store.index])
        for id in set(ids):
            del self._documents[id]

    def take_estimate(self, estimates: Iterable[tuple[str, str]]) -> bool:
        """Uses the fusion that was estimated for these encoders, if there is one.

        Args:
            estimates: fusions, each with what it was estimated for; see `estimated_fusion`.

        Returns:
            Whether that is another one than before.
        """
        every = (estimated_fusion(self._encoders, *estimate) for estimate in estimates)
        estimated = next(filter(None, every), None)
        if estimated is None or estimated.name == self.fusion.name:
            return False
        self.fusion = estimated
        return True

    def _search(self, queries: Sequence[QueryLike], k: int, where: Where | None) -> list[Hits]:
        encoders = self._encoders
        views = {order: View(encoders[order], store.mixed) for order, store in self._stores.items()}
        among = None
        if where is not None:
            among = [id for id, document in self._documents.items() if where.matches(document)]
        return search_fused(views, self.fusion, queries, k, among)

    def close(self) -> None:
        """See `DocumentRetriever.close`."""
        for store in self._stores.values():
            store.close()

    def save(self, folder: str | Path) -> None:
        """See `DocumentRetriever.save`."""
        files = {
            name: write
            for order, store in self._stores.items()
            for name, write in store.index.files(f"{order}_").items()
        }
        retrievers = {"picture": self.picture, "caption": self.caption}
        metadata = {
            "order": FUSED,
            "fusion": self.fusion.name,
            "views": {
                order: {**store.index.metadata, **retrievers[order].about}
                for order, store in self._stores.items()
            },
        }
        write = partial(write_documents, self._documents)
        save_state(folder, metadata, {**files, DOCUMENTS_FILE: write})

    @classmethod
    def load(
        cls,
        folder: str | Path,
        encoder: Encoder,
        text_encoder: Encoder,
        *,
        fusion: Fusion | None = None,
        documents: Iterable[DocumentLike] = (),
        device: SearchDevice = "auto",
    ) -> FusedRetriever:
        """Loads what `save` wrote; nothing is encoded again.

        Args:
            folder: where it was saved.
            encoder: the encoder of pictures that built it.
            text_encoder: the encoder of texts that built it.
            fusion: in place of the one that was saved.
            documents: see `Retriever.load`.
            device: where to search; see `VectorIndex`.

        Raises:
            FileNotFoundError: there is no saved index in `folder`.
            IndexFileError: it is damaged.
            IndexMismatchError: other encoders built it, or one alone.
            ValueError: see `Retriever.load`.
        """
        if open_store(folder) is not None:
            raise IndexMismatchError(f"the index in {shown(folder)} is of one encoder")
        metadata, state = load_state(folder)
        views = metadata.get("views")
        if views is None:
            raise IndexMismatchError(
                f"the index in {shown(folder)} is of one encoder: open it with Retriever.load"
            )
        saved = read_documents(state / DOCUMENTS_FILE, by_id(documents))
        parts: list[Retriever] = []
        held: set[str] = set()
        try:
            fusion = fusion or parse_fusion(metadata["fusion"])
            for order, one in (("picture", encoder), ("caption", text_encoder)):
                _check_builder(folder, views[order], one)
                index = VectorIndex.from_state(
                    views[order], state, prefix=f"{order}_", device=device
                )
                of_order = {id: document for id, document in saved.items() if id in index}
                parts.append(Retriever(one, store=FaissStore(index, of_order)))
                held.update(index.ids)
        except (KeyError, TypeError, AttributeError) as error:
            raise IndexFileError(
                f"{shown(folder)} holds no index of ragvl's: its description is not whole"
            ) from error
        if saved.keys() != held:
            raise _other_documents(state)
        fused = cls(parts[0], parts[1], fusion)
        fused._documents = saved
        return fused


def open_store(place: str | Path) -> MilvusStore | DiskStore | None:
    """The store at a place, where documents are kept as they are searched; None of another index.

    Raises:
        ImportError, OSError, ValueError: see `MilvusStore.open` and `DiskStore.open`.
    """
    if (address := MilvusAddress.find(place)) is not None:
        return MilvusStore.open(address)
    return DiskStore.open(place) if (Path(place) / DISK_MANIFEST).is_file() else None


def _check_builder(folder: str | Path, metadata: Mapping[str, Any], encoder: Encoder) -> None:
    builder = metadata.get("encoder_fingerprint")
    if builder != encoder.fingerprint:
        raise IndexMismatchError(
            f"the index in {shown(folder)} was built by encoder {shown(builder)}, "
            f"and this one is {encoder.fingerprint}: load the encoder that built it, or build "
            "the index again"
        )


def _other_documents(state: Path) -> IndexFileError:
    return IndexFileError(f"{shown(state / DOCUMENTS_FILE)} has other documents than the index")
