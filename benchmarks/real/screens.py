"""The set `screens`: figures of GIMP's manual, found by their titles.

A document is a picture whose caption is the heading of the page around it; a question is the title
of a figure, which the picture alone shows. A page's figures are in one split.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

from PIL import Image

from real.archives import archived
from real.pictures import keep
from real.sets import RealSet, SetDocument, SetQuestion, split_of

COLLECTION = "gimp"
_INSIDE = "usr/share/gimp/2.0/help/en/"
_LEAST_PIXELS = 48  # of the shorter side; less is an icon
_SHARES = (0.7, 0.1, 0.2)
_FIGURE_NUMBER = re.compile(r"^(?:Figure|Table)\s+[\w.]+\.\s+")
_HEADING_NUMBER = re.compile(
    r"^(?:Chapter|Appendix|Part)?\s*[\w.]*\d[\w.]*\.\s+|^Appendix\s+\w\.\s+"
)


@dataclass(frozen=True)
class Figure:
    """A picture of the manual.

    Args:
        picture: its path below the pictures' folder.
        page: the file that shows it.
        heading: of the page.
        title: what it shows.
    """

    picture: str
    page: str
    heading: str
    title: str


def unpack(package: Path, pictures: Path) -> list[Figure]:
    """Writes the figures' pictures into `pictures`, and describes each.

    What has no description of its own is left out: pictures of several figures or pages, such as
    the untouched photo that filters are shown on, and copies of such; icons, too.

    Raises:
        ArchiveError: the package cannot be read.
        ValueError: a picture is none.
    """
    files = {path.removeprefix(_INSIDE): content for path, content in archived(package, _is_wanted)}
    found = [
        figure
        for page in sorted(path for path in files if path.endswith(".html"))
        for figure in figures_of(page, files[page].decode("utf-8"))
        if figure.picture in files
    ]
    shown = Counter(hashlib.sha256(files[figure.picture]).digest() for figure in found)
    figures = []
    for figure in found:
        content = files[figure.picture]
        if shown[hashlib.sha256(content).digest()] > 1 or _is_icon(content):
            continue
        picture = f"{COLLECTION}/{figure.picture.removeprefix('images/')}"
        keep(content, pictures / picture)
        figures.append(replace(figure, picture=picture))
    return figures


def _is_wanted(path: str) -> bool:
    inside = PurePosixPath(path.removeprefix(_INSIDE))
    if not path.startswith(_INSIDE):
        return False
    return inside.suffix == ".html" or inside.parts[0] == "images"


def _is_icon(content: bytes) -> bool:
    with Image.open(io.BytesIO(content)) as image:
        return min(image.size) < _LEAST_PIXELS


def figures_of(page: str, html: str) -> Iterator[Figure]:
    """The figures of a page; `picture` is the path that the page says.

    Of a figure of several pictures, each is titled by the figure's title and its own.
    """
    reader = _Reader()
    reader.feed(html)
    heading = _HEADING_NUMBER.sub("", _spaced(reader.heading))
    for shown in reader.figures:
        title = _FIGURE_NUMBER.sub("", _spaced(shown.title))
        for media in shown.media:
            own = _spaced(media.caption) if len(shown.media) > 1 else ""
            whole = f"{title}: {own}" if title and own else title or own
            if media.picture and whole:
                yield Figure(media.picture, page, heading, whole)


def _spaced(text: str) -> str:
    return " ".join(text.split())


@dataclass
class _Media:
    picture: str = ""
    caption: str = ""


@dataclass
class _Shown:
    title: str = ""
    media: list[_Media] = field(default_factory=list)


class _Reader(HTMLParser):
    """Collects a page's heading, and its figures: div.figure > p.title, div.mediaobject > img."""

    def __init__(self) -> None:
        super().__init__()
        self.heading = ""
        self.figures: list[_Shown] = []
        self._divs: list[str] = []  # classes of the open ones
        self._in_title = self._in_heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "div":
            self._divs.append(given.get("class", ""))
            if self._divs[-1] == "figure":
                self.figures.append(_Shown())
            elif self._divs[-1] == "mediaobject" and "figure" in self._divs:
                self.figures[-1].media.append(_Media())
        elif tag == "title":
            self._in_heading = True
        elif tag == "p" and given.get("class") == "title":
            self._in_title = True
        elif tag == "img" and (media := self._media()):
            media.picture = media.picture or given.get("src", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self._divs:
            self._divs.pop()
        elif tag == "title":
            self._in_heading = False
        elif tag == "p":
            self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.heading += data
        elif "figure" in self._divs and self._in_title:
            self.figures[-1].title += data
        elif media := self._media():
            media.caption += data

    def _media(self) -> _Media | None:
        """The picture that is being read."""
        if "figure" not in self._divs or "mediaobject" not in self._divs:
            return None
        return self.figures[-1].media[-1]


def screen_set(figures: Sequence[Figure]) -> RealSet:
    """The set; a title that several figures have asks for none of them."""
    split = split_of((figure.page for figure in figures), salt="screens", shares=_SHARES)
    titles = Counter(figure.title.lower() for figure in figures)
    return RealSet(
        "screens",
        [
            SetDocument(figure.picture, split[figure.page], figure.heading or None)
            for figure in figures
        ],
        [
            SetQuestion(figure.picture, figure.title, (figure.picture,), category="figure")
            for figure in figures
            if titles[figure.title.lower()] == 1
        ],
    )
