"""Writes pictures where they are not yet."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image


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
