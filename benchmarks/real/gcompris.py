"""GCompris' pictures: photos with a paragraph each, and pictures that are named by a word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from real.archives import archived
from real.pictures import keep
from real.rcc import rcc_files

COLLECTION = "gcompris"
_INSIDE = "usr/share/gcompris-qt/rcc/"
# Activities whose boards describe photos, and what a photo there shows
_DESCRIBED = {
    "explore_monuments": "monument",
    "explore_world_animals": "animal",
    "explore_farm_animals": "animal",
    "explore_world_music": "music",
}
# Folders of pictures whose file names are words
_NAMED = {
    "categorization": ("monuments", "others", "tools"),
    "lang": ("words_sample",),
}
_ENTRY = re.compile(r"\{(.*?)\}", re.DOTALL)
_FIELD = re.compile(r'"(\w+)":\s*(?:qsTr\()?"((?:[^"\\]|\\.)*)"')
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


@dataclass(frozen=True)
class Photo:
    """A photo of something, and what is told of it.

    Args:
        picture: its path below the pictures' folder.
        subject: what it shows: "monument", "animal" or "music".
        title: the name of what it shows; of music the place that it is from.
        text: a paragraph.
    """

    picture: str
    subject: str
    title: str
    text: str


@dataclass(frozen=True)
class NamedPicture:
    """A picture and the words that its file name is made of."""

    picture: str
    name: str


def unpack(package: Path, pictures: Path) -> tuple[list[Photo], list[NamedPicture]]:
    """Writes both kinds of pictures into `pictures`, and describes them.

    Raises:
        ArchiveError: the package cannot be read.
        RccError: a resource file in it cannot be read.
        ValueError: a picture is none.
    """
    wanted = {f"{_INSIDE}{activity}.rcc": activity for activity in (*_DESCRIBED, *_NAMED)}
    photos: list[Photo] = []
    named: list[NamedPicture] = []
    for path, content in archived(package, wanted.__contains__):
        activity = wanted[path]
        files = dict(rcc_files(content))
        if activity in _DESCRIBED:
            photos += _photos(files, activity, pictures)
        else:
            named += _named(files, activity, pictures)
    return photos, named


def _photos(files: dict[str, bytes], activity: str, pictures: Path) -> Iterator[Photo]:
    for path in sorted(files):
        if PurePosixPath(path).suffix != ".qml" or "/board/" not in path:
            continue
        for fields in board_entries(files[path].decode("utf-8")):
            photo = fields["image2"].removeprefix("qrc:/")
            picture = f"{COLLECTION}/{activity}/{PurePosixPath(photo).name}"
            keep(files[photo], pictures / picture)
            yield Photo(picture, _DESCRIBED[activity], fields["title"], fields["text"])


def board_entries(qml: str) -> Iterator[dict[str, str]]:
    """The fields of a board's entries that have a photo, a title and a text."""
    for entry in _ENTRY.findall(qml):
        fields = {name: re.sub(r"\\(.)", r"\1", text) for name, text in _FIELD.findall(entry)}
        if fields.keys() >= {"image2", "title", "text"}:
            yield fields


def _named(files: dict[str, bytes], activity: str, pictures: Path) -> Iterator[NamedPicture]:
    for path in sorted(files):
        place = PurePosixPath(path)
        name = " ".join(_WORDS.findall(place.stem)).lower()
        # monument1 and its like are named by what their folder says of all
        if place.suffix != ".webp" or place.parent.name not in _NAMED[activity] or not name:
            continue
        if place.parent.name == f"{name}s":
            continue
        picture = f"{COLLECTION}/{activity}/{place.parent.name}/{place.name}"
        keep(files[path], pictures / picture)
        yield NamedPicture(picture, name)
