"""A small world in WebQA's own file format, drawn from a seed, since no data set can be shipped.

It carries both kinds of noise that RagVL is about:

- *query-caption*: a place's name stands in its captions and nowhere in its pictures, and every
  place has a twin of the same kind and setting whose name differs by one syllable, so an encoder
  that sees pictures only cannot tell them apart;
- *query-image*: a place has three pictures (outside, inside, sign) with the same style of caption,
  of which only one shows what is asked.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ragvl.data.synthetic.drawing import (
    COLORS,
    KINDS,
    SETTINGS,
    SHAPES,
    VIEWS,
    WORDS,
    Place,
    View,
    draw,
)

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


@dataclasses.dataclass(frozen=True)
class _Picture:
    image_id: int
    place: Place
    view: View
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


@dataclasses.dataclass(frozen=True)
class _Asked:
    category: str
    question: str
    answer: str
    gold: tuple[tuple[str, View], ...]  # (name of the place, view) of each picture that is needed


def split_of(name: str) -> Split:
    """The split that a place's name belongs to, decided by the name alone."""
    bucket = hashlib.sha256(name.encode()).digest()[0] % len(_SPLIT_OF_BUCKET)
    return _SPLIT_OF_BUCKET[bucket]


def write_world(
    folder: str | Path,
    *,
    places: Mapping[Split, int],
    questions_per_place: int = 1,
    two_image_share: float = 0.2,
    seed: int = 0,
) -> Path:
    """Draws a world and writes it as WebQA: WebQA_train_val.json, imgs.tsv and imgs.lineidx.

    Beside them goes descriptions.json, {image_id: what the picture shows}, which WebQA has not:
    it is for teaching a model to see, never for retrieving or answering.

    Args:
        folder: where to write; made if it is missing.
        places: how many places each split has; three pictures a place. Even, since places come as
            twins.
        questions_per_place: how many questions are drawn for each place.
        two_image_share: the share of them that needs the pictures of two places.
        seed: the same seed gives the same files, byte for byte.

    Returns:
        The folder.

    Raises:
        ValueError: an odd or negative number of places, an unknown split, or a share outside 0..1.
    """
    for split, count in places.items():
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
        if count < 0 or count % 2:
            raise ValueError(
                f"places[{split!r}] = {count}: places come as twins, so it must be even"
            )
    if not 0 <= two_image_share <= 1:
        raise ValueError(f"two_image_share = {two_image_share} is not between 0 and 1")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    samples: dict[str, dict[str, Any]] = {}
    descriptions: dict[int, str] = {}
    offsets: list[int] = []
    with (folder / "imgs.tsv").open("wb") as rows:
        for split in SPLITS:
            # Seeded by the split too: no draw is shared between train, val and test.
            rng = np.random.default_rng([seed, SPLITS.index(split)])
            world = _make_places(places.get(split, 0), split, rng)
            pictures = list(_make_pictures(world, _FIRST_IMAGE_ID + len(offsets), rng))
            for picture in pictures:
                descriptions[picture.image_id] = _describe(picture.place, picture.view)
                offsets.append(rows.tell())
                png = io.BytesIO()
                draw(picture.place, picture.view, rng).save(png, "PNG")
                encoded = base64.b64encode(png.getvalue())
                rows.write(b"%d\t%s\n" % (picture.image_id, encoded))
            album = _Album(pictures)
            for asked in _ask(world, questions_per_place, two_image_share, rng):
                sample = _make_sample(asked, split, album, rng)
                samples[sample["Guid"]] = sample
    (folder / "imgs.lineidx").write_text("".join(f"{offset}\n" for offset in offsets))
    (folder / "WebQA_train_val.json").write_text(json.dumps(samples))
    (folder / "descriptions.json").write_text(json.dumps(descriptions))
    return folder


class _Album:
    """The pictures of one split, found by place and by what they look like."""

    def __init__(self, pictures: Sequence[_Picture]) -> None:
        self.by_place: dict[str, dict[View, _Picture]] = {}
        self.lookalikes: dict[tuple[str, str, View], list[_Picture]] = {}
        for picture in pictures:
            place = picture.place
            self.by_place.setdefault(place.name, {})[picture.view] = picture
            key = (place.kind, place.setting, picture.view)
            self.lookalikes.setdefault(key, []).append(picture)


