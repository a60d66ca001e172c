"""What is retrieved, reranked and answered from: a picture, perhaps with a caption."""

from __future__ import annotations

import os
from dataclasses import dataclass

from PIL import Image

from ragvl.data.images import ImageSource, describe, load_image


@dataclass(frozen=True, eq=False)
class Document:
    """A picture with an optional caption. Compared and hashed by identity.

    Attributes:
        image: a file's path, a file's bytes, a PIL image, or an array (see `load_image`). It is
            read when it is needed, not before.
        caption: its caption.
        id: its name, unique among the documents of one retriever.

    Raises:
        TypeError: a field has another type.
        ValueError: `id` is the empty string.
    """

    image: ImageSource
    caption: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        describe(self.image)  # refuses what cannot be a picture
        for field, value in (("caption", self.caption), ("id", self.id)):
            if value is not None and not isinstance(value, str):
                raise TypeError(
                    f"{self.name}: {field} must be a string or None, not {type(value).__name__}"
                )
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
        """What to call it in a message: its id, and what its picture is."""
        picture = describe(self.image)
        return f"document {picture}" if self.id is None else f"document {self.id!r} ({picture})"

    @property
    def path(self) -> str | None:
        """Where its picture is kept, or None if that is not a file."""
        return os.fspath(self.image) if isinstance(self.image, str | os.PathLike) else None

    def load(self) -> Image.Image:
        """Its picture, in 8-bit RGB; thread-safe.

        Raises:
            ImageError: the picture cannot be used; the message names the document.
        """
        return load_image(self.image, name=self.name)


DocumentLike = Document | ImageSource
