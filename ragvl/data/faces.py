"""Documents as a page shows them: small pictures, and a few words."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

from ragvl.data.document import Document
from ragvl.data.images import ImageError
from ragvl.data.picture import Picture
from ragvl.messages import shown

_PICTURE_SIDE = 160  # pixels; a page of full-size pictures would be hundreds of megabytes
_WORDS_SHOWN = 300  # characters of a document's texts


@dataclass(frozen=True)
class Face:
    """A document as a page shows it.

    Attributes:
        pictures: as data: URLs; an empty one cannot be read.
        words: its caption, or its texts.
    """

    pictures: list[str]
    words: str

    @classmethod
    def of(cls, document: Document) -> Face:
        """The face of a document."""
        texts = " ".join(part for part in document.parts if isinstance(part, str))
        words = shown(" ".join(texts.split()), _WORDS_SHOWN)
        return cls([picture_url(picture) for picture in document.pictures], words)


def picture_url(picture: Picture) -> str:
    """A small picture as a data: URL; empty where it cannot be read."""
    try:
        image = thumbnail(picture, _PICTURE_SIDE)
    except ImageError:
        return ""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def thumbnail(picture: Picture, side: int) -> Image.Image:
    """The picture of at most `side` pixels a side, without what its file says of it.

    Raises:
        ImageError: it cannot be read.
    """
    with picture.decoded(kept_pixels=lambda: side * side) as image:
        if max(image.size) > side:
            image.thumbnail((side, side))
        image.info.clear()  # a writer would copy the comment, or fail where it is too long
        return image
