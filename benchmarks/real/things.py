"""The sets `named`, `blind` and `german`: what color has the thing that a description names?

All three ask for the same things in the same pictures. In `named` the caption tells the thing,
without its color; in `blind` only its kind, so that the picture must be seen; in `german` the
question is in another language than the caption. A description and all its pictures are in one
split.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from real.colors import IN_GERMAN, in_common, main_colors
from real.sets import RealSet, SetDocument, SetQuestion, split_of
from real.stamps import Stamp
from real.words import Thing, colors_in, thing_of, without_colors

logger = logging.getLogger(__name__)

_LEAST = 0.25  # the share of a picture that a color needs to be an answer
_STEMS = "|".join(IN_GERMAN.values())
_GERMAN_COLOR = re.compile(
    rf"\b(?:{_STEMS})(?:-(?:{_STEMS}))*(?:e[nrsm]?)?(?: und (?:{_STEMS})e[nrsm]?)? (?=\w)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?:;,(—–]")


@dataclass(frozen=True)
class _Asked:
    """A thing that is asked for, its pictures, and what color they have in common."""

    thing: Thing
    stamps: tuple[Stamp, ...]
    colors: tuple[str, ...]


def thing_sets(stamps: Sequence[Stamp], pictures: Path) -> list[RealSet]:
    """The three sets.

    A thing is not asked for where its name fits another's pictures too ("the flower", where there
    is an anemone flower), or where its pictures have no color in common.
    """
    things = {stamp.picture: thing_of(stamp.english) for stamp in stamps}
    keys = {
        picture: stamp.english.lower() if (thing := things[picture]) is None else thing.key
        for picture, stamp in ((stamp.picture, stamp) for stamp in stamps)
    }
    split = split_of(keys.values(), salt="things")
    asked = _asked(stamps, things, split, pictures)

    def documents(caption: Callable[[Stamp], str]) -> list[SetDocument]:
        return [
            SetDocument(stamp.picture, split[keys[stamp.picture]], caption(stamp))
            for stamp in stamps
        ]

    def told(stamp: Stamp) -> str:
        thing = things[stamp.picture]
        return without_colors(stamp.english) if thing is None else thing.caption

    english = [
        _question(one, f"What is the main color of {one.thing.named}?", one.colors) for one in asked
    ]
    german = [
        _question(one, f"{name}: Welche Farbe überwiegt?", _in_both(one.colors))
        for one in asked
        if (name := _german_name(one.stamps)) is not None
    ]
    named = documents(told)
    return [
        RealSet("named", named, english),
        RealSet("blind", documents(lambda stamp: _kind(stamp, keys[stamp.picture])), english),
        RealSet("german", named, german),
    ]


def _asked(
    stamps: Sequence[Stamp],
    things: dict[str, Thing | None],
    split: dict[str, str],
    pictures: Path,
) -> list[_Asked]:
    by_key: dict[str, list[Stamp]] = defaultdict(list)
    for stamp in stamps:
        if (thing := things[stamp.picture]) is not None:
            by_key[thing.key].append(stamp)
    asked, ambiguous, many_colors = [], 0, 0
    for key, ones in by_key.items():
        if any(other.endswith(f" {key}") and split[other] == split[key] for other in by_key):
            ambiguous += 1
            continue
        colors = in_common([_colors(stamp, pictures) for stamp in ones])
        if not colors:
            many_colors += 1
            continue
        thing = things[ones[0].picture]
        assert thing is not None  # as of all that are in by_key
        asked.append(_Asked(thing, tuple(ones), colors))
    logger.info(
        "things: %d are asked for; %d not, whose name fits others too, and %d of no one color",
        *(len(asked), ambiguous, many_colors),
    )
    return asked


def _colors(stamp: Stamp, pictures: Path) -> tuple[str, ...]:
    """The colors that its description tells, then those that the picture mostly has."""
    with Image.open(pictures / stamp.picture) as image:
        seen = main_colors(image, least=_LEAST)
    return tuple(dict.fromkeys((*colors_in(stamp.english), *seen)))


def _question(one: _Asked, text: str, answers: tuple[str, ...]) -> SetQuestion:
    return SetQuestion(
        id=one.thing.key,
        text=text,
        gold=tuple(stamp.picture for stamp in one.stamps),
        answers=answers,
        category=one.stamps[0].kind[0],
    )


def _in_both(colors: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for color in colors for word in (IN_GERMAN[color], color)))


def _german_name(stamps: Sequence[Stamp]) -> str | None:
    for stamp in stamps:
        text = _GERMAN_COLOR.sub("", stamp.translations.get("de", ""))
        if name := _SENTENCE_END.split(text)[0].strip():
            return name
    return None


def _kind(stamp: Stamp, key: str) -> str:
    """The thing's kind, as far as it does not name the thing: a hat's is "Clothes"."""
    words = set(re.findall(r"\w+", key))
    told = [
        part
        for part in stamp.kind
        if not words & {form for word in part.split() for form in (word, word.removesuffix("s"))}
    ]
    return f"{', '.join(told or stamp.kind[:1]).capitalize()}."
