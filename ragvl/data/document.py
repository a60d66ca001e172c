"""What is retrieved, reranked and answered from: a picture, a text, or several of both in order."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ragvl.arguments import check_characters
from ragvl.data.image_sources import ImageSource, PlainSource, describe, plain_source
from ragvl.data.picture import Picture
from ragvl.identity import name_of
from ragvl.messages import MAX_SHOWN, quoted, shown

# Of a document's name, which together hold at most 200 characters of input
_ID_SHOWN, _PATH_SHOWN = 80, 120

Part = Picture | str
PartLike = Part | ImageSource | Mapping[str, Any]


@dataclass(frozen=True, eq=False, init=False)
class Document:
    """A picture with an optional caption, a text, or parts. Compared and hashed by identity.

    Give one of `image`, `text` and `parts`.

    Attributes:
        image: anything that `plain_source` takes, as what that makes of it: a file's path, a file's
            bytes, a PIL image, or an array. It is decoded when it is needed, not before. A file may
            change; a picture in memory is taken to stay as it is once the document has been used.
        caption: the caption of `image`.
        id: its name, unique among the documents of one retriever.
        text: a text without a picture.
        parts: pictures and texts, in order. Given are texts (a `str` is always a text), pictures
            (what `image` takes, a path as a `Path`), and `{"text": ...}` or `{"image": ...}`; kept
            are texts and `Picture`s, also of a document made of `image` or `text`. An empty list
            makes a document that says nothing, for rerankers that know such.
        max_pixels: refuse a picture with more; see `load_image`.
        tags: words to search some documents only by; no model sees them.

    Raises:
        TypeError: a field has another type.
        ValueError: not one of the three was given, a text or a tag is empty or holds half a
            character, `id` is the empty string, or `max_pixels` is no whole number above 0.

    Examples:
        >>> Document("tower.jpg", caption="The red tower of Velmora")
        >>> Document(text="Velmora has a red tower.")
        >>> Document(parts=[Path("page-1.png"), "The tower, from the south.", Path("page-2.png")])
    """

    image: PlainSource | None
    caption: str | None
    id: str | None
    text: str | None
    parts: tuple[Part, ...]
    max_pixels: int | None
    tags: tuple[str, ...]

    def __init__(
        self,
        image: ImageSource | None = None,
        caption: str | None = None,
        id: str | None = None,
        *,
        text: str | None = None,
        parts: Sequence[PartLike] | None = None,
        max_pixels: int | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        if parts is not None and (
            isinstance(parts, str | bytes) or not isinstance(parts, Sequence)
        ):
            raise TypeError(f"a document's parts must be a list, not {type(parts).__name__}")
        if [image is None, text is None, parts is None].count(False) != 1:
            raise ValueError("a document must have one of image, text and parts")
        for name, value in {
            "image": None if image is None else plain_source(image),
            "caption": caption,
            "id": id,
            "text": text,
            "parts": parts or (),
            "max_pixels": max_pixels,
            "tags": checked_tags(tags),
        }.items():
            object.__setattr__(self, name, value)
        self._check_fields()
        object.__setattr__(self, "parts", tuple(self._made_parts(parts or ())))

    def _check_fields(self) -> None:
        if self.id == "":
            raise ValueError("a document's id is empty; give it a name, or None")
        for name, value in (("caption", self.caption), ("id", self.id), ("text", self.text)):
            if value is not None and not isinstance(value, str):
                raise TypeError(
                    f"{self.name}: {name} must be a string or None, not {type(value).__name__}"
                )
        if self.max_pixels is not None and not (
            isinstance(self.max_pixels, int) and self.max_pixels > 0
        ):
            given = shown(repr(self.max_pixels), _ID_SHOWN)
            raise ValueError(f"{self.name}: max_pixels={given}: expected a whole number above 0")
        if self.caption is not None and self.image is None:
            raise ValueError(f"{self.name}: a caption belongs to an image; put texts into parts")

    def _made_parts(self, parts: Sequence[PartLike]) -> list[Part]:
        if self.text is not None:
            return [self._made_text(self.text, self.name)]
        if self.image is not None:
            picture = Picture(self.image, self.name, self.max_pixels)
            return [picture] if self.caption is None else [picture, self.caption]
        return [self._made_part(part, f"{self.name}, parts[{i}]") for i, part in enumerate(parts)]

    def _made_part(self, part: Any, where: str) -> Part:
        kinds = {"text": self._made_text, "image": self._made_picture}
        if isinstance(part, Mapping) and len(part) == 1 and kinds.keys() & part.keys():
            ((kind, content),) = part.items()
            return kinds[kind](content, where)
        if isinstance(part, str):
            return self._made_text(part, where)
        return self._made_picture(part, where)

    def _made_picture(self, source: Any, where: str) -> Part:
        if isinstance(source, Picture):
            return source
        return Picture.at(where, source, self.max_pixels)

    def _made_text(self, text: Any, where: str) -> Part:
        if not isinstance(text, str):
            raise TypeError(f"{where}: a text must be a string, not {type(text).__name__}")
        if not text.strip():
            raise ValueError(f"{where}: the text is empty")
        try:
            check_characters(text)
        except ValueError as error:
            raise ValueError(f"{where} holds {error}") from None
        return text

    @classmethod
    def of(cls, document: DocumentLike) -> Document:
        """`document` itself, or the document that a bare picture makes.

        Raises:
            TypeError: it is neither a document nor a picture.
        """
        if isinstance(document, Document):
            return document
        return cls(plain_source(document))

    def with_caption_first(self) -> Document:
        """The same document with its caption before its picture, where parts stand in order."""
        turned = copy.copy(self)
        if self.caption is not None:
            object.__setattr__(turned, "parts", self.parts[::-1])
        return turned

    @property
    def name(self) -> str:
        """What to call it in a message, in one line: its id, and what it holds."""
        if self.id is None or self._is_named_by_path():
            return f"document {self._described(MAX_SHOWN)}"
        return f"document {quoted(self.id, _ID_SHOWN)} ({self._described(_PATH_SHOWN)})"

    def _is_named_by_path(self) -> bool:
        """Whether the end of its picture's path is its id, so that to say both says one twice."""
        if not isinstance(self.image, str | os.PathLike):
            return False
        return f"/{os.fspath(self.image)}".endswith(f"/{self.id}")

    def _described(self, limit: int) -> str:
        if self.image is not None:
            return describe(self.image, limit)
        if isinstance(self.text, str):
            return f"of the text {quoted(self.text, _ID_SHOWN)}"
        return f"of {len(self.parts)} parts" if self.parts else "that is empty"

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Its pictures, in order."""
        return tuple(part for part in self.parts if isinstance(part, Picture))

    @property
    def picture(self) -> Picture | None:
        """Its first picture; None if it is all text."""
        return next(iter(self.pictures), None)

    @property
    def path(self) -> str | None:
        """Where its first picture is kept, or None if that is not a file."""
        return None if self.picture is None else self.picture.path

    def check_files(self) -> None:
        """Sees whether its pictures are some, or the files that they are in are there.

        Raises:
            ImageError: there is no such file, or it is none, or what was given is no picture; the
                message names the document.
        """
        for picture in self.pictures:
            picture.check_file()

    def load(self) -> Image.Image:
        """Its first picture, in 8-bit RGB; thread-safe.

        Raises:
            ImageError: the picture cannot be used; the message names the document.
            ValueError: it is all text.
        """
        if self.picture is None:
            raise ValueError(f"{self.name} has no picture")
        return self.picture.load()

    def digest(self) -> str:
        """Names the content of its one picture, or of all its parts.

        Raises:
            ImageError: a file cannot be read, or a picture in memory cannot be used.
        """
        if self.image is not None:
            return self.pictures[0].digest()
        parts = [p if isinstance(p, str) else (p.digest(),) for p in self.parts]
        return name_of("parts", parts)


def checked_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Tags, each once.

    Raises:
        TypeError: `tags` is a single string, or one of them is none.
        ValueError: one is empty, or holds half a character.
    """
    if isinstance(tags, str) or not isinstance(tags, Sequence):
        raise TypeError("tags must be a sequence of strings, not one; write [tag]")
    for tag in tags:
        if not isinstance(tag, str):
            raise TypeError(f"a tag must be a string, not {type(tag).__name__}")
        if not tag.strip():
            raise ValueError("a tag is empty")
        check_characters(tag)
    return tuple(dict.fromkeys(tags))


DocumentLike = Document | ImageSource
