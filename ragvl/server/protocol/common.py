"""What the requests of several routes are made of: documents, queries, fields that change nothing.

A body that is no JSON, or breaks these schemas, is refused before anything is computed, with the
place of what is wrong. A document is written in whichever of the ways that other servers take; here
all of them become `items`, texts and pictures in order.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

FIRST_ERROR = Field(fail_fast=True)  # of a list: one is told, and a long list's would fill memory
_PICTURE = "data:image/"
_SOURCE = r"^\s*([Dd][Aa][Tt][Aa]:[^,]*,.|[Hh][Tt][Tt][Pp][Ss]?://.|[A-Za-z0-9+/_=\s-]+$)"
_EXAMPLE_PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEElEQVR4nGP4z8CAFWEX"
    "HbQSACj/P8Fu7N9hAAAAAElFTkSuQmCC"
)


class Body(BaseModel):
    """A JSON object of a request: its fields have the types that are written, and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Answer(BaseModel):
    """A JSON object of an answer."""

    model_config = ConfigDict(frozen=True)


def has(*names: str, **others: Any) -> dict[str, Any]:
    """JSON Schema of an object in which these fields are given, and not null.

    Args:
        names: of the fields.
        others: JSON Schemas of further fields.
    """
    given = {name: {"not": {"type": "null"}} for name in names}
    return {"required": list(names), "properties": {**given, **others}}


# How a document cannot be written: as a picture or content twice
_TWICE = [("image", "image_url"), *(("content", n) for n in ("text", "image", "image_url"))]
_TWO_WAYS: Any = {"anyOf": [has(*names) for names in _TWICE]}


def _whole(given: object) -> object:
    """JSON makes no difference between 3 and 3.0."""
    return int(given) if isinstance(given, float) and given.is_integer() else given


WHOLE = BeforeValidator(_whole)
Natural = Annotated[int, Field(ge=0), WHOLE]
Positive = Annotated[int, Field(ge=1), WHOLE]


def _said(text: str) -> str:
    if not text or text.isspace():
        raise PydanticCustomError("empty", "it is empty")
    return text


Said = Annotated[
    str, Field(min_length=1, json_schema_extra={"pattern": r"\S"}), AfterValidator(_said)
]
Source = Annotated[
    str,
    Field(
        min_length=1,
        json_schema_extra={"pattern": _SOURCE},
        description="A data: URI, bare base64, or an http(s) URL of an allowed host; never a path.",
        examples=[_EXAMPLE_PICTURE],
    ),
]


class ImageUrl(Body):
    """A picture as OpenAI's messages hold one."""

    url: Source
    detail: str | None = Field(None, description="Taken, and changes nothing.")


def _as_url(given: object) -> object:
    return {"url": given} if isinstance(given, str) else given


ImageUrlLike = Annotated[
    ImageUrl, BeforeValidator(_as_url, json_schema_input_type=Source | ImageUrl)
]
Identifier = Annotated[str, Field(min_length=1, max_length=500)]


class Part(NamedTuple):
    """A text, or a picture's source.

    Attributes:
        kind: which.
        place: where it stands in its document or query.
        content: it.
    """

    kind: Literal["text", "image"]
    place: str
    content: str


