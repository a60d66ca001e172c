"""A small world in WebQA's own file format, drawn from a seed, since no data set can be shipped.

A world is of things, such as places, each with a name and several views. It carries both kinds of
noise that RagVL is about:

- *query-caption*: a thing's name stands in its captions and nowhere in its pictures, and everything
  has a twin of the same kind whose name differs by one syllable, so an encoder that sees pictures
  only cannot tell them apart;
- *query-image*: a thing has a picture of each view with the same style of caption, of which only
  one shows what the question is about.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from PIL import Image

from ragvl.identity import checksum

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

CONSONANTS = "bdfgklmnprstvz"
VOWELS = "aeiou"
SYLLABLES = tuple(consonant + vowel for consonant in CONSONANTS for vowel in VOWELS)
NUMBERS = ("zero", "one", "two", "three", "four")

# Nine names in twelve are for training, so that a name's split is a property of the name alone.
_SPLIT_OF_BUCKET: tuple[Split, ...] = ("train",) * 9 + ("val",) + ("test",) * 2
_FIRST_IMAGE_ID = 30_000_000  # WebQA's ids: the row in imgs.tsv is the id modulo 10,000,000
_MAX_HARD_NEGATIVES = 10


class Thing(Protocol):
    """What a world is of."""

    @property
    def name(self) -> str:
        """A made-up word, never in a picture."""

    @property
    def kind(self) -> str:
        """What it is, in a word; in its captions."""


T = TypeVar("T", bound=Thing)


@dataclasses.dataclass(frozen=True)
class DrawnQuestion:
    """A question before it is put into WebQA's format.

    Attributes:
        category: WebQA's `Qcate`.
        question: the question.
        answer: its answer.
        gold: name of the thing, and view, of each picture that it takes.
    """

    category: str
    question: str
    answer: str
    gold: tuple[tuple[str, str], ...]


class Subject(Protocol[T]):
    """A kind of world: what there is, how it looks, and the questions."""

    views: tuple[str, ...]
    caption_styles: tuple[str, ...]

    def twins(self, names: tuple[str, str], rng: np.random.Generator) -> list[T]:
        """Two things that look alike from afar."""

    def looks_like(self, thing: T) -> tuple[str, ...]:
        """What two things share that look alike."""

    def draw(self, thing: T, view: str, rng: np.random.Generator) -> Image.Image:
        """One picture; `rng` changes what no question is about."""

    def describe(self, thing: T, view: str) -> str:
        """What a picture shows, after the thing's name."""

    def ask(
        self, things: Sequence[T], per_thing: int, two_image_share: float, rng: np.random.Generator
    ) -> Iterator[DrawnQuestion]:
        """`per_thing` questions about each thing."""


@dataclasses.dataclass(frozen=True)
class _Picture(Generic[T]):
    image_id: int
    thing: T
    view: str
    title: str
    caption: str

    def fact(self) -> dict[str, Any]:
        name = self.title.replace(" ", "_")
        return {
            "image_id": self.image_id,
            "title": self.title,
            "caption": self.caption,
            "url": f"synthetic://{name}",
            "imgUrl": f"synthetic://{name}.png",
        }


def split_of(name: str) -> Split:
    """The split that a thing's name belongs to, decided by the name alone."""
    bucket = int(checksum(name.encode())[:2], 16) % len(_SPLIT_OF_BUCKET)
    return _SPLIT_OF_BUCKET[bucket]


