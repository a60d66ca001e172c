"""Finds the documents whose pictures fit a query: the first stage of RagVL."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ragvl.data.document import Document, DocumentLike
from ragvl.identity import document_name
from ragvl.messages import reason, shown
from ragvl.retriever.encoder import DualEncoder
from ragvl.retriever.index import IndexKind, SearchDevice, VectorIndex, check_ids
from ragvl.retriever.storage import IndexFileError, load_state

_DOCUMENTS_FILE = "documents.jsonl"
_ID_LENGTH = 16  # of the ids that are made of a document's content


class IndexMismatchError(ValueError):
    """A saved index was built by another encoder, so its vectors mean nothing to this one."""


@dataclass(frozen=True)
class RetrievedDocument:
    """A retrieved document.

    Attributes:
        id: its id in the retriever.
        document: the document, as it was added.
        score: inner product of the query's and the picture's unit vectors (their cosine).
    """

    id: str
    document: Document
    score: float


class Retriever:
    """Documents, searched by the cosine between a query's text and their pictures.

    Retrieving is thread-safe, but not while documents are added or removed.

    Args:
        encoder: makes the vectors.
        documents: to begin with; see `add`.
        kind: "exact", "hnsw" or "ivfpq"; see `VectorIndex`.
        device: where to search; see `VectorIndex`.
        batch_size: pictures per forward pass.
        progress: show a progress bar when encoding takes more than a second.

    Raises:
        ImportError: FAISS is not installed.
        ImageError, TypeError, ValueError: see `add`.

    Example:
        >>> retriever = Retriever(DualEncoder.from_pretrained(path), ["cat.jpg", "dog.jpg"])
        >>> [item.id for item in retriever.retrieve("a cat", k=1)]
        ['cat.jpg']
    """

    def __init__(
        self,
        encoder: DualEncoder,
        documents: Iterable[DocumentLike] = (),
        *,
        kind: IndexKind = "exact",
        device: SearchDevice = "auto",
        batch_size: int = 32,
        progress: bool = True,
    ) -> None:
        self.encoder = encoder
        self.index = VectorIndex(
            encoder.dim, kind=kind, encoder_fingerprint=encoder.fingerprint, device=device
        )
        self._documents: dict[str, Document] = {}
        self.add(documents, batch_size=batch_size, progress=progress)

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def documents(self) -> dict[str, Document]:
        """The documents by id, in the order in which they were added."""
        return dict(self._documents)

    def add(
        self, documents: Iterable[DocumentLike], *, batch_size: int = 32, progress: bool = True
    ) -> list[str]:
        """Adds documents; all of them, or on an error none.

        A document without an id gets its picture's path for one, or a hash of what the picture
        and the caption hold, so that the same document has the same id another day.

        Returns:
            The documents' ids.

        Raises:
            ImageError: a picture cannot be used; the message names the document.
            TypeError: an item is neither a document nor a picture.
            ValueError: an id is there already, or twice among `documents`; or there are too few
                to start an "ivfpq" index.
        """
        new = _by_id(documents)
        self.index.check_new(list(new))  # before the long work
        vectors = self.encoder.encode_images(
            list(new.values()), batch_size=batch_size, progress=progress
        )
        self.index.add(list(new), vectors)
        self._documents.update(new)
        return list(new)

    def remove(self, ids: Sequence[str]) -> None:
        """Removes documents; all of them, or on an error none.

        Raises:
            TypeError: `ids` is a single string.
            ValueError: an id is not there.
        """
        self.index.remove(ids)
        for id in set(ids):
            del self._documents[id]

    def retrieve(self, query: str, k: int = 20) -> list[RetrievedDocument]:
        """The `k` documents that fit `query` best, the best first; all of them if there are fewer.

        Raises:
            TypeError: the query is not a string.
            ValueError: the query is empty, `k` is below 1, or there are no documents.
        """
        return self.retrieve_batch([query], k)[0]

    def retrieve_batch(self, queries: Sequence[str], k: int = 20) -> list[list[RetrievedDocument]]:
        """`retrieve` for many queries at once.

        Raises:
            TypeError: `queries` is a single string, or one of them is not a string.
            ValueError: a query is empty, `k` is below 1, or there are no documents.
        """
        if not self._documents:
            raise ValueError("the retriever holds no documents; add some first")
        results = self.index.search(self.encoder.encode_texts(queries), k)
        return [
            [RetrievedDocument(id, self._documents[id], score) for id, score in hits]
            for hits in results
        ]

    def save(self, folder: str | Path) -> None:
        """Saves the index and the documents' ids, captions and picture paths (made absolute).

        A picture that lives in memory is not saved; `load` asks for it. What an earlier `save`
        left in `folder` stays until the new state is whole.
        """
        self.index.save(folder, attachments={_DOCUMENTS_FILE: self._write_documents})

    @classmethod
    def load(
        cls,
        folder: str | Path,
        encoder: DualEncoder,
        *,
        documents: Iterable[DocumentLike] = (),
        device: SearchDevice = "auto",
    ) -> Retriever:
        """Loads what `save` wrote; nothing is encoded again.

        Args:
            folder: where it was saved.
            encoder: the encoder that built it.
            documents: those whose pictures live in memory, looked up by id (or by their picture and
                caption where they had none). Others in it replace what was saved.
            device: where to search; see `VectorIndex`.

        Raises:
            FileNotFoundError: there is no saved index in `folder`.
            IndexFileError: it is damaged.
            IndexMismatchError: another encoder built it.
            ValueError: a picture that lived in memory is not among `documents`, or one of
                `documents` is not in the index.
        """
        metadata, state = load_state(folder)
        builder = metadata.get("encoder_fingerprint")
        if builder != encoder.fingerprint:
            raise IndexMismatchError(
                f"the index in {shown(folder)} was built by encoder {shown(builder)}, "
                f"and this one is {encoder.fingerprint}: load the encoder that built it, or build "
                "the index again with Retriever(encoder, documents)"
            )
        if not (state / _DOCUMENTS_FILE).is_file():
            raise IndexFileError(f"{folder} holds vectors only; open it with VectorIndex.load")
        index = VectorIndex.from_state(metadata, state, device=device)
        retriever = cls(encoder, kind=index.kind, device=device)
        retriever.index = index
        retriever._documents = _read_documents(state / _DOCUMENTS_FILE, _by_id(documents))
        if retriever._documents.keys() != set(retriever.index.ids):
            raise IndexFileError(
                f"{shown(state / _DOCUMENTS_FILE)} has other documents than the index"
            )
        return retriever

    def _write_documents(self, path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            for id, document in self._documents.items():
                picture = None if document.path is None else os.path.abspath(document.path)
                line = {"id": id, "caption": document.caption, "image": picture}
                file.write(json.dumps(line) + "\n")


def _by_id(documents: Iterable[DocumentLike]) -> dict[str, Document]:
    if isinstance(documents, str | os.PathLike | bytes | Document):
        raise TypeError("documents must be a sequence of them, not one; write [document]")
    listed = [Document.of(document) for document in documents]
    ids = [_id_of(document) for document in listed]
    check_ids(ids)
    return dict(zip(ids, listed, strict=True))


def _id_of(document: Document) -> str:
    """The document's id, or one made of its picture and caption."""
    if document.id is not None:
        return document.id
    if document.path is not None:
        return document.path
    return document_name(document.caption, document.digest())[:_ID_LENGTH]