class ContentPart(Body):
    """A part of a document: a text or a picture."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                has(name, type={"enum": [name, None]}) for name in ("text", "image_url", "image")
            ]
        }
    )

    type: Literal["text", "image_url", "image"] | None = None
    text: Said | None = None
    image_url: ImageUrlLike | None = None
    image: Source | None = None
    uuid: str | None = Field(
        None, description="Taken, and not needed: a picture is known by its content."
    )

    @model_validator(mode="after")
    def _check(self) -> ContentPart:
        given = [name for name in ("text", "image_url", "image") if getattr(self, name) is not None]
        if len(given) != 1 or self.type not in (None, given[0]):
            wanted = self.type or "text, image_url and image"
            raise PydanticCustomError("part", "a part has one of {wanted}", {"wanted": wanted})
        return self

    @property
    def part(self) -> Part:
        """What it holds."""
        if self.text is not None:
            return Part("text", "text", self.text)
        return _picture(self.image, self.image_url)


def _as_parts(given: object) -> object:
    return [{"text": given}] if isinstance(given, str) else given


_Parts = Annotated[list[ContentPart], Field(min_length=1), FIRST_ERROR]
Content = Annotated[_Parts, BeforeValidator(_as_parts, json_schema_input_type=Said | _Parts)]


class _Content(Body):
    """What a document and a query have in common."""

    text: str | None = Field(None, description="A text, or the caption of the picture beside it.")
    image: Source | None = None
    image_url: ImageUrlLike | None = Field(None, description="The same as `image`.")
    content: Content | None = Field(
        None, description="Texts and pictures in order, which together are one."
    )

    @model_validator(mode="after")
    def _check(self) -> _Content:
        self._check_one_way()
        if self.content is None and not self.has_picture and self.text is not None:
            _said(self.text)
        return self

    def _check_one_way(self) -> None:
        if self.image is not None and self.image_url is not None:
            raise PydanticCustomError("both", "image and image_url are the same: give one")
        if self.content is not None and (self.text is not None or self.has_picture):
            raise PydanticCustomError("both", "content holds all: give no text or image beside it")

    @property
    def has_picture(self) -> bool:
        """Whether there is a picture outside of `content`."""
        return self.image is not None or self.image_url is not None

    @cached_property
    def parts(self) -> list[Part]:
        """Its texts and pictures in order; a caption stands behind its picture."""
        if self.content is not None:
            parts = [part.part for part in self.content]
            return [
                part._replace(place=f"content[{i}].{part.place}") for i, part in enumerate(parts)
            ]
        parts = [_picture(self.image, self.image_url)] if self.has_picture else []
        # An empty caption is how some clients say that there is none
        if self.text and not self.text.isspace():
            parts.append(Part("text", "text", self.text))
        return parts


class DocumentBody(_Content):
    """A document: a text, a picture, both, parts in order, or the id of one that is known here.

    With an id and a content it is a document of that name, which is not kept.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [has(name) for name in ("id", "text", "image", "image_url", "content")],
            "not": _TWO_WAYS,
            "examples": [
                {"text": "Velmora has a red tower."},
                {"image": _EXAMPLE_PICTURE, "text": "The red tower of Velmora"},
                {"id": "tower-1"},
            ],
        }
    )

    id: Identifier | None = None

    @model_validator(mode="after")
    def _check_content(self) -> DocumentBody:
        if self.id is None and not self.parts:
            raise PydanticCustomError(
                "empty", "a document has an id, a text, an image, an image_url or a content"
            )
        return self

    @property
    def id_alone(self) -> str | None:
        """Its id, where that is all that is said of it."""
        return None if self.parts else self.id


class QueryBody(_Content):
    """What documents are ranked for: a text, a picture, or both."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [has(name) for name in ("text", "image", "image_url", "content")],
            "not": _TWO_WAYS,
        }
    )

    @model_validator(mode="after")
    def _check_content(self) -> QueryBody:
        kinds = [kind for kind, *_ in self.parts]
        if not kinds:
            raise PydanticCustomError("empty", "it is empty: give it a text or an image")
        if len(kinds) > 2 or len(set(kinds)) < len(kinds):
            raise PydanticCustomError("parts", "a query has at most one text and one picture")
        return self


def _picture(image: str | None, image_url: ImageUrl | None) -> Part:
    if image_url is not None:
        return Part("image", "image_url", image_url.url)
    return Part("image", "image", str(image))


def _as_object(given: object) -> object:
    """A bare string is a picture where it says so, and else a text."""
    if isinstance(given, str):
        return {"image" if given.startswith(_PICTURE) else "text": given}
    if not isinstance(given, dict | BaseModel):
        raise PydanticCustomError("content", "it should be a string or an object")
    return given


DocumentLike = Annotated[
    DocumentBody,
    BeforeValidator(
        _as_object,
        json_schema_input_type=Said | DocumentBody,
    ),
]
QueryLike = Annotated[
    QueryBody,
    BeforeValidator(_as_object, json_schema_input_type=Said | QueryBody),
]


def _as_list(given: object) -> object:
    return [given] if isinstance(given, dict) else given


_Documents = Annotated[list[DocumentLike], Field(min_length=1), FIRST_ERROR]
Documents = Annotated[
    _Documents, BeforeValidator(_as_list, json_schema_input_type=_Documents | DocumentBody)
]
"""vLLM's clients may give one document without a list."""