def _make_places(count: int, split: Split, rng: np.random.Generator) -> list[Place]:
    """`count` places in twins: neighbours in the list share kind and setting, not their looks."""
    places: list[Place] = []
    taken: set[str] = set()
    while len(places) < count:
        twins = _twin_names(split, rng)
        if taken.intersection(twins):
            continue
        taken.update(twins)
        kind, setting = str(rng.choice(KINDS)), str(rng.choice(SETTINGS))
        places += [_make_place(name, kind, setting, rng) for name in twins]
    return places


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


def _make_place(name: str, kind: str, setting: str, rng: np.random.Generator) -> Place:
    def pick(values: Sequence[str]) -> str:
        return str(rng.choice(list(values)))

    roof = pick(tuple(COLORS))
    return Place(
        name=name,
        kind=kind,
        setting=setting,
        roof_color=roof,
        wall_color=pick([color for color in COLORS if color != roof]),
        door_shape=pick(SHAPES),
        num_windows=int(rng.integers(1, 5)),
        carpet_color=pick(tuple(COLORS)),
        table_shape=pick(SHAPES),
        num_lamps=int(rng.integers(1, 5)),
        sign_color=pick(tuple(COLORS)),
        sign_word=pick(WORDS),
    )


def _make_pictures(
    places: Sequence[Place], first_id: int, rng: np.random.Generator
) -> Iterator[_Picture]:
    """The three pictures of each place, in shuffled order; their captions do not tell the view."""
    styles = (
        "{name} {kind}, {year}",
        "{name} {kind} in {year}",
        "Photograph of {name} {kind}, {year}",
        "{kind} {name}, photographed in {year}",
    )
    image_id = first_id
    for place in places:
        style = str(rng.choice(styles))
        for number, view in enumerate(rng.permutation(list(VIEWS)), start=1):
            year = int(rng.integers(1950, 2020))
            caption = style.format(name=place.name, kind=place.kind, year=year)
            title = f"{place.name} {place.kind} {number}"
            yield _Picture(image_id, place, str(view), title, caption)  # type: ignore[arg-type]
            image_id += 1


def _describe(place: Place, view: View) -> str:
    shown = {
        "outside": f"{place.roof_color} roof, {place.wall_color} wall, {place.door_shape} door, "
        f"{NUMBERS[place.num_windows]} windows",
        "inside": f"{place.carpet_color} carpet, {place.table_shape} table, "
        f"{NUMBERS[place.num_lamps]} lamps",
        "sign": f"{place.sign_color} sign, {place.sign_word.lower()}",
    }
    return f"{place.name} {place.kind} {place.setting}, {view}: {shown[view]}"


def _ask(
    places: Sequence[Place], per_place: int, two_image_share: float, rng: np.random.Generator
) -> Iterator[_Asked]:
    """`per_place` questions about each place, of WebQA's categories."""
    groups: dict[tuple[str, str], list[Place]] = {}
    for place in places:
        groups.setdefault((place.kind, place.setting), []).append(place)
    for place in places:
        for _ in range(per_place):
            others = [other for other in groups[place.kind, place.setting] if other != place]
            if rng.random() < two_image_share and others:
                yield _ask_about_two(place, others[rng.integers(len(others))], rng)
            else:
                yield _ask_about_one(place, rng)


