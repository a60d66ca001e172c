"""`/v1/documents`: documents that the server knows by their ids."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from ragvl.server.documents import Source, check_id
from ragvl.server.protocol.common import (
    FIRST_ERROR,
    Answer,
    Body,
    Built,
    DocumentBody,
    Identifier,
    Usage,
)

Warmed = Literal["built", "known", "none"]

_EXAMPLE: dict[str, JsonValue] = {"text": "Velmora has a red tower."}


class NewDocument(DocumentBody):
    """A document to keep: a text, a picture, both, or parts in order."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: Identifier | None = Field(None, description="That of the path, or nothing.")

    @model_validator(mode="after")
    def _check_kept(self) -> NewDocument:
        if not self.parts:
            raise PydanticCustomError(
                "empty", "a document to keep has a text, an image, an image_url or a content"
            )
        return self


class NamedDocument(NewDocument):
    """A document to keep, with its id."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": "tower-1", **_EXAMPLE}]})

    id: Annotated[Identifier, AfterValidator(check_id)] = Field(
        description="What queries call it by; it takes the place of another of that id."
    )


class PutDocumentsBody(Body):
    """Documents to keep: all of them, or on an error none."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"documents": [{"id": "tower-1", **_EXAMPLE}]}]}
    )

    model: str | None = Field(None, description="This server's model; any other is a 404.")
    documents: Annotated[list[NamedDocument], Field(min_length=1), FIRST_ERROR]


class PutDocument(Answer):
    """A document that is kept, and warm."""

    id: str
    prefix: Warmed = Field(
        description='"built": what is kept of it for queries was computed now. "known": it was '
        'there. "none": of this model nothing is kept.'
    )


class PutDocumentsAnswer(Answer):
    """Documents that are kept, in the request's order."""

    object: Literal["list"] = "list"
    model: str
    data: list[PutDocument]
    built: Built
    usage: Usage


class KnownPart(Answer):
    """A part of a document; pictures never come back."""

    type: Literal["text", "image"]
    text: str | None = None


class KnownDocumentAnswer(Answer):
    """A document that the server knows."""

    object: Literal["document"] = "document"
    id: str
    source: Source = Field(
        description='"stored": it was put here. "index": the index holds it, and it stays.'
    )
    text: str | None = Field(None, description="Its text or caption; of parts, all texts.")
    num_pictures: int
    bytes: int | None = Field(None, description="Of its texts and pictures, where it was put.")
    created: float | None = Field(None, description="When it was first put, in seconds since 1970.")


class OneDocumentAnswer(KnownDocumentAnswer):
    """All that is known of a document."""

    model: str
    parts: list[KnownPart] = Field(description="In the order in which a prompt holds them.")
    warm: bool = Field(description="Whether a query about it costs its own tokens only.")
    usage: Usage


class DocumentsAnswer(Answer):
    """A page of the list of documents, by id."""

    object: Literal["list"] = "list"
    model: str
    data: list[KnownDocumentAnswer] = Field(description="Their texts are cut to a few words.")
    has_more: bool = Field(description="Whether there are more after the last one.")
    usage: Usage


class DeletedDocumentAnswer(Answer):
    """A document that is no longer known."""

    object: Literal["document.deleted"] = "document.deleted"
    id: str
    deleted: Literal[True] = True
    model: str
    usage: Usage