T = TypeVar("T")
Unchanged = Annotated[T, Field(description="Taken, and changes nothing.")]
"""A field of other servers without a meaning for scores here."""


def _refuse_settings(settings: dict[str, Any]) -> dict[str, Any]:
    if settings:
        raise PydanticCustomError("settings", "a request cannot change this")
    return settings


NoSettings = Annotated[
    dict[str, Any],
    AfterValidator(_refuse_settings),
    Field(
        description="Would change scores, which a request cannot: refused unless empty.",
        json_schema_extra={"maxProperties": 0},
    ),
]
TokenLimit = Annotated[
    int,
    Field(
        ge=-1,
        description="Nothing is cut here: a prompt with more tokens in all is refused. 0 and -1 "
        "mean no limit.",
    ),
    WHOLE,
]


class ModelBody(Body):
    """Fields of every request that has the model work."""

    model: str | None = Field(None, description="This server's model; any other is a 404.")
    instruction: Said | None = Field(
        None, description="What is to be judged, for a model whose prompts have a place for it."
    )


class ScoringBody(ModelBody):
    """Fields of requests for scores, many of them other servers'."""

    max_tokens_per_query: TokenLimit | None = None
    max_tokens_per_doc: TokenLimit | None = None
    truncate_prompt_tokens: TokenLimit | None = None
    truncation_side: Unchanged[Literal["left", "right"] | None] = None
    padding: Unchanged[bool | None] = None
    use_activation: bool | None = Field(None, description="false: raw scores as scores.")
    chat_template_kwargs: NoSettings | None = None
    mm_processor_kwargs: NoSettings | None = None
    user: Unchanged[str | None] = None
    priority: Unchanged[int | None] = None
    cache_salt: Unchanged[str | None] = None
    request_id: Unchanged[str | None] = None

    @property
    def token_limit(self) -> int | None:
        """How many tokens a prompt may have by this request, as far as it says so."""
        given = (self.max_tokens_per_query, self.max_tokens_per_doc, self.truncate_prompt_tokens)
        return min((limit for limit in given if limit is not None and limit > 0), default=None)


class PromptTokensDetails(Answer):
    """Of the tokens of prompts."""

    cached_tokens: int = Field(description="Not computed now: their prefixes were kept.")


class Usage(Answer):
    """Tokens of all prompts together."""

    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Timings(Answer):
    """Milliseconds of a request's stages; what it did not pass through is left out."""

    queue: float = Field(description="Waiting for the model.")
    score: float = Field(description="From its first pass of the model to the end of its last one.")
    retrieve: float | None = None
    generate: float | None = None
    total: float = Field(description="Since the request's body was there.")


Built = Annotated[int, Field(description="Documents whose prefix was computed now.")]


class ErrorDetail(Answer):
    """What went wrong."""

    message: str
    type: str = Field(description="Names the kind of error, for programs.")
    param: str | None = Field(description="Where in the request it is; null where it has no place.")
    code: int = Field(description="The status.")


class ErrorAnswer(Answer):
    """The body of every error; clients of other servers look in different fields of it."""

    error: ErrorDetail
    detail: str = Field(description="The message.")
    error_type: str = Field(description="The kind.")
