"""Makes the question sets, and the pairs to train on, of the packages' pictures."""

from __future__ import annotations

from real import gcompris, screens, stamps
from real.layout import SPLITS, Layout
from real.packages import path_of
from real.pairs import Described, train_pairs, write_pairs
from real.photos import photo_set
from real.screens import screen_set
from real.sets import RealSet
from real.things import thing_sets


def make_sets(layout: Layout) -> list[str]:
    """Unpacks the pictures and writes all that is made of them; what it is, a line each.

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
    pairs = train_pairs(
        [
            Described(things[0], {stamp.picture: stamp.english for stamp in described}),
            Described(of_photos, titles | names),
            Described(of_screens, {figure.picture: figure.title for figure in figures}),
        ]
    )
    return [*map(_counts, made), f"pairs: {write_pairs(pairs, layout)}"]


def _counts(made: RealSet) -> str:
    counts = [
        f"{split} {len(made.split(split))} questions, {len(made.pictures(split))} pictures"
        for split in SPLITS
    ]
    return f"{made.name}: {'; '.join(counts)}"
