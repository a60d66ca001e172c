"""Emoji: several drawings each of some 2,000 things, with names and keywords, to train on.

Their names are OpenMoji's; the other packages name their files by the same code points.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from real.archives import archived
from real.pictures import Drawing, keep, rendered

logger = logging.getLogger(__name__)

COLLECTION = "emoji"
NAMES = "openmoji"  # the package that names them
# Where each package has its drawings
DRAWINGS = {
    "openmoji": "package/color/svg/",
    "@twemoji/svg": "package/",
    "@lobehub/fluent-emoji-3d": "package/assets/",
}
_NAMED_IN = "package/data/openmoji.json"
# Logos, letters, parts of programs, and the symbols of map makers
_NOT_THINGS = {
    *("alphanum", "arrow", "av-symbol", "brand", "currency", "geometric", "interaction", "keycap"),
    *("hair-style", "math", "other-symbol", "punctuation", "regional-indicator", "skin-tone"),
    *("symbol-other", "ui-element"),
}
_WIDTH = 192  # pixels


def unpack(packages: Mapping[str, Path], pictures: Path) -> list[Drawing]:
    """Writes the drawings of things into `pictures`, and says what they show.

    Of what is drawn in several colors of skin and hair, one is taken.

    Args:
        packages: the files of `DRAWINGS`' packages.
        pictures: the folder of all collections.

    Raises:
        ArchiveError: a package cannot be read.
        ValueError: a drawing cannot be rendered.
    """
    named = _named(packages[NAMES])
    emoji = [
        Drawing(_keep(path, content, package, pictures), *_said(entry))
        for package, folder in DRAWINGS.items()
        for entry, path, content in _drawings(packages[package], folder, named)
    ]
    logger.info("emoji: %d drawings of %d things", len(emoji), len(named))
    return sorted(emoji, key=lambda one: one.picture)


def _drawings(
    package: Path, folder: str, named: Mapping[str | None, dict[str, str]]
) -> Iterator[tuple[dict[str, str], str, bytes]]:
    """Entry, path and content of those in `folder` that have a name."""
    for path, content in archived(package, lambda path: _code(path, folder) in named):
        yield named[_code(path, folder)], path, content


def _keep(path: str, content: bytes, package: str, pictures: Path) -> str:
    """Writes a drawing as a picture; its path below `pictures`."""
    place = PurePosixPath(path)
    target = PurePosixPath(COLLECTION, package.strip("@").replace("/", "-"), place.name)
    if place.suffix == ".svg":
        target = target.with_suffix(".png")
    if not (pictures / target).exists():
        keep(
            rendered(content, path, _WIDTH) if place.suffix == ".svg" else content,
            pictures / target,
        )
    return str(target)


def _named(package: Path) -> dict[str | None, dict[str, str]]:
    """OpenMoji's entries of things, by code points."""
    ((_, content),) = archived(package, lambda path: path == _NAMED_IN)
    return {
        _points(entry["hexcode"]): entry
        for entry in json.loads(content)
        if not entry["skintone"] and entry["subgroups"] not in _NOT_THINGS
    }


def _code(path: str, folder: str) -> str | None:
    """The code points that a file in `folder` is named by."""
    place = PurePosixPath(path)
    return _points(place.stem) if f"{place.parent}/" == folder else None


def _points(written: str) -> str:
    """The same for all spellings: FE0F asks for colors, and some leave it out."""
    return "-".join(point for point in written.upper().split("-") if point != "FE0F")


def _said(entry: Mapping[str, str]) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Kind, title and keywords; "flag: Chad" is "Chad flag", as it is said."""
    kind = tuple(entry[level].replace("-", " ") for level in ("group", "subgroups"))
    first, _, rest = entry["annotation"].partition(": ")
    words = (word.strip() for word in f"{entry['tags']},{entry['openmoji_tags']}".split(","))
    return kind, f"{rest} {first}".strip(), tuple(dict.fromkeys(w for w in words if len(w) > 2))
