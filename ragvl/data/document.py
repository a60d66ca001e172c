"""What is retrieved, reranked and answered from: a picture, perhaps with a caption."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from PIL import Image

from ragvl.data.images import ImageError, decoded, load_image, why_unusable
from ragvl.data.pictures import (
    MAX_FILE_BYTES,
    ImageSource,
    UnusablePicture,
    as_picture,
    describe,
)
from ragvl.files import check_regular
from ragvl.identity import bytes_name, file_bytes_name, pixels_name
from ragvl.messages import quoted, shown

# Of a document's name, which together hold at most 200 characters of input
_ID_SHOWN, _PATH_SHOWN = 80, 120


@dataclass(frozen=True, eq=False)
class Document:
    """A picture with an optional caption. Compared and hashed by identity.

    Attributes:
        image: anything that `as_picture` takes, as what that makes of it: a file's path, a file's
            bytes, a PIL image, or an array. It is decoded when it is needed, not before. A file may
            change; a picture in memory is taken to stay as it is once the document has been used.
        caption: its caption.
        id: its name, unique among the documents of one retriever.
        max_pixels: refuse a picture with more; see `load_image`.

    Raises:
        TypeError: a field has another type.
        ValueError: `id` is the empty string, or `max_pixels` is no whole number above 0.
    """

    image: ImageSource
    caption: str | None = None
    id: str | None = None
    max_pixels: int | None = field(default=None, kw_only=True)
    _digest: list[str] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", as_picture(self.image))
        for name, value in (("caption", self.caption), ("id", self.id)):
            if value is not None and not isinstance(value, str):
                raise TypeError(
                    f"{self.name}: {name} must be a string or None, not {type(value).__name__}"
                )
        if self.max_pixels is not None and not (
            isinstance(self.max_pixels, int) and self.max_pixels > 0
        ):
            given = shown(repr(self.max_pixels), _ID_SHOWN)
            raise ValueError(f"{self.name}: max_pixels={given}: expected a whole number above 0")
        if self.id == "":
            raise ValueError("a document's id is empty; give it a name, or None")

    @classmethod
    def of(cls, document: DocumentLike) -> Document:
        """`document` itself, or the document that a bare picture makes.

        Raises:
            TypeError: it is neither a document nor a picture.
        """
        return document if isinstance(document, Document) else cls(document)

    @property
    def name(self) -> str:
        """What to call it in a message, in one line: its id, and what its picture is."""
        picture = as_picture(self.image)
        if self.id is None:
            return f"document {describe(picture)}"
        return f"document {quoted(self.id, _ID_SHOWN)} ({describe(picture, _PATH_SHOWN)})"

    @property
    def path(self) -> str | None:
        """Where its picture is kept, or None if that is not a file."""
        return os.fspath(self.image) if isinstance(self.image, str | os.PathLike) else None

    def check_file(self) -> None:
        """Sees whether its picture is one, or the file that it is in is there, without reading it.

        Raises:
            ImageError: there is no such file, or it is none, or what was given is no picture; the
                message names the document.
        """
        if isinstance(self.image, UnusablePicture):
            raise ImageError(why_unusable(self.name, ValueError(self.image.reason)))
        if self.path is not None:
            try:
                check_regular(self.path, max_bytes=MAX_FILE_BYTES)
            except OSError as error:
                raise ImageError(why_unusable(self.name, error)) from error

    def load(self) -> Image.Image:
        """Its picture, in 8-bit RGB; thread-safe.

        Raises:
            ImageError: the picture cannot be used; the message names the document.
        """
        return load_image(self.image, max_pixels=self.max_pixels, name=self.name)

    def decoded(
        self, *, kept_pixels: Callable[[], int | None] | None = None
    ) -> AbstractContextManager[Image.Image]:
        """`load` for the time of a block; see `ragvl.data.images.decoded`.

        It is for work in threads: pictures that are large together are worked on one after another.

        Args:
            kept_pixels: how many pixels of it are kept; see `load_image`.
        """
        return decoded(
            self.image, max_pixels=self.max_pixels, name=self.name, kept_pixels=kept_pixels
        )

    def digest(self) -> str:
        """Names the picture's content: its encoded bytes, or else its size and pixels.

        Computed once; of a file, again whenever it was changed or replaced: see
        `identity.file_bytes_name`. Thread-safe.

        Raises:
            ImageError: the file cannot be read, or the picture in memory cannot be used.
        """
        if isinstance(self.image, str | os.PathLike):
            try:
                return file_bytes_name(self.image, max_bytes=MAX_FILE_BYTES)
            except OSError as error:
                raise ImageError(why_unusable(self.name, error)) from error
        if not self._digest:
            self._digest.append(self._hash_content())
        return self._digest[0]

    def _hash_content(self) -> str:
        if isinstance(self.image, bytes):
            return bytes_name(self.image)
        picture = self.load()
        return pixels_name(picture.size, picture.tobytes())


DocumentLike = Document | ImageSource
