"""What documents are ranked for: a text, a picture, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ragvl.arguments import check_characters, checked_count
from ragvl.data.document import Part
from ragvl.data.image_sources import ImageSource, describe, plain_source
from ragvl.data.picture import Picture
from ragvl.messages import quoted, shown

_TEXT_SHOWN = 60  # characters of a query in a message


@dataclass(frozen=True, eq=False)
class Query:
    """A question or other text, a picture, or a picture with a text about it.

    Attributes:
        text: the text.
        image: the picture; anything that `Document` takes.
        instruction: what is to be judged, for a template that has a place for it; None for the
            template's own. Given alone, the query is empty, for rerankers that know such.
        max_pixels: refuse a picture with more; see `load_image`.

    Raises:
        TypeError: a field has another type.
        ValueError: none of the three was given, a text is empty or holds half a character, or
            `max_pixels` is below 1.

    Examples:
        >>> Query("Which tower is this?", image="photo.jpg")
    """

    text: str | None = None
    image: ImageSource | None = None
    instruction: str | None = field(default=None, kw_only=True)
    max_pixels: int | None = field(default=None, kw_only=True)
    parts: tuple[Part, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        for name, value in (("query", self.text), ("instruction", self.instruction)):
            if value is None:
                continue
            if not isinstance(value, str):
                raise TypeError(f"a query's {name} must be a string, not {type(value).__name__}")
            if not value.strip():
                raise ValueError(f"the {name} is empty")
            check_characters(value)
        if self.text is None and self.image is None and self.instruction is None:
            raise ValueError("the query is empty: give it a text or an image")
        if self.max_pixels is not None:
            checked_count("max_pixels", self.max_pixels)
        parts: list[Part] = []
        if self.image is not None:
            picture = Picture.at("the query", self.image, self.max_pixels)
            object.__setattr__(self, "image", picture.image)
            parts.append(picture)
        if self.text is not None:
            parts.append(self.text)
        object.__setattr__(self, "parts", tuple(parts))

    @classmethod
    def of(cls, query: QueryLike) -> Query:
        """`query` itself, or the query that a text, a picture or {"text": ..., "image": ...} makes.

        A string is always a text. The two of a mapping stay in its order.

        Raises:
            TypeError: it is none of these.
            ValueError: it is empty.
        """
        if isinstance(query, Query):
            return query
        if isinstance(query, str):
            return cls(query)
        if isinstance(query, Mapping) and {"image", "text"}.intersection(query):
            if others := query.keys() - {"image", "text", "instruction"}:
                raise TypeError(f"a query has unknown keys {shown(sorted(map(str, others)))}")
            made = cls(query.get("text"), query.get("image"), instruction=query.get("instruction"))
            return made.with_text_first() if next(iter(query)) == "text" else made
        try:
            if query is None:
                raise TypeError
            return cls(image=query)
        except TypeError as error:
            raise TypeError(
                "a query must be a string, a picture, a Query or {'text': ..., 'image': ...}, not "
                f"{type(query).__name__}"
            ) from error

    def with_text_first(self) -> Query:
        """The same query with its text before its picture."""
        turned = replace(self)
        object.__setattr__(turned, "parts", tuple(sorted(self.parts, key=_is_picture)))
        return turned

    def instructed(self, instruction: str) -> Query:
        """The same query with an instruction.

        Raises:
            TypeError, ValueError: see `Query`.
        """
        made = replace(self, instruction=instruction)
        object.__setattr__(made, "parts", self.parts)
        return made

    @property
    def name(self) -> str:
        """What to call it in a message, in one line."""
        if self.text is not None:
            return f"query {quoted(self.text, _TEXT_SHOWN)}"
        if self.image is None:
            return "empty query"
        return f"query {describe(plain_source(self.image))}"

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Its picture, if it has one."""
        return tuple(part for part in self.parts if isinstance(part, Picture))


QueryLike = Query | str | ImageSource | Mapping[str, Any]


def _is_picture(part: Part) -> bool:
    return isinstance(part, Picture)
