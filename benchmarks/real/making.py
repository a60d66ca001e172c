"""Makes the question sets, and the pairs to train on, of the packages' pictures."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from ragvl.files import write_text
from real import gcompris, screens, stamps
from real.layout import SPLITS, Layout
from real.packages import path_of
from real.pairs import Described, train_pairs, write_pairs
from real.photos import photo_set
from real.screens import screen_set
from real.sets import RealSet
from real.things import thing_sets


def make_sets(layout: Layout) -> dict[str, Any]:
    """Unpacks the pictures and writes all that is made of them; how much of what it is.

    The figures: `sets`, by name and split the numbers of `questions` and `pictures`; `pairs`, by
    collection. They are written, too, as the last file.

    Raises:
        MissingPackagesError: a package was not fetched.
    """
    packages = {
        name: path_of(name, layout)
        for name in ("tuxpaint-stamps-default", "gcompris-qt-data", "gimp-help-en")
    }
    described = stamps.unpack(packages["tuxpaint-stamps-default"], layout.pictures)
    photos, named = gcompris.unpack(packages["gcompris-qt-data"], layout.pictures)
    figures = screens.unpack(packages["gimp-help-en"], layout.pictures)

    things = thing_sets(described, layout.pictures)
    of_photos, of_screens = photo_set(photos, named), screen_set(figures)
    made = [*things, of_photos, of_screens]
    for one in made:
        one.write(layout)
    titles = {photo.picture: photo.title for photo in photos}
    names = {picture.picture: picture.name for picture in named}
    pairs = list(
        train_pairs(
            [
                Described(things[0], {stamp.picture: stamp.english for stamp in described}),
                Described(of_photos, titles | names),
                Described(of_screens, {figure.picture: figure.title for figure in figures}),
            ],
        )
    )
    write_pairs(pairs, layout)
    figures_of_all = {
        "sets": {one.name: _counts(one) for one in made},
        "pairs": dict(Counter(pair.source for pair in pairs)),
    }
    write_text(layout.figures, f"{json.dumps(figures_of_all, indent=2)}\n")
    return figures_of_all


def _counts(made: RealSet) -> dict[str, dict[str, int]]:
    return {
        split: {"questions": len(made.split(split)), "pictures": len(made.pictures(split))}
        for split in SPLITS
    }