def write_world(
    folder: str | Path,
    subject: Subject[T],
    *,
    counts: Mapping[Split, int],
    questions_each: int = 1,
    two_image_share: float = 0.2,
    seed: int = 0,
) -> Path:
    """Draws a world and writes it as WebQA: WebQA_train_val.json, imgs.tsv and imgs.lineidx.

    Beside them goes descriptions.json, {image_id: what the picture shows}, which WebQA has not:
    it is for teaching a model to see, never for retrieving or answering.

    Args:
        folder: where to write; made if it is missing.
        subject: what the world is of.
        counts: how many things each split has. Even, since they come as twins. A picture of each
            view is drawn of each.
        questions_each: how many questions are drawn for each.
        two_image_share: the share of them that needs the pictures of two things.
        seed: the same seed gives the same files, byte for byte.

    Returns:
        The folder.

    Raises:
        ValueError: an odd or negative count, an unknown split, or a share outside 0..1.
    """
    if not 0 <= two_image_share <= 1:
        raise ValueError(f"two_image_share = {two_image_share} is not between 0 and 1")
    folder = Path(folder)
    samples: dict[str, dict[str, Any]] = {}
    descriptions: dict[int, str] = {}
    offsets: list[int] = []
    planned = _plan(subject, counts, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "imgs.tsv").open("wb") as rows:
        for split, things, pictures, rng in planned:
            for picture in pictures:
                descriptions[picture.image_id] = subject.describe(picture.thing, picture.view)
                offsets.append(rows.tell())
                png = io.BytesIO()
                subject.draw(picture.thing, picture.view, rng).save(png, "PNG")
                encoded = base64.b64encode(png.getvalue())
                rows.write(b"%d\t%s\n" % (picture.image_id, encoded))
            album = _Album(subject, pictures)
            for drawn in subject.ask(things, questions_each, two_image_share, rng):
                sample = _make_sample(drawn, split, album, rng)
                samples[sample["Guid"]] = sample
    (folder / "imgs.lineidx").write_text("".join(f"{offset}\n" for offset in offsets))
    (folder / "WebQA_train_val.json").write_text(json.dumps(samples))
    (folder / "descriptions.json").write_text(json.dumps(descriptions))
    return folder


def write_captions(
    folder: str | Path, subject: Subject[T], *, counts: Mapping[Split, int], seed: int = 0
) -> Path:
    """Writes the same pictures as `write_world`, with what each shows as its caption.

    A caption has no name, so that its picture can be told by looking. The layout is Karpathy's, as
    of Flickr30K and MSCOCO: captions.json, and the pictures in a folder images.

    Args:
        folder: where to write; made if it is missing.
        subject: what the world is of.
        counts: how many things each split has, as in `write_world`.
        seed: the same seed gives the same files, byte for byte.

    Returns:
        captions.json.

    Raises:
        ValueError: an odd or negative count, or an unknown split.
    """
    planned = _plan(subject, counts, seed)
    images = Path(folder) / "images"
    images.mkdir(parents=True, exist_ok=True)
    entries = []
    for split, _, pictures, rng in planned:
        for picture in pictures:
            file = f"{picture.image_id}.png"
            subject.draw(picture.thing, picture.view, rng).save(images / file, "PNG")
            described = subject.describe(picture.thing, picture.view)
            caption = described.removeprefix(f"{picture.thing.name} ")
            entries.append({"filename": file, "split": split, "sentences": [{"raw": caption}]})
    path = Path(folder) / "captions.json"
    path.write_text(json.dumps({"images": entries, "dataset": "drawn"}), encoding="utf-8")
    return path


class _Album(Generic[T]):
    """The pictures of one split, found by thing and by what they look like."""

    def __init__(self, subject: Subject[T], pictures: Sequence[_Picture[T]]) -> None:
        self.views = subject.views
        self.by_name: dict[str, dict[str, _Picture[T]]] = {}
        self._looks_like = subject.looks_like
        self._lookalikes: dict[tuple[str, ...], list[_Picture[T]]] = {}
        for picture in pictures:
            self.by_name.setdefault(picture.thing.name, {})[picture.view] = picture
            key = (*subject.looks_like(picture.thing), picture.view)
            self._lookalikes.setdefault(key, []).append(picture)

    def lookalikes(self, picture: _Picture[T]) -> list[_Picture[T]]:
        """The same view of things that look alike, the picture itself among them."""
        return self._lookalikes[*self._looks_like(picture.thing), picture.view]


