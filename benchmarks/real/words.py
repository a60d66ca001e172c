"""What descriptions name: things without their colors, in questions and captions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from real.colors import COLORS

_ARTICLES = ("a", "an", "the", "some", "two", "three")
_MOST_WORDS = 5  # of a name that follows an article; more is a sentence
_MOST_ALONE = 2  # of one without an article
_VERBS = {"are", "carries", "is", "lasts", "lets", "means", "resembles", "stands"}
_QUOTES = re.compile(r"[“”\"]|(?<!\w)'|'(?!\w)")
# With what the color is of: a red-nosed reindeer
_COLOR = rf"(?:{'|'.join(COLORS)}|gray)(?:[- ](?:headed|nosed))?"
_COLORS = re.compile(rf"(?:,? )?\b{_COLOR}(?: and {_COLOR})*(?= \w)", re.IGNORECASE)


@dataclass(frozen=True)
class Thing:
    """What a description names.

    Args:
        article: as it was written, in small letters; empty where there is none.
        name: the rest, without colors.
    """

    article: str
    name: str

    @property
    def key(self) -> str:
        """The same for all descriptions that name the same."""
        return self.name.lower()

    @property
    def caption(self) -> str:
        """As a description, with a full stop."""
        text = f"{self.article} {self.name}".strip()
        return f"{text[0].upper()}{text[1:]}."

    @property
    def named(self) -> str:
        """As a question names what it takes for known."""
        if not self.article:
            return self.name
        count = f"{self.article} " if self.article in ("two", "three") else ""
        return f"the {count}{self.name}"


def thing_of(description: str) -> Thing | None:
    """What a description names, or None if it is a sentence or a cry rather than a name."""
    first = re.split(r"[.!?:;,(—–]| - |  ", without_colors(description.strip()))[0].strip()
    if description.startswith("“") or not first:
        return None
    words = _QUOTES.sub("", first).split()
    article = words[0].lower() if words[0].lower() in _ARTICLES else ""
    rest = words[1:] if article else words
    if not rest or len(rest) > (_MOST_WORDS if article else _MOST_ALONE):
        return None
    if (not article and "!" in description) or _VERBS & {word.lower() for word in rest}:
        return None
    return Thing(article, " ".join(rest))


def same_thing(text: str) -> str:
    """The same for texts that name the same thing, whatever its article and color."""
    thing = thing_of(text)
    return text.strip(" .!").lower() if thing is None else thing.key


def without_colors(text: str) -> str:
    """The text without colors that stand before what has them; "an orange" keeps its name."""
    plain = _COLORS.sub("", text).strip()
    match = re.match(r"(an?) (\w)", plain, re.IGNORECASE)
    if plain == text or match is None:
        return plain
    article = match[1][0] + ("n" if match[2].lower() in "aeiou" else "")
    return article + plain[len(match[1]) :]


def colors_in(text: str) -> tuple[str, ...]:
    """The colors that a description gives to something, in the order of the text."""
    found = " ".join(_COLORS.findall(text)).lower().replace("gray", "grey")
    return tuple(color for color in re.findall(r"\w+", found) if color in COLORS)
