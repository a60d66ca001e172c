"""Pictures as requests hold them, as a file's bytes, looked at before they are decoded."""

from __future__ import annotations

import re
from typing import NamedTuple

from PIL import Image

from ragvl.data.image_sources import UnusableSource, plain_source
from ragvl.data.images import ImageError, encoded_size
from ragvl.messages import quoted
from ragvl.server.errors import TooLarge, Unprocessable

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):")
_EXPECTED = "expected a data: URI, base64, or an http(s) URL"
_SHOWN = 40  # characters of what was given for a picture


class Encoded(NamedTuple):
    """A picture's file.

    Attributes:
        data: its bytes.
        pixels: how many its header says.
    """

    data: bytes
    pixels: int


def is_url(source: str) -> bool:
    """Whether a picture is to be fetched."""
    match = _SCHEME.match(source)
    return match is not None and match[1].lower() in ("http", "https")


def inline_picture(source: str, place: str, max_pixels: int) -> Encoded:
    """The picture in a data: URI or bare base64.

    Args:
        source: it; it is never a path.
        place: where it stands in the request.
        max_pixels: it may have, by its header.

    Raises:
        Unprocessable: it is something else, or no picture.
        TooLarge: it has more pixels.
    """
    match = _SCHEME.match(source)
    if match is None:
        source = f"data:;base64,{source}"
    elif match[1].lower() != "data":
        raise Unprocessable(
            f"{place}: {_EXPECTED}, not {quoted(match[1].lower() + ':', _SHOWN)}", param=place
        )
    data = plain_source(source.lstrip())
    if isinstance(data, UnusableSource):
        why = data.reason if match is not None else f"{_EXPECTED}; paths are never read"
        raise Unprocessable(f"{place}: {why}", param=place)
    assert isinstance(data, bytes)
    return checked_picture(data, place, max_pixels)


def checked_picture(data: bytes, place: str, max_pixels: int) -> Encoded:
    """A picture's bytes, after a look at its header.

    Raises:
        Unprocessable: it is no picture.
        TooLarge: it has more than `max_pixels`.
    """
    try:
        width, height = encoded_size(data, name=place)
    except ImageError as error:
        is_bomb = isinstance(error.__cause__, Image.DecompressionBombError)
        raise (TooLarge if is_bomb else Unprocessable)(str(error), param=place) from None
    if width * height > max_pixels:
        raise TooLarge(
            f"{place}: the picture is {width}x{height}, above this server's limit of "
            f"{max_pixels:,} pixels",
            param=place,
        )
    return Encoded(data, width * height)
