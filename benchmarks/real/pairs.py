"""Pictures with what is said of them, to train a dual encoder on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from real.layout import Layout
from real.sets import write_lines


@dataclass(frozen=True)
class Pair:
    """A picture and a text about it.

    Args:
        picture: its path below the pictures' folder.
        text: a description, a title, a name.
        source: the collection that it is from.
    """

    picture: str
    text: str
    source: str


def write_pairs(pairs: Iterable[Pair], layout: Layout) -> None:
    """Writes them as lines of `image`, relative to the file, `text` and `source`."""
    folder = layout.pictures.relative_to(layout.root).as_posix()
    write_lines(
        layout.pairs,
        (
            {"image": f"{folder}/{pair.picture}", "text": pair.text, "source": pair.source}
            for pair in pairs
        ),
    )
