"""How commands name documents, and say what is wrong with where those are from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragvl.messages import shown
from ragvl.output import say

if TYPE_CHECKING:
    from ragvl.data.caption_file import CaptionFile
    from ragvl.data.document import Document
    from ragvl.data.sources import Documents
    from ragvl.reranker import Reranker


def content(document: Document, name: str) -> dict[str, Any]:
    """What a document is, as JSON has it.

    Args:
        document: the document.
        name: how a picture without an id was named.
    """
    id = {} if document.id is None else {"id": document.id}
    if document.image is not None:
        caption = {} if document.caption is None else {"caption": document.caption}
        return {**id, "picture": name if document.id is None else document.path, **caption}
    if document.text is not None:
        return {**id, "text": document.text}
    parts = [
        {"text": part} if isinstance(part, str) else {"picture": part.path}
        for part in document.parts
    ]
    return {**id, "parts": parts}


def kept_in_files(document: Document) -> Document:
    """The document.

    Raises:
        ValueError: a picture of it is in no file of its own, where the index could find it again.
    """
    if any(picture.path is None for picture in document.pictures):
        raise ValueError(
            f"{document.name}: an index keeps the places of pictures, and this one has no file of "
            "its own: write the pictures to files, and list them in a JSONL file"
        )
    return document


def table_name(name: str) -> str:
    """A name in full, or of a data: URL the beginning and the end."""
    return shown(name) if name[:5].lower() == "data:" else name


def say_problems(*sources: Documents) -> None:
    """Says on standard error which split was taken, what cannot be used or was passed over."""
    for source in sources:
        if source.data_set is not None:
            say(f"documents of {source.data_set}", err=True)
        for line in source.problems.lines():
            say(line, err=True)
        if source.passed_over:
            kinds = ", ".join(f"{count} {kind}" for kind, count in source.passed_over.items())
            say(f"files that are no pictures by their names: {kinds}", err=True)


def say_captions(captions: CaptionFile) -> None:
    """Says on standard error what is wrong with a file of captions, and what it has none for."""
    for line in captions.problems.lines():
        say(line, err=True)
    if captions.num_without:
        total = captions.num_found + captions.num_without
        say(f"{captions.file} has captions for {captions.num_found} of {total} pictures", err=True)


class CacheUse:
    """What a folder of prefixes held of the documents of a question, before it was asked.

    Args:
        folder: the folder.
        reranker: uses it.
        pairs: the question and each document.
    """

    def __init__(self, folder: Path, reranker: Reranker, pairs: Sequence[Sequence[Any]]) -> None:
        self._folder = folder
        self._num_documents = len(pairs)
        self._num_known = sum(reranker.are_warm(pairs))

    def figures(self) -> dict[str, Any]:
        """As JSON has it."""
        missed = self._num_documents - self._num_known
        return {"folder": str(self._folder), "hits": self._num_known, "misses": missed}

    def say(self) -> None:
        """Says it on standard error, and what a prefix depends on where none was of use."""
        line = f"{self._num_known} of {self._num_documents} prefixes were in the cache"
        if not self._num_known:
            line += (
                ": a prefix is of a picture with its caption, and of one model, template, dtype "
                "and settings"
            )
        say(line, err=True)
