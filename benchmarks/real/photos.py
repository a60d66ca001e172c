"""The set `photos`: knowledge of monuments, animals and music, over photos with a name each.

A question is a sentence of the paragraph around a photo, with a blank for the name. The photos
give some 200 such questions, and the test has them all: in train and val, other pictures are asked
for by what they show.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise

from real.gcompris import NamedPicture, Photo
from real.sets import RealSet, SetDocument, SetQuestion, split_of

BLANK = "___"
_SHARES = (0.75, 0.25, 0.0)  # of the words that pictures are asked for by
_LEAST_WORDS = 5
_ALIKE = 0.85  # of a name and a title that are taken for the same
_SENTENCE_END = re.compile(r"(?<!\bSt\.)(?<!\bMt\.)(?<!\bU\.S\.)(?<=[.!?])\s+(?=[A-Z])")
# Where a long sentence has a second one that stands by itself
_CLAUSE_END = re.compile(
    r";\s+|,\s+(?:and|but|while|although|so)\s+(?=(?:it|its|they|the|there|many|perhaps)\b)"
)
_ASKED = {
    "monument": "Which monument is it?",
    "animal": "Which animal is it?",
    "music": "Where is this music from?",
}
# Words that many titles have: by themselves they name nothing
_COMMON = {
    *("amphitheatre", "baths", "bear", "birthplace", "castle", "cathedral", "caves", "city"),
    *("classical", "dragon", "east", "fort", "gate", "gateway", "golden", "great", "imperial"),
    *("memorial", "middle", "music", "palace", "pyramid", "states", "statue", "sun", "temple"),
    *("tower", "united", "wall"),
}


def photo_set(photos: Sequence[Photo], named: Sequence[NamedPicture]) -> RealSet:
    """The set; what a photo of the test shows is in no picture of train and val."""
    documents = [SetDocument(photo.picture, "test", photo.title) for photo in photos]
    questions = [
        SetQuestion(
            id=f"{photo.title}, {number}",
            text=f"{statement} {_ASKED[photo.subject]}",
            gold=(photo.picture,),
            answers=_answers(photo.title),
            category=photo.subject,
        )
        for photo in photos
        for number, statement in enumerate(statements(photo), 1)
    ]
    taken = [_folded(photo.title) for photo in photos]
    by_name: dict[str, list[str]] = defaultdict(list)
    for picture in named:
        if not any(_is_of(picture.name, title) for title in taken):
            by_name[picture.name].append(picture.picture)
    split = split_of(by_name, salt="photos", shares=_SHARES)
    for name, pictures in by_name.items():
        documents += [SetDocument(picture, split[name], name.capitalize()) for picture in pictures]
        text = f"Which picture shows this: {name}?"
        questions.append(SetQuestion(name, text, tuple(pictures), (name,), "word"))
    return RealSet("photos", documents, questions)


def _is_of(name: str, title: str) -> bool:
    """Whether a name is a title, in other letters perhaps, or some words of it."""
    return f" {name} " in f" {title} " or bool(get_close_matches(name, [title], cutoff=_ALIKE))


def statements(photo: Photo) -> list[str]:
    """What the paragraph tells of it, a sentence each, with a blank for its name."""
    told = []
    for sentence in _SENTENCE_END.split(photo.text):
        for clause in _clauses(sentence):
            text = without_name(clause, photo.title).strip().rstrip(" ,.!?")
            told.append(f"{text[0].upper()}{text[1:]}.")
    return told


def _clauses(sentence: str) -> Iterator[str]:
    """The sentence cut where another stands by itself; what is short is left out."""
    start = 0
    for match in _CLAUSE_END.finditer(sentence):
        before = sentence[start : match.start()]
        if _tells(before) and _tells(sentence[match.end() :]):
            yield before
            start = match.end()
    if _tells(sentence[start:]):
        yield sentence[start:]


def _tells(text: str) -> bool:
    return len(text.split()) >= _LEAST_WORDS


def without_name(text: str, title: str) -> str:
    """The text with a blank for a title, for neighbouring words of it, and for its own words.

    Accents, hyphens and a plural's ending make no difference.
    """
    name = _answers(title)[-1]
    words = [word for word in _folded(name).split() if len(word) > 3]
    phrases = [_folded(name), *map(" ".join, pairwise(words))]
    phrases += [word for word in words if word not in _COMMON]
    folded = _folded(text)
    blanks = [
        match.span()
        for phrase in phrases
        for match in re.finditer(rf"\b{re.escape(phrase)}(?:es|s)?\b", folded)
    ]
    parts, end = [], 0
    for start, stop in sorted(blanks, key=lambda span: (span[0], -span[1])):
        if start >= end:
            parts += [text[end:start], BLANK]
            end = stop
    return re.sub(rf"{BLANK}(?: {BLANK})+", BLANK, "".join([*parts, text[end:]]))


def _folded(text: str) -> str:
    """As many small letters without accents; hyphens are spaces."""
    return "".join(
        " " if character == "-" else unicodedata.normalize("NFD", character)[0].lower()
        for character in text
    )


def _answers(title: str) -> tuple[str, ...]:
    """The title as it is, then without its article and what follows a comma."""
    short = title.partition(",")[0].removeprefix("The ")
    return tuple(dict.fromkeys((title, short)))
