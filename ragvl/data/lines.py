"""A document as a line of JSON describes it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ragvl.data.document import Document, PartLike
from ragvl.data.problems import Problems, brief_quoted
from ragvl.data.reading import place, read_json_lines
from ragvl.data.schemas import FIRST_ERROR, Id, PlainPath, String, Text, parsed

_EXAMPLE = '{"image": "a.jpg", "caption": "Harbour"}'  # of a line
_KINDS = ("image", "text", "parts")


class _PartLine(BaseModel):
    """A part: `{"image": path}`, or `{"text": text}`, or the text alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: PlainPath | None = None
    text: Text | None = None

    @model_validator(mode="after")
    def _check(self) -> _PartLine:
        if (self.image is None) == (self.text is None):
            raise ValueError("a part has either an image or a text")
        return self


def _text_alone(part: object) -> object:
    return {"text": part} if isinstance(part, str) else part


class DocumentLine(BaseModel):
    """`{"image": path, "caption": text}`, `{"text": text}` or `{"parts": [...]}`, each with an id.

    The caption and the id may be left out, and `"tags": [...]` be added. A part is
    `{"image": path}`, `{"text": text}`, or a string, which is a text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Id | None = None
    image: PlainPath | None = None
    caption: String | None = None
    text: Text | None = None
    parts: Annotated[
        tuple[Annotated[_PartLine, BeforeValidator(_text_alone)], ...] | None,
        Field(min_length=1),
        FIRST_ERROR,
    ] = None
    tags: Annotated[tuple[Text, ...], FIRST_ERROR] = ()

    @model_validator(mode="after")
    def _check(self) -> DocumentLine:
        if [getattr(self, kind) is None for kind in _KINDS].count(False) != 1:
            raise ValueError("a document has one of image, text and parts")
        if self.caption is not None and self.image is None:
            raise ValueError("a caption belongs to an image; put texts into parts")
        return self

    @property
    def content(self) -> bytes:
        """A digest of what the document is, by which one without an id is known."""
        content = (self.image, self.caption, self.text, self.parts)
        return hashlib.blake2b(repr(content).encode(), digest_size=16).digest()

    @property
    def images(self) -> tuple[str, ...]:
        """Its pictures' paths, as they are written."""
        if self.image is not None:
            return (self.image,)
        return tuple(part.image for part in self.parts or () if part.image is not None)

    def document(self, folder: Path) -> Document:
        """The document; paths are relative to `folder`."""
        if self.image is not None:
            return Document(folder / self.image, self.caption, self.id, tags=self.tags)
        if self.text is not None:
            return Document(text=self.text, id=self.id, tags=self.tags)
        parts: list[PartLike] = [
            str(part.text) if part.image is None else folder / part.image
            for part in self.parts or ()
        ]
        return Document(parts=parts, id=self.id, tags=self.tags)


class ListedDocument(DocumentLine):
    """A document in a file of documents; it may say of which split it is, else it is of each."""

    split: Text | None = None

    def is_of(self, split: str | None) -> bool:
        """Whether it is one of a split; of None, which stands for all of them, each is."""
        return split is None or self.split in (None, split)


def read_documents(file: Path, problems: Problems) -> Iterator[tuple[ListedDocument, str]]:
    """The lines of a file of documents, and where each stands; see `read_lines`.

    What is no document, has the id of an earlier one, or without an id says the same as an earlier
    one, is noted and left out. Pictures are not looked for.
    """
    seen: set[str] = set()
    said: set[bytes] = set()
    for number, fields in read_json_lines(file, problems):
        where = place(file, number)
        parse = ListedDocument.model_validate
        line = parsed(parse, fields, "broken line", where, problems, expected=_EXAMPLE)
        if line is None:
            continue
        if line.id is not None and line.id in seen:
            problems.add("duplicate id", f"{where}: {brief_quoted(line.id)}")
            continue
        if line.id is None:
            if (content := line.content) in said:
                problems.add("duplicate line", f"{where}: the same document as in an earlier line")
                continue
            said.add(content)
        seen.add(line.id or "")
        yield line, where
