"""Open Clip Art: drawings with a title, from two packages of Debian, as more pairs to train on.

One package holds the pictures, the other their sources, which alone say what they show.
"""

from __future__ import annotations

import html
import io
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from PIL import Image

from ragvl.files import whole_file
from real.archives import archived
from real.pictures import Drawing

logger = logging.getLogger(__name__)

COLLECTION = "openclipart"
PACKAGES = ("openclipart-png", "openclipart-svg")
_PICTURES, _SOURCES = "usr/share/openclipart/png/", "usr/share/openclipart/svg/"
# Folders of things; the others hold icons, plain shapes, logos, ornaments. What is a link shows
# what another file shows already
KINDS = (
    *("animals", "buildings", "computer/hardware", "containers", "decorations", "education"),
    *("electronics", "food", "geography", "office", "people", "plants", "recreation", "science"),
    *("signs_and_symbols/clocks", "signs_and_symbols/flags", "signs_and_symbols/money"),
    *("signs_and_symbols/weather", "tools", "transportation", "unsorted"),
)
_LONGEST = 256  # pixels of a side: some are posters
_MOST_PIXELS = 4_000_000  # of a drawing that is read at all
_KEYWORDS = re.compile(r"<dc:subject>(.*?)</dc:subject>", re.DOTALL)
_KEYWORD = re.compile(r"<rdf:li>([^<]+)</rdf:li>")
_TITLE = re.compile(r"<dc:title>([^<]*)</dc:title>")
_NAME_PARTS = re.compile(r"[\d_\W]+")
_LONGEST_TITLE = 60  # characters; longer ones tell stories


def unpack(drawings: Path, sources: Path, pictures: Path) -> list[Drawing]:
    """Writes drawings of things into `pictures`, made small, and says what they show.

    Those without a title, and those that cannot be read or are too large, are left out.

    Args:
        drawings: the package openclipart-png.
        sources: the package openclipart-svg.
        pictures: the folder of all collections.

    Raises:
        ArchiveError: a package cannot be read.
    """
    said = _said(sources)
    clips, left_out = [], 0
    for path, content in archived(drawings, lambda name: _inside(name, _PICTURES) in said):
        place = PurePosixPath(path.removeprefix(_PICTURES))
        target = PurePosixPath(COLLECTION) / place
        if _write_small(content, pictures / target):
            clips.append(Drawing(str(target), place.parts[:-1], *said[str(place.with_suffix(""))]))
        else:
            left_out += 1
    logger.info("openclipart: %d drawings, %d left out", len(clips), left_out)
    return sorted(clips, key=lambda clip: clip.picture)


def _inside(path: str, folder: str) -> str | None:
    """Where a file of a kind that is wanted lies in `folder`, without its ending."""
    inside = path.removeprefix(folder)
    if inside == path or not inside.startswith(tuple(f"{kind}/" for kind in KINDS)):
        return None
    return str(PurePosixPath(inside).with_suffix(""))


def _said(sources: Path) -> Mapping[str, tuple[str, tuple[str, ...]]]:
    """Title and keywords, by the place of a drawing."""
    said = {}
    for path, content in archived(sources, lambda name: _inside(name, _SOURCES) is not None):
        text = content.decode("utf-8", errors="replace")
        found = _TITLE.search(text)
        title = title_of(found[1]) if found else None
        if title is not None:
            place = _inside(path, _SOURCES)
            assert place is not None  # as of all that are wanted
            said[place] = title, keywords_of(text)
    return said


def keywords_of(source: str) -> tuple[str, ...]:
    """Of a drawing's SVG, each once, without those of less than three letters."""
    subject = _KEYWORDS.search(source)
    found = _KEYWORD.findall(subject[1]) if subject else []
    words = (_NAME_PARTS.sub(" ", html.unescape(word)).strip().lower() for word in found)
    return tuple(dict.fromkeys(word for word in words if len(word) > 2))


def title_of(written: str) -> str | None:
    """A title in words, or None where it has none: "Apple_red 02" is "Apple red"."""
    words = _NAME_PARTS.sub(" ", html.unescape(written)).strip()
    return words if 2 < len(words) <= _LONGEST_TITLE else None


def _write_small(content: bytes, path: Path) -> bool:
    """Whether the picture is there now."""
    if path.exists():
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > _MOST_PIXELS:
                    return False
                small = image.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False  # SyntaxError is Pillow's, of a broken PNG
    small.thumbnail((_LONGEST, _LONGEST))
    with whole_file(path) as draft:  # half a picture would be taken for one that is there
        small.save(draft, "PNG")
    return True
