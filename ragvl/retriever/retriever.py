"""Finds the documents that fit a query: the first stage of RagVL."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ragvl.data.document import Document, DocumentLike
from ragvl.data.images import DocumentError
from ragvl.data.picture import Picture
from ragvl.data.query import QueryLike
from ragvl.identity import document_name
from ragvl.messages import quoted, reason, shown
from ragvl.retriever.encoder import DualEncoder, check_content
from ragvl.retriever.index import IndexKind, SearchDevice, Selection, VectorIndex, check_ids
from ragvl.retriever.kinds import kinds_of, search_in_turn
from ragvl.retriever.storage import IndexFileError, load_state

logger = logging.getLogger(__name__)

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
        score: inner product of the query's and the document's unit vectors (their cosine). A text's
            and a picture's do not compare.
    """

    id: str
    document: Document
    score: float


class Retriever:
    """Documents, searched by the cosine between a query and their pictures, or else their texts.

    Where both kinds are there they take turns in a result, the best picture first: see
    `search_in_turn`.

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
        self._kinds: list[Selection] | None = None
        self.add(documents, batch_size=batch_size, progress=progress)

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def documents(self) -> dict[str, Document]:
        """The documents by id, in the order in which they were added."""
        return dict(self._documents)

    def get(self, id: str) -> Document | None:
        """The document of that id; None if there is none."""
        return self._documents.get(id)

    def add(
        self,
        documents: Iterable[DocumentLike],
        *,
        batch_size: int = 32,
        on_error: Literal["raise", "skip"] = "raise",
        progress: bool = True,
    ) -> list[str]:
        """Adds documents; all of them, or on an error none.

        A document without an id gets its picture's path for one, or a hash of what it holds, so
        that the same document has the same id another day.

        Args:
            documents: new ones.
            batch_size: pictures per forward pass.
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
        new = _by_id(documents)
        self.index.check_new(list(new))  # before the long work
        encode = partial(self.encoder.encode_documents, batch_size=batch_size, progress=progress)
        try:
            vectors = encode(list(new.values()))
        except DocumentError:
            if on_error == "raise":
                raise
            new = {id: document for id, document in new.items() if _is_usable(document)}
            vectors = encode(list(new.values()))
        self.index.add(list(new), vectors)
        self._documents.update(new)
        self._kinds = None
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
        self._kinds = None

    def retrieve(self, query: QueryLike, k: int = 20) -> list[RetrievedDocument]:
        """The `k` documents that fit `query` best, the best first; all of them if there are fewer.

        Args:
            query: a text, a picture, or a `Query` of both.
            k: how many.

        Raises:
            TypeError: the query is none.
            ImageError: its picture cannot be used.
            ValueError: the query is empty, `k` is below 1, or there are no documents.
        """
        return self.retrieve_batch([query], k)[0]

    def retrieve_batch(
        self, queries: Sequence[QueryLike], k: int = 20
    ) -> list[list[RetrievedDocument]]:
        """`retrieve` for many queries at once.

        Raises:
            TypeError: `queries` is a single query, or one of them is none.
            ImageError: a query's picture cannot be used.
            ValueError: a query is empty, `k` is below 1, or there are no documents.
        """
        if not self._documents:
            raise ValueError("the retriever holds no documents; add some first")
        vectors = self.encoder.encode_queries(queries)
        results = search_in_turn(self.index, vectors, k, self._of_kinds())
        return [
            [RetrievedDocument(id, self._documents[id], score) for id, score in hits]
            for hits in results
        ]

    def _of_kinds(self) -> list[Selection]:
        """Documents with pictures, and documents without, if there are both."""
        if (kinds := self._kinds) is None:
            texts = {id for id, document in self._documents.items() if not document.pictures}
            kinds = self._kinds = kinds_of(self.index, texts)
        return kinds

    def save(self, folder: str | Path) -> None:
        """Saves the index and the documents' ids, texts and picture paths (made absolute).

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
            documents: those whose pictures live in memory, looked up by id (or by what they hold
                where they had none). Others in it replace what was saved.
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
                file.write(json.dumps(_SavedDocument.line_of(id, document)) + "\n")


def _is_usable(document: Document) -> bool:
    """Whether it can be encoded; a line of the log says why not."""
    try:
        check_content(document)
        for picture in document.pictures:
            picture.load()
    except DocumentError as error:
        logger.warning("skipped: %s", error)
        return False
    return True


def _by_id(documents: Iterable[DocumentLike]) -> dict[str, Document]:
    if isinstance(documents, str | os.PathLike | bytes | Document):
        raise TypeError("documents must be a sequence of them, not one; write [document]")
    listed = [Document.of(document) for document in documents]
    ids = [_id_of(document) for document in listed]
    check_ids(ids)
    return dict(zip(ids, listed, strict=True))


def _absolute(picture: Picture) -> str | None:
    return None if picture.path is None else os.path.abspath(picture.path)


def _id_of(document: Document) -> str:
    """The document's id, or one made of what it holds."""
    if document.id is not None:
        return document.id
    if document.image is not None and document.path is not None:
        return document.path
    return document_name(document.caption, document.digest())[:_ID_LENGTH]


@dataclass(frozen=True)
class _SavedDocument:
    """A line about a document.

    Attributes:
        id: its id.
        caption: of its picture.
        image: the picture's path; None if that lives in memory.
        text: the document's text.
        parts: its texts, and its pictures' paths; None in the place of one that lives in memory.
    """

    id: str
    caption: str | None = None
    image: str | None = None
    text: str | None = None
    parts: list[dict[str, str | None]] | None = None

    @staticmethod
    def line_of(id: str, document: Document) -> dict[str, Any]:
        if document.image is not None:
            return {"id": id, "caption": document.caption, "image": _absolute(document.pictures[0])}
        if document.text is not None:
            return {"id": id, "text": document.text}
        parts = [
            {"text": part} if isinstance(part, str) else {"image": _absolute(part)}
            for part in document.parts
        ]
        return {"id": id, "parts": parts}

    def document(self) -> Document | None:
        """The document; None if a picture of it lived in memory."""
        if self.text is not None:
            return Document(text=self.text, id=self.id)
        if self.parts is not None:
            if any(part.get("image", "") is None for part in self.parts):
                return None
            return Document(parts=self.parts, id=self.id)
        return None if self.image is None else Document(self.image, self.caption, self.id)

    @classmethod
    def of(cls, line: bytes) -> _SavedDocument:
        """What a line says.

        Raises:
            ValueError: it says something else.
        """
        try:
            saved = cls(**json.loads(line))
        except TypeError as error:
            raise ValueError("it is no object with id, and image, text or parts") from error
        for name, value in vars(saved).items():
            expected = list if name == "parts" else str
            if not isinstance(value, expected) and (value is not None or name == "id"):
                raise ValueError(f"{name} is of type {type(value).__name__}")
        for part in saved.parts or []:
            if not isinstance(part, dict):
                raise ValueError(f"a part is of type {type(part).__name__}")
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
            continue
        try:
            document = saved.document()
        except (TypeError, ValueError) as error:
            raise IndexFileError(f"{shown(path)}, {quoted(saved.id)}: {reason(error)}") from error
        if document is None:
            missing.append(saved.id)
        else:
            documents[saved.id] = document
    if missing:
        raise ValueError(
            f"the pictures of {len(missing)} documents were in memory and are not saved with the "
            f"index (the first is {missing[0]!r}): give them as documents=[...]"
        )
    if given:
        raise ValueError(f"not in the saved index: {next(iter(given))!r} (of {len(given)} given)")
    return documents
