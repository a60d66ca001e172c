"""The world of fictional places: what there is of them, and the questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

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
from ragvl.data.synthetic.world import NUMBERS, DrawnQuestion


class Places:
    """Places with an outside, an inside and a sign; see `ragvl.data.synthetic.drawing`."""

    views: tuple[str, ...] = VIEWS
    caption_styles: tuple[str, ...] = (
        "{name} {kind}, {year}",
        "{name} {kind} in {year}",
        "Photograph of {name} {kind}, {year}",
        "{kind} {name}, photographed in {year}",
    )

    def twins(self, names: tuple[str, str], rng: np.random.Generator) -> list[Place]:
        """Two places that share kind and setting, not their looks."""
        kind, setting = str(rng.choice(KINDS)), str(rng.choice(SETTINGS))
        return [_make_place(name, kind, setting, rng) for name in names]

    def looks_like(self, place: Place) -> tuple[str, str]:
        """What two places share that look alike."""
        return place.kind, place.setting

    def draw(self, place: Place, view: str, rng: np.random.Generator) -> Image.Image:
        """One picture."""
        return draw(place, view, rng)  # type: ignore[arg-type]

    def describe(self, place: Place, view: str) -> str:
        """What a picture shows."""
        shown = {
            "outside": f"{place.roof_color} roof, {place.wall_color} wall, "
            f"{place.door_shape} door, {NUMBERS[place.num_windows]} windows",
            "inside": f"{place.carpet_color} carpet, {place.table_shape} table, "
            f"{NUMBERS[place.num_lamps]} lamps",
            "sign": f"{place.sign_color} sign, {place.sign_word.lower()}",
        }
        return f"{place.name} {place.kind} {place.setting}, {view}: {shown[view]}"

    def ask(
        self,
        places: Sequence[Place],
        per_place: int,
        two_image_share: float,
        rng: np.random.Generator,
    ) -> Iterator[DrawnQuestion]:
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


def _ask_about_one(place: Place, rng: np.random.Generator) -> DrawnQuestion:
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
        return DrawnQuestion(
            "text",
            f"What word is written on the sign of {where}?",
            place.sign_word.lower(),
            ((place.name, "sign"),),
        )
    if category == "number":
        thing = str(rng.choice(list(counted)))
        view, count = counted[thing]
        question = f"How many {thing} does {where} have?"
        return DrawnQuestion("number", question, NUMBERS[count], ((place.name, view),))
    if category == "shape":
        thing = str(rng.choice(list(shaped)))
        view, shape = shaped[thing]
        question = f"What shape is the {thing} of {where}?"
        return DrawnQuestion("shape", question, shape, ((place.name, view),))
    if category == "color":
        thing = str(rng.choice(list(colored)))
        view, color = colored[thing]
        question = f"What color is the {thing} of {where}?"
        return DrawnQuestion("color", question, color, ((place.name, view),))

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
        return DrawnQuestion("choose", question, value, ((place.name, view),))
    question = f"Is the {thing} of {where} {first}?"
    return DrawnQuestion("YesNo", question, "yes" if right_first else "no", ((place.name, view),))


def _ask_about_two(place: Place, other: Place, rng: np.random.Generator) -> DrawnQuestion:
    gold: tuple[tuple[str, View], ...] = ((place.name, "outside"), (other.name, "outside"))
    which = f"{place.kind} {place.setting}"
    if place.num_windows != other.num_windows and rng.random() < 0.5:
        more = place if place.num_windows > other.num_windows else other
        question = f"Which {which} has more windows, {place.name} or {other.name}?"
        return DrawnQuestion("choose", question, more.name, gold)
    question = f"Do {place.name} and {other.name} {which} have doors of the same shape?"
    same = place.door_shape == other.door_shape
    return DrawnQuestion("YesNo", question, "yes" if same else "no", gold)