def _ask_about_one(place: Place, rng: np.random.Generator) -> _Asked:
    where = f"{place.name} {place.kind} {place.setting}"
    colored: dict[str, tuple[View, str]] = {
        "roof": ("outside", place.roof_color),
        "wall": ("outside", place.wall_color),
        "carpet": ("inside", place.carpet_color),
        "sign": ("sign", place.sign_color),
    }
    shaped: dict[str, tuple[View, str]] = {
        "door": ("outside", place.door_shape),
        "table": ("inside", place.table_shape),
    }
    counted: dict[str, tuple[View, int]] = {
        "windows": ("outside", place.num_windows),
        "lamps": ("inside", place.num_lamps),
    }
    category = str(rng.choice(["color", "shape", "number", "YesNo", "choose", "text"]))
    if category == "text":
        return _Asked(
            "text",
            f"What word is written on the sign of {where}?",
            place.sign_word.lower(),
            ((place.name, "sign"),),
        )
    if category == "number":
        thing = str(rng.choice(list(counted)))
        view, count = counted[thing]
        question = f"How many {thing} does {where} have?"
        return _Asked("number", question, NUMBERS[count], ((place.name, view),))
    if category == "shape":
        thing = str(rng.choice(list(shaped)))
        view, shape = shaped[thing]
        question = f"What shape is the {thing} of {where}?"
        return _Asked("shape", question, shape, ((place.name, view),))
    if category == "color":
        thing = str(rng.choice(list(colored)))
        view, color = colored[thing]
        question = f"What color is the {thing} of {where}?"
        return _Asked("color", question, color, ((place.name, view),))

    # YesNo and choose offer values, of which half of the time the first is the right one
    properties = {**colored, **shaped}
    thing = str(rng.choice(list(properties)))
    view, value = properties[thing]
    values = list(COLORS) if thing in colored else list(SHAPES)
    wrong = str(rng.choice([other for other in values if other != value]))
    right_first = rng.random() < 0.5
    first, second = (value, wrong) if right_first else (wrong, value)
    if category == "choose":
        question = f"Is the {thing} of {where} {first} or {second}?"
        return _Asked("choose", question, value, ((place.name, view),))
    question = f"Is the {thing} of {where} {first}?"
    return _Asked("YesNo", question, "yes" if right_first else "no", ((place.name, view),))


def _ask_about_two(place: Place, other: Place, rng: np.random.Generator) -> _Asked:
    gold: tuple[tuple[str, View], ...] = ((place.name, "outside"), (other.name, "outside"))
    which = f"{place.kind} {place.setting}"
    if place.num_windows != other.num_windows and rng.random() < 0.5:
        more = place if place.num_windows > other.num_windows else other
        question = f"Which {which} has more windows, {place.name} or {other.name}?"
        return _Asked("choose", question, more.name, gold)
    question = f"Do {place.name} and {other.name} {which} have doors of the same shape?"
    same = place.door_shape == other.door_shape
    return _Asked("YesNo", question, "yes" if same else "no", gold)


def _make_sample(
    asked: _Asked, split: Split, album: _Album, rng: np.random.Generator
) -> dict[str, Any]:
    """A WebQA sample: the pictures that answer, and hard negatives of both kinds."""
    gold = [album.by_place[name][view] for name, view in asked.gold]
    gold_ids = {picture.image_id for picture in gold}
    negatives: dict[int, _Picture] = {}
    for picture in gold:
        # query-image noise: the same place, another view
        for view in VIEWS:
            other_view = album.by_place[picture.place.name][view]
            negatives[other_view.image_id] = other_view
        # query-caption noise: the same view of places that look alike, the twin among them
        key = (picture.place.kind, picture.place.setting, picture.view)
        lookalikes = album.lookalikes[key]
        twin_first = sorted(
            lookalikes, key=lambda p: (-_same_letters(p.place.name, picture.place.name), p.image_id)
        )
        for lookalike in [*twin_first[:3], *rng.permutation(np.array(lookalikes, object))[:3]]:
            negatives[lookalike.image_id] = lookalike
    hard = [picture for image_id, picture in negatives.items() if image_id not in gold_ids]
    guid = hashlib.sha256(f"{split} {asked.question}".encode()).hexdigest()[:32]
    return {
        "Q": f'"{asked.question}"',  # WebQA's own strings carry quotation marks
        "A": [f'"{asked.answer}"'],
        "topic": gold[0].place.kind,
        "split": split,
        "Qcate": asked.category,
        "Guid": guid,
        "img_posFacts": [picture.fact() for picture in gold],
        "img_negFacts": [picture.fact() for picture in hard[:_MAX_HARD_NEGATIVES]],
        "txt_posFacts": [],
        "txt_negFacts": [],
    }


def _same_letters(first: str, second: str) -> int:
    return sum(a == b for a, b in zip(first, second, strict=False))
