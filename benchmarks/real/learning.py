"""What the real world's models learn from: stamps of the train split, Open Clip Art, and emoji.

A lesson is a picture, a text that names what it shows, and its kind. Lessons train the dual encoder
as pairs. The MLLM learns from them as sets: `describe` asks of every picture what it shows; `learn`
has questions like those of `named` and `blind`, of stamps and Open Clip Art; `relevance` has the
same with distractors, pictures of the same kind.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from PIL import Image

from real import emoji, openclipart
from real.colors import in_common, main_colors
from real.layout import Layout
from real.packages import path_of
from real.sets import write_lines
from real.words import colors_in, same_thing, thing_of, without_colors

_NAMING = ("named", "photos")  # sets whose captions name what is seen
_STAMPS = "stamps"  # the collection that `named` and `blind` tell of
LEARN, DESCRIBE, RELEVANCE = "learn", "describe", "relevance"  # the names of the sets
_DISTRACTORS = 8  # of a question at most
DESCRIBE_QUESTION = "What does the picture show?"
_OTHERS = ("photos", "screens")  # sets whose own questions of these splits are taken
_NAMED = 0.25  # the share of lessons whose caption tells the thing, as in the set `named`


@dataclass(frozen=True)
class Lesson:
    """A picture and what is known of it.

    Args:
        id: unlike any other's.
        picture: its file.
        text: names what it shows.
        kind: what sort of thing that is; None where `text` is a title, which is asked for as it is.
        keywords: what else is said of it.
        asked: the set `learn` has it.
    """

    id: str
    picture: Path
    text: str
    kind: str | None
    keywords: tuple[str, ...] = ()
    asked: bool = True

    @property
    def question(self) -> str:
        """Asks as the sets of things do, or for a title."""
        if self.kind is None:
            return self.text
        thing = thing_of(self.text)
        named = without_colors(self.text).rstrip(".!").lower() if thing is None else thing.named
        return f"What is the main color of {named}?"

    @property
    def wordings(self) -> tuple[str, str, str, str]:
        """What may be said of it: its text, its question, its color, its keywords."""
        return self.text, self.question, self.colored, ", ".join(self.keywords) or self.text

    @property
    def colored(self) -> str:
        """Its text with a color: the one it tells, else the one that the picture mostly has."""
        if self.kind is None or not self.colors or colors_in(self.text):
            return self.text
        words = re.sub(r"^(An?|The) ", "", without_colors(self.text))
        article = "An" if self.colors[0] == "orange" else "A"
        return f"{article} {self.colors[0]} {words}"

    def seen_from(self, folder: Path) -> str:
        """The path to its picture from a folder."""
        return os.path.relpath(self.picture.resolve(), folder.resolve())

    @cached_property
    def colors(self) -> tuple[str, ...]:
        """The colors that its text tells, then those that it mostly has."""
        with Image.open(self.picture) as image:
            seen = main_colors(image)
        return tuple(dict.fromkeys((*colors_in(self.text), *seen)))


def lessons(layout: Layout) -> tuple[list[Lesson], list[Lesson]]:
    """What is learned from, and what is held out to tell when to stop.

    Nothing is learned of a thing that val or test ask for, from whatever collection.

    Raises:
        MissingPackagesError: a package was not fetched.
    """
    held_out = _held_out(layout)
    train = [
        lesson
        for lesson in (*read_stamps(layout, "train"), *read_titles(layout))
        if same_thing(lesson.text) not in held_out
    ]
    return [*train, *_without(held_out, read_drawings(layout))], read_stamps(layout, "val")


def _without(held_out: Iterable[str], drawings: Iterable[Lesson]) -> Iterator[Lesson]:
    """Drawings whose text has no name of `held_out` in it, without the keywords that have one.

    Titles of drawings are written by many people: "Cat on a mat" shows a cat, too.
    """
    names = "|".join(re.escape(name) for name in sorted(held_out) if name)
    named = re.compile(rf"\b(?:{names})(?:e?s)?\b", re.IGNORECASE)
    for drawing in drawings:
        if not names:
            yield drawing
        elif not named.search(drawing.text):
            keywords = tuple(word for word in drawing.keywords if not named.search(word))
            yield replace(drawing, keywords=keywords)


def _held_out(layout: Layout) -> set[str]:
    """What the pictures of val and test show."""
    return {
        same_thing(document["caption"])
        for name in _NAMING
        for document in _lines(layout.sets / name / "documents.jsonl")
        if document["split"] != "train"
    }


def read_drawings(layout: Layout) -> list[Lesson]:
    """Lessons of Open Clip Art and of emoji, which are unpacked the first time.

    Raises:
        MissingPackagesError: a package was not fetched.
    """
    known = layout.root / "drawings.jsonl"  # written last
    if not known.exists():
        packages = {
            name: path_of(name, layout) for name in (*openclipart.PACKAGES, *emoji.DRAWINGS)
        }
        clips = openclipart.unpack(
            *(packages[name] for name in openclipart.PACKAGES), layout.pictures
        )
        write_lines(known, map(asdict, (*clips, *emoji.unpack(packages, layout.pictures))))
    return [
        Lesson(
            id=one["picture"],
            picture=layout.pictures / one["picture"],
            text=_described(one["title"]),
            kind=_sentence(", ".join(one["kind"]).replace("_", " ")),
            keywords=tuple(one["keywords"]),
            asked=not one["picture"].startswith(f"{emoji.COLLECTION}/"),
        )
        for one in _lines(known)
    ]


def read_titles(layout: Layout) -> list[Lesson]:
    """Lessons of the other collections' pairs."""
    return [
        Lesson(one["image"], layout.pairs.parent / one["image"], one["text"], None)
        for one in _lines(layout.pairs)
        if one["source"] != _STAMPS
    ]


