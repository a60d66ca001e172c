"""Renders drawings, and writes pictures where they are not yet."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import resvg_py
from PIL import Image

_RENDERED = 256  # pixels wide, of what is drawn by lines


@dataclass(frozen=True)
class Drawing:
    """A drawing.

    Args:
        picture: its path below the pictures' folder.
        kind: what sort of thing it is, from the general to the special.
        title: what it shows.
        keywords: what else is said of it.
    """

    picture: str
    kind: tuple[str, ...]
    title: str
    keywords: tuple[str, ...]


def keep(content: bytes, path: Path) -> None:
    """Writes an encoded picture; one that is there already is left alone.

    Raises:
        ValueError: it is no picture.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.verify()
    except (OSError, ValueError, SyntaxError) as error:  # the last is Pillow's, of a broken PNG
        raise ValueError(f"{path} is no picture that can be read: {error}") from error
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def rendered(drawing: bytes, path: str, width: int = _RENDERED) -> bytes:
    """An SVG as PNG, `width` pixels wide.

    Raises:
        ValueError: it cannot be rendered; the message names `path`.
    """
    try:
        return bytes(
            resvg_py.svg_to_bytes(
                svg_string=drawing.decode("utf-8"),
                width=width,
                dpi=96,  # where its size is in points or centimetres
                skip_system_fonts=True,  # which differ from machine to machine
            )
        )
    except ValueError as error:
        raise ValueError(f"{path} cannot be rendered: {error}") from error