def _plan(
    subject: Subject[T], counts: Mapping[Split, int], seed: int
) -> list[tuple[Split, list[T], list[_Picture[T]], np.random.Generator]]:
    """Of each split what there is, its pictures to be drawn, and what goes on drawing lots."""
    for split, count in counts.items():
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
        if count < 0 or count % 2:
            raise ValueError(f"{split!r}: {count} is not even; things come as twins")
    plan = []
    first_id = _FIRST_IMAGE_ID
    for split in SPLITS:
        # Seeded by the split too: no draw is shared between train, val and test.
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        things = _make_things(subject, counts.get(split, 0), split, rng)
        pictures = list(_make_pictures(subject, things, first_id, rng))
        first_id += len(pictures)
        plan.append((split, things, pictures, rng))
    return plan


def _make_things(
    subject: Subject[T], count: int, split: Split, rng: np.random.Generator
) -> list[T]:
    """`count` things, neighbours in the list twins of each other."""
    things: list[T] = []
    taken: set[str] = set()
    while len(things) < count:
        names = _twin_names(split, rng)
        if taken.intersection(names):
            continue
        taken.update(names)
        things += subject.twins(names, rng)
    return things


def _twin_names(split: Split, rng: np.random.Generator) -> tuple[str, str]:
    """Two names of this split that differ in one syllable."""
    while True:
        syllables = [str(s) for s in rng.choice(SYLLABLES, 3)]
        ending = str(rng.choice(["", "n", "r", "s"]))
        twin = syllables.copy()
        twin[rng.integers(3)] = str(rng.choice(SYLLABLES))
        first, second = ("".join(parts).capitalize() + ending for parts in (syllables, twin))
        if first != second and split_of(first) == split_of(second) == split:
            return first, second


def _make_pictures(
    subject: Subject[T], things: Sequence[T], first_id: int, rng: np.random.Generator
) -> Iterator[_Picture[T]]:
    """A picture of each view, in shuffled order; their captions do not tell the view."""
    image_id = first_id
    for thing in things:
        style = str(rng.choice(subject.caption_styles))
        for number, view in enumerate(rng.permutation(list(subject.views)), start=1):
            year = int(rng.integers(1950, 2020))
            caption = style.format(name=thing.name, kind=thing.kind, year=year)
            title = f"{thing.name} {thing.kind} {number}"
            yield _Picture(image_id, thing, str(view), title, caption)
            image_id += 1


def _make_sample(
    drawn: DrawnQuestion, split: Split, album: _Album[T], rng: np.random.Generator
) -> dict[str, Any]:
    """A WebQA sample: the pictures that answer, and hard negatives of both kinds."""
    gold = [album.by_name[name][view] for name, view in drawn.gold]
    gold_ids = {picture.image_id for picture in gold}
    negatives: dict[int, _Picture[T]] = {}
    for picture in gold:
        # query-image noise: the same thing, another view
        for view in album.views:
            other_view = album.by_name[picture.thing.name][view]
            negatives[other_view.image_id] = other_view
        # query-caption noise: the same view of things that look alike, the twin among them
        lookalikes = album.lookalikes(picture)
        by_name = functools.partial(_unlikeness, picture.thing.name)
        twin_first = sorted(lookalikes, key=by_name)
        for lookalike in [*twin_first[:3], *rng.permutation(np.array(lookalikes, object))[:3]]:
            negatives[lookalike.image_id] = lookalike
    hard = [picture for image_id, picture in negatives.items() if image_id not in gold_ids]
    guid = checksum(f"{split} {drawn.question}".encode())[:32]
    return {
        "Q": f'"{drawn.question}"',  # WebQA's own strings carry quotation marks
        "A": [f'"{drawn.answer}"'],
        "topic": gold[0].thing.kind,
        "split": split,
        "Qcate": drawn.category,
        "Guid": guid,
        "img_posFacts": [picture.fact() for picture in gold],
        "img_negFacts": [picture.fact() for picture in hard[:_MAX_HARD_NEGATIVES]],
        "txt_posFacts": [],
        "txt_negFacts": [],
    }


def _unlikeness(name: str, picture: _Picture[Any]) -> tuple[int, int]:
    return -_same_letters(picture.thing.name, name), picture.image_id


def _same_letters(first: str, second: str) -> int:
    return sum(a == b for a, b in zip(first, second, strict=False))