def read_stamps(layout: Layout, split: str) -> list[Lesson]:
    """Lessons of the stamps of a split, as the sets `named` and `blind` tell of them."""
    named, blind = (
        {one["id"]: one for one in _lines(layout.sets / name / "documents.jsonl")}
        for name in ("named", "blind")
    )
    folder = layout.sets / "named"
    return [
        Lesson(id, (folder / one["image"]).resolve(), one["caption"], blind[id]["caption"])
        for id, one in named.items()
        if one["split"] == split
    ]


def write_learn(layout: Layout, train: Sequence[Lesson], val: Sequence[Lesson]) -> Path:
    """Writes the set `learn`: of lessons with a kind, and what other sets ask in these splits.

    Lessons that would ask the same are one question with several gold pictures; where these have no
    color in common, nothing is asked, and they are documents still.

    Returns:
        its folder.
    """
    folder = layout.sets / LEARN
    folder.mkdir(parents=True, exist_ok=True)
    documents: list[dict[str, object]] = []
    for split, part in {"train": train, "val": val}.items():
        things = [lesson for lesson in part if lesson.kind is not None and lesson.asked]
        questions = [*_questions(things)]
        for lesson in things:
            caption = lesson.text if _is_named(lesson) else lesson.kind
            image = lesson.seen_from(folder)
            documents.append({"id": lesson.id, "image": image, "caption": caption, "split": split})
        for name in _OTHERS:
            other = layout.sets / name  # whose paths to pictures are the same as from here
            documents += [
                line for line in _lines(other / "documents.jsonl") if line["split"] == split
            ]
            questions += [
                line | {"id": f"{name}/{line['id']}"} for line in _lines(other / f"{split}.jsonl")
            ]
        write_lines(folder / f"{split}.jsonl", questions)
    write_lines(folder / "documents.jsonl", documents)
    return folder


def write_describe(layout: Layout, train: Sequence[Lesson], val: Sequence[Lesson]) -> Path:
    """Writes the set `describe`: pictures without a caption, each of which is to be told in words.

    Who learns it learns to see: in `learn` a caption often says what there is to be seen. The words
    are a lesson's own, with the picture's color.

    Returns:
        its folder.
    """
    folder = layout.sets / DESCRIBE
    folder.mkdir(parents=True, exist_ok=True)
    documents: list[dict[str, object]] = []
    for split, part in {"train": train, "val": val}.items():
        for lesson in part:
            image = lesson.seen_from(folder)
            documents.append({"id": lesson.id, "image": image, "split": split})
        questions = (
            {
                "id": lesson.id,
                "question": DESCRIBE_QUESTION,
                "answer": [lesson.colored],
                "gold": [lesson.id],
            }
            for lesson in part
        )
        write_lines(folder / f"{split}.jsonl", questions)
    write_lines(folder / "documents.jsonl", documents)
    return folder


def write_relevance(layout: Layout, train: Sequence[Lesson], val: Sequence[Lesson]) -> Path:
    """Writes the set `relevance`: `learn`, whose questions of things have distractors.

    These are of the same kind, so that most have the same caption, and show another thing. Who is
    to tell them from the gold pictures has to look: what a retriever finds is mostly of another
    kind, which its caption tells.

    Returns:
        its folder.
    """
    learn, folder = layout.sets / LEARN, layout.sets / RELEVANCE
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in {"train": train, "val": val}.items():
        things = {one.id: one for one in part if one.kind is not None and one.asked}
        questions = []
        for line in _lines(learn / f"{split}.jsonl"):
            gold = [things[id] for id in line["gold"] if id in things]
            others = _of_the_same_kind(gold, list(things.values())) if gold else []
            questions.append(line | ({"distractors": others} if others else {}))
        write_lines(folder / f"{split}.jsonl", questions)
    write_lines(folder / "documents.jsonl", _lines(learn / "documents.jsonl"))
    return folder


def _of_the_same_kind(gold: Sequence[Lesson], things: Sequence[Lesson]) -> list[str]:
    """Ids of other things of the first gold one's kind, as an order drawn by their names has them.

    What has the thing's name among its words, or shares its question, is no other thing.
    """
    name = same_thing(gold[0].text)
    shared = re.compile(rf"\b{re.escape(name)}(?:e?s)?\b", re.IGNORECASE)

    def is_other(one: Lesson) -> bool:
        words = " ".join((one.text, *one.keywords))
        return one.question != gold[0].question and not (name and shared.search(words))

    def drawn(one: Lesson) -> bytes:
        return hashlib.sha256(f"{gold[0].id} {one.id}".encode()).digest()

    same = [one for one in things if one.kind == gold[0].kind and is_other(one)]
    return [one.id for one in sorted(same, key=drawn)[:_DISTRACTORS]]


def _questions(part: Sequence[Lesson]) -> Iterator[dict[str, object]]:
    asking: dict[str, list[Lesson]] = defaultdict(list)
    for lesson in part:
        asking[lesson.question].append(lesson)
    for question, same in asking.items():
        colors = in_common([lesson.colors for lesson in same])
        if colors:
            yield {
                "id": same[0].id,
                "question": question,
                "answer": list(colors),
                "gold": [lesson.id for lesson in same],
                "category": (same[0].kind or "").split(",")[0].rstrip(".").lower(),
            }


def _is_named(lesson: Lesson) -> bool:
    return hashlib.sha256(lesson.id.encode()).digest()[0] < 256 * _NAMED


def _described(title: str) -> str:
    """A title as stamps are described: "Apple" is "An apple."."""
    name = title.lower()
    return f"A{'n' if name[0] in 'aeiou' else ''} {name}."


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}." if words else words


def _lines(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
