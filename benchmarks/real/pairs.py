"""Pictures with what is said of them, to train a dual encoder on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from real.layout import Layout
from real.sets import RealSet, write_lines
from real.words import same_thing


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


@dataclass(frozen=True)
class Described:
    """A set whose pictures have a text each, the same or more than what its captions tell."""

    made: RealSet
    texts: Mapping[str, str]


def train_pairs(described: Sequence[Described]) -> Iterator[Pair]:
    """The pairs of all sets' train splits, but for texts that a val or test picture of any has."""
    held_out = {
        same_thing(one.texts[document.picture])
        for one in described
        for document in one.made.documents
        if document.split != "train"
    }
    for one in described:
        for picture in one.made.pictures("train"):
            text = one.texts[picture]
            if same_thing(text) not in held_out:
                yield Pair(picture, text, picture.partition("/")[0])


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
