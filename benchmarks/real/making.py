"""Makes the question sets, and the pairs to train on, of the packages' pictures."""

from __future__ import annotations

from real import stamps
from real.layout import SPLITS, Layout
from real.packages import path_of
from real.pairs import Pair, write_pairs
from real.sets import RealSet
from real.things import thing_sets


def make_sets(layout: Layout) -> list[str]:
    """Unpacks the pictures and writes all that is made of them; what it is, a line each.

    Raises:
        MissingPackagesError: a package was not fetched.
    """
    described = stamps.unpack(path_of("tuxpaint-stamps-default", layout), layout.pictures)
    made = thing_sets(described, layout.pictures)
    for one in made:
        one.write(layout)
    texts = {stamp.picture: stamp.english for stamp in described}
    pairs = [
        Pair(document.picture, texts[document.picture], stamps.COLLECTION)
        for document in made[0].documents
        if document.split == "train"
    ]
    write_pairs(pairs, layout)
    return [*map(_counts, made), f"pairs: {len(pairs)}"]


def _counts(made: RealSet) -> str:
    counts = [
        f"{split} {len(made.split(split))} questions, {len(made.pictures(split))} pictures"
        for split in SPLITS
    ]
    return f"{made.name}: {'; '.join(counts)}"
