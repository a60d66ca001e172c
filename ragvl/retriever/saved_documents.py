"""The documents of a saved index: ids, texts and the paths of pictures, a line each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragvl.data.document import Document, DocumentLike
from ragvl.data.picture import Picture
from ragvl.identity import document_name
from ragvl.messages import quoted, reason, shown
from ragvl.retriever.index import check_ids
from ragvl.retriever.storage import IndexFileError

DOCUMENTS_FILE = "documents.jsonl"
_ID_LENGTH = 16  # of the ids that are made of a document's content


def by_id(documents: Iterable[DocumentLike]) -> dict[str, Document]:
    """Documents by their ids; of one without, its picture's path or a hash of what it holds.

    Raises:
        TypeError: `documents` is one, or an item is neither a document nor a picture.
        ValueError: an id is there twice.
    """
    if isinstance(documents, str | os.PathLike | bytes | Document):
        raise TypeError("documents must be a sequence of them, not one; write [document]")
    listed = [Document.of(document) for document in documents]
    ids = [_id_of(document) for document in listed]
    check_ids(ids)
    return dict(zip(ids, listed, strict=True))


def write_documents(documents: Mapping[str, Document], path: Path) -> None:
    """Writes a line for each."""
    with path.open("w", encoding="utf-8") as file:
        for id, document in documents.items():
            file.write(SavedDocument.line_of(id, document) + "\n")


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
class SavedDocument:
    """A line about a document.

    Attributes:
        id: its id.
        caption: of its picture.
        image: the picture's path; None if that lives in memory.
        text: the document's text.
        parts: its texts, and its pictures' paths; None in the place of one that lives in memory.
        tags: the document's.
    """

    id: str
    caption: str | None = None
    image: str | None = None
    text: str | None = None
    parts: list[dict[str, str | None]] | None = None
    tags: list[str] | None = None

    @staticmethod
    def line_of(id: str, document: Document) -> str:
        """What a document is, in a line of JSON."""
        tags = {"tags": list(document.tags)} if document.tags else {}
        return json.dumps({"id": id, **SavedDocument._content_of(document), **tags})

    @staticmethod
    def _content_of(document: Document) -> dict[str, Any]:
        if document.image is not None:
            return {"caption": document.caption, "image": _absolute(document.pictures[0])}
        if document.text is not None:
            return {"text": document.text}
        parts = [
            {"text": part} if isinstance(part, str) else {"image": _absolute(part)}
            for part in document.parts
        ]
        return {"parts": parts}

    def document(self) -> Document | None:
        """The document; None if a picture of it lived in memory."""
        tags = self.tags or ()
        if self.text is not None:
            return Document(text=self.text, id=self.id, tags=tags)
        if self.parts is not None:
            if any(part.get("image", "") is None for part in self.parts):
                return None
            return Document(parts=self.parts, id=self.id, tags=tags)
        if self.image is None:
            return None
        return Document(self.image, self.caption, self.id, tags=tags)

    @classmethod
    def of(cls, line: str | bytes) -> SavedDocument:
        """What a line says.

        Raises:
            ValueError: it says something else.
        """
        try:
            saved = cls(**json.loads(line))
        except TypeError as error:
            raise ValueError("it is no object with id, and image, text or parts") from error
        for name, value in vars(saved).items():
            expected = list if name in ("parts", "tags") else str
            if not isinstance(value, expected) and (value is not None or name == "id"):
                raise ValueError(f"{name} is of type {type(value).__name__}")
        for part in saved.parts or []:
            if not isinstance(part, dict):
                raise ValueError(f"a part is of type {type(part).__name__}")
        return saved


def _saved_documents(path: Path) -> list[SavedDocument]:
    """The lines of a file of documents.

    Raises:
        IndexFileError: a line is none, or an id is there twice.
    """
    every = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                every.append(SavedDocument.of(line))
            except (ValueError, RecursionError) as error:
                raise IndexFileError(f"{shown(path)}, line {number}: {reason(error)}") from error
    try:
        check_ids([saved.id for saved in every])
    except ValueError as error:
        raise IndexFileError(f"{shown(path)}: {reason(error)}") from error
    return every


def read_documents(path: Path, given: dict[str, Document]) -> dict[str, Document]:
    """What `write_documents` wrote, by id.

    Args:
        path: the file.
        given: by id, those whose pictures live in memory, and others in place of what was saved.

    Raises:
        IndexFileError: the file is not there, or damaged.
        ValueError: a picture that lived in memory is not among `given`, or one of `given` is not
            in the file.
    """
    if not path.is_file():
        raise IndexFileError(
            f"{shown(path.parent.parent)} holds vectors only; open it with VectorIndex.load"
        )
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