@dataclass(frozen=True)
class _SavedDocument:
    id: str
    caption: str | None
    image: str | None

    @classmethod
    def of(cls, line: bytes) -> _SavedDocument:
        """What a line says.

        Raises:
            ValueError: it says something else.
        """
        try:
            saved = cls(**json.loads(line))
        except TypeError as error:
            raise ValueError("it is no object with id, caption and image") from error
        for name, value in vars(saved).items():
            if not isinstance(value, str) and (value is not None or name == "id"):
                raise ValueError(f"{name} is of type {type(value).__name__}")
        return saved


def _saved_documents(path: Path) -> list[_SavedDocument]:
    """The lines of a file of documents.

    Raises:
        IndexFileError: a line is none, or an id is there twice.
    """
    every = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                every.append(_SavedDocument.of(line))
            except (ValueError, RecursionError) as error:
                raise IndexFileError(f"{shown(path)}, line {number}: {reason(error)}") from error
    try:
        check_ids([saved.id for saved in every])
    except ValueError as error:
        raise IndexFileError(f"{shown(path)}: {reason(error)}") from error
    return every


def _read_documents(path: Path, given: dict[str, Document]) -> dict[str, Document]:
    documents: dict[str, Document] = {}
    missing: list[str] = []
    for saved in _saved_documents(path):
        if saved.id in given:
            documents[saved.id] = given.pop(saved.id)
        elif saved.image is not None:
            documents[saved.id] = Document(saved.image, saved.caption, saved.id)
        else:
            missing.append(saved.id)
    if missing:
        raise ValueError(
            f"the pictures of {len(missing)} documents were in memory and are not saved with the "
            f"index (the first is {missing[0]!r}): give them as documents=[...]"
        )
    if given:
        raise ValueError(f"not in the saved index: {next(iter(given))!r} (of {len(given)} given)")
    return documents
