"""What goes between a router and the owners of documents, as other processes get it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ragvl.data.document import Document
from ragvl.data.images import DocumentError
from ragvl.data.picture import Picture
from ragvl.data.query import Query
from ragvl.identity import name_of
from ragvl.messages import MAX_ERROR, reason
from ragvl.reranker import SavedThresholds
from ragvl.server.errors import ServerError
from ragvl.server.refusals import plain_message


@dataclass(frozen=True)
class Task:
    """Work on documents for the one that owns them.

    Attributes:
        owner: its name.
        documents: names of documents by `owned_name`; one may be there several times.
        contents: those of them, by name, that the owner might not hold.
        queries: of the documents, where there are any.
        asked: for each document, the place of its query in `queries`.
        seconds: in which it is to be done; None for any time.
    """

    owner: str
    documents: Sequence[str]
    contents: Mapping[str, Document]
    queries: Sequence[Query] = ()
    asked: Sequence[int] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class Answer:
    """What an owner says to a task.

    Attributes:
        outcomes: for each document, a result or what was wrong with it; none with `missing`.
        missing: names of documents whose contents the owner needs; then nothing was done.
        refused: why the whole task was refused.
        queued_ms: how long the task waited for the model.
        scored_ms: how long it took from then on.
    """

    outcomes: list[Any] = field(default_factory=list)
    missing: frozenset[str] = frozenset()
    refused: Exception | None = None
    queued_ms: float = 0.0
    scored_ms: float = 0.0


@dataclass(frozen=True)
class Description:
    """What all owners are alike in.

    Attributes:
        model_name: what answers call the model.
        threshold: from what relevance a document is kept.
        thresholds: those that requests can name.
    """

    model_name: str
    threshold: float
    thresholds: SavedThresholds | None


def owned_name(document: Document) -> str:
    """Names all of a document that a score may depend on, or a refusal.

    Raises:
        DocumentError: a picture cannot be read.
    """
    parts = [part if isinstance(part, str) else (part.digest(),) for part in document.parts]
    kinds = (document.image is not None, document.text is not None)
    return name_of("owned", kinds, document.caption, parts, document.max_pixels)


def portable(document: Document, name: str) -> Document:
    """The document of that name with its pictures' files in memory.

    Raises:
        DocumentError: a picture cannot be read, or is not what it was when it was named.
    """
    if all(picture.path is None for picture in document.pictures):
        return document
    if document.image is not None:
        held = Document(
            _held(document.pictures[0]), document.caption, max_pixels=document.max_pixels
        )
        if isinstance(document.parts[0], str):
            held = held.with_caption_first()
    else:
        parts = [{"text": p} if isinstance(p, str) else {"image": _held(p)} for p in document.parts]
        held = Document(parts=parts, max_pixels=document.max_pixels)
    if owned_name(held) != name:
        raise DocumentError(f"the {document.name} has changed while it was read")
    return held


def _held(picture: Picture) -> Any:
    picture.check_file()
    return picture.image if picture.path is None else Path(os.fspath(picture.path)).read_bytes()


def num_bytes(document: Document) -> int:
    """About how much memory a document takes."""
    contents = [part if isinstance(part, str) else part.image for part in document.parts]
    return sum(len(content) for content in contents if isinstance(content, str | bytes))


def sendable(error: Exception, *subjects: Query | Document) -> Exception:
    """An error as another process gets it, that speaks of "the document" and "the query"."""
    if isinstance(error, ServerError):
        return error
    message = plain_message(error, *subjects)
    try:
        made = type(error)(message)
        pickle.loads(pickle.dumps(made))
    except Exception:  # of a class that is made in another way
        made = RuntimeError(reason(error, MAX_ERROR))
    return made
