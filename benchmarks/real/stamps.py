"""Tux Paint's stamps: pictures of things, each with a description in many languages."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from real.archives import archived
from real.pictures import keep, rendered

COLLECTION = "stamps"
_INSIDE = "usr/share/tuxpaint/stamps/"
_ENDINGS = (".png", ".svg", ".txt")
_NOT_THINGS = "symbols"  # letters, digits, coins, notes
_STYLES = {"cartoon", "toys", "plastic", "planets"}  # folders that say nothing of what is seen
_SPELLED = {
    "arttools": "art tools",
    "body_parts": "body parts",
    "masstransit": "mass transit",
    "naturalforces": "natural forces",
    "newyears": "New Year",
    "roadsigns": "road signs",
}
_LANGUAGE = re.compile(r"^([a-z]{2,3})\.utf8=(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Stamp:
    """A picture of a thing.

    Args:
        picture: its path below the pictures' folder.
        kind: what sort of thing it is, from the general to the special.
        english: its description.
        translations: descriptions by ISO code of the language.
    """

    picture: str
    kind: tuple[str, ...]
    english: str
    translations: dict[str, str]


def unpack(package: Path, pictures: Path) -> list[Stamp]:
    """Writes the described pictures of things into `pictures`, and describes them.

    Drawings (SVG) are rendered, unless the same thing is there as a bitmap. Of equal pictures the
    first is taken.

    Raises:
        ArchiveError: the package cannot be read.
        ValueError: a picture is none, or cannot be rendered.
    """
    files = {path.removeprefix(_INSIDE): content for path, content in archived(package, _is_wanted)}
    stamps, seen = [], set()
    for path in sorted(files):
        place = PurePosixPath(path)
        described = files.get(str(place.with_suffix(".txt")), b"")
        description = _description(described.decode("utf-8", errors="replace"))
        if place.suffix == ".txt" or description is None:
            continue
        if place.suffix == ".svg" and str(place.with_suffix(".png")) in files:
            continue
        digest = hashlib.sha256(files[path]).digest()
        if digest in seen:
            continue
        seen.add(digest)
        picture = PurePosixPath(COLLECTION) / place.with_suffix(".png")
        content = rendered(files[path], path) if place.suffix == ".svg" else files[path]
        keep(content, pictures / picture)
        english, translations = description
        stamps.append(Stamp(str(picture), _kind(place), english, translations))
    return stamps


def _is_wanted(path: str) -> bool:
    inside = path.removeprefix(_INSIDE)
    return inside != path and inside.endswith(_ENDINGS) and not inside.startswith(f"{_NOT_THINGS}/")


def _description(text: str) -> tuple[str, dict[str, str]] | None:
    """The description in English, which is the first line, and in other languages."""
    english = text.partition("\n")[0].strip()
    if not english:
        return None
    return english, {code: words.strip() for code, words in _LANGUAGE.findall(text)}


def _kind(place: PurePosixPath) -> tuple[str, ...]:
    return tuple(_SPELLED.get(part, part) for part in place.parts[:-1] if part not in _STYLES)
