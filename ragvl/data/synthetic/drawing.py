"""Draws the pictures of the synthetic world: 48 x 48 pixels, every shape a few lines of PIL.

A `Place` says what there is to see; `draw(place, view, rng)` shows one view of it. What is random
here (position, shade, speckle) makes no difference to any question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

SIZE = 48

View = Literal["outside", "inside", "sign"]
VIEWS: tuple[View, ...] = ("outside", "inside", "sign")

KINDS = ("lighthouse", "church", "windmill", "castle", "barn", "museum", "station", "tower")
SETTINGS = (
    "by the sea",
    "in the forest",
    "in the desert",
    "in the snow",
    "in the city",
    "in the meadow",
)
SHAPES = ("round", "square", "pointed")
WORDS = ("INN", "ZOO", "TEA", "MAP", "ART", "BUS", "GYM", "LAW")
COLORS = {
    "red": (205, 35, 35),
    "orange": (245, 140, 20),
    "yellow": (245, 225, 50),
    "green": (40, 150, 50),
    "blue": (40, 80, 215),
    "purple": (140, 50, 175),
    "white": (245, 245, 245),
    "black": (30, 30, 30),
}

# (sky, ground) of each setting
_SCENERY = {
    "by the sea": ((150, 205, 240), (30, 110, 170)),
    "in the forest": ((120, 160, 110), (20, 75, 35)),
    "in the desert": ((250, 215, 150), (220, 170, 90)),
    "in the snow": ((190, 200, 215), (235, 240, 250)),
    "in the city": ((170, 170, 175), (95, 95, 100)),
    "in the meadow": ((180, 225, 255), (120, 200, 80)),
}
_OUTLINE = (60, 50, 45)
# 5 x 7 letters, a row of five bits each, enough for WORDS
_LETTERS = {
    "A": (14, 17, 17, 31, 17, 17, 17),
    "B": (30, 17, 17, 30, 17, 17, 30),
    "E": (31, 16, 16, 30, 16, 16, 31),
    "G": (14, 17, 16, 23, 17, 17, 14),
    "I": (14, 4, 4, 4, 4, 4, 14),
    "L": (16, 16, 16, 16, 16, 16, 31),
    "M": (17, 27, 21, 21, 17, 17, 17),
    "N": (17, 25, 21, 19, 17, 17, 17),
    "O": (14, 17, 17, 17, 17, 17, 14),
    "P": (30, 17, 17, 30, 16, 16, 16),
    "R": (30, 17, 17, 30, 20, 18, 17),
    "S": (15, 16, 16, 14, 1, 1, 30),
    "T": (31, 4, 4, 4, 4, 4, 4),
    "U": (17, 17, 17, 17, 17, 17, 14),
    "W": (17, 17, 17, 21, 21, 27, 17),
    "Y": (17, 17, 10, 4, 4, 4, 4),
    "Z": (31, 1, 2, 4, 8, 16, 31),
}

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Place:
    """A fictional place. Its name is never in a picture; everything else is in one of the views."""

    name: str
    kind: str
    setting: str
    # outside
    roof_color: str
    wall_color: str
    door_shape: str
    num_windows: int
    # inside
    carpet_color: str
    table_shape: str
    num_lamps: int
    # sign
    sign_color: str
    sign_word: str


def draw(place: Place, view: View, rng: np.random.Generator) -> Image.Image:
    """One picture of `place`, RGB, 48 x 48 pixels; `rng` moves and shades it a little."""
    image = Image.new("RGB", (SIZE, SIZE))
    painter = {"outside": _draw_outside, "inside": _draw_inside, "sign": _draw_sign}[view]
    painter(ImageDraw.Draw(image), place, rng)
    pixels = np.asarray(image, np.float32) * rng.uniform(0.92, 1.05)
    pixels += rng.normal(0, 4, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _draw_scenery(pen: ImageDraw.ImageDraw, setting: str, box: Box, horizon: int) -> None:
    sky, ground = _SCENERY[setting]
    left, top, right, bottom = box
    pen.rectangle(box, fill=sky)
    pen.rectangle((left, horizon, right, bottom), fill=ground)
    if setting == "in the forest":
        for x in range(left + 2, right, 7):
            pen.polygon([(x, top + 3), (x - 3, horizon), (x + 3, horizon)], fill=(15, 60, 25))
    elif setting == "in the city":
        for i, x in enumerate(range(left, right, 6)):
            pen.rectangle(
                (x, top + 3 + 4 * (i % 2), min(x + 4, right), horizon), fill=(125, 125, 135)
            )
    elif setting == "in the snow":
        for x in range(left + 6, right, 14):
            pen.polygon([(x, top + 2), (x - 8, horizon), (x + 8, horizon)], fill=(250, 250, 255))


def _draw_silhouette(
    pen: ImageDraw.ImageDraw, kind: str, box: Box, wall: Color, roof: Color
) -> None:
    """The outline that tells a kind of building, filling `box`: roof above, wall below."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    middle = (left + right) // 2
    eaves = top + round(0.38 * height)

    def wall_box(x0: float, x1: float, y0: int = eaves) -> None:
        bounds = (left + round(x0 * width), y0, left + round(x1 * width), bottom)
        pen.rectangle(bounds, fill=wall, outline=_OUTLINE)

    def roof_polygon(*points: tuple[float, float]) -> None:
        corners = [(left + round(x * width), top + round(y * height)) for x, y in points]
        pen.polygon(corners, fill=roof, outline=_OUTLINE)

    if kind == "lighthouse":
        wall_box(0.3, 0.7)
        roof_polygon((0.25, 0.38), (0.25, 0.2), (0.5, 0.0), (0.75, 0.2), (0.75, 0.38))
    elif kind == "church":
        wall_box(0.0, 1.0)
        roof_polygon((0.0, 0.38), (0.5, 0.1), (1.0, 0.38))
        pen.line((middle, top - 3, middle, top + 4), fill=_OUTLINE, width=2)
        pen.line((middle - 3, top, middle + 3, top), fill=_OUTLINE, width=2)
    elif kind == "windmill":
        wall_box(0.2, 0.8)
        roof_polygon((0.2, 0.38), (0.35, 0.15), (0.65, 0.15), (0.8, 0.38))
        for dx, dy in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
            reach = round(0.34 * height)
            pen.line(
                (middle, eaves - 4, middle + dx * reach, eaves - 4 + dy * reach),
                fill=(90, 60, 30),
                width=2,
            )
    elif kind == "castle":
        wall_box(0.0, 1.0)
        for x in (0.0, 0.4, 0.8):
            roof_polygon((x, 0.38), (x, 0.1), (x + 0.2, 0.1), (x + 0.2, 0.38))
    elif kind == "barn":
        wall_box(0.0, 1.0)
        roof_polygon((0.0, 0.38), (0.12, 0.14), (0.88, 0.14), (1.0, 0.38))
    elif kind == "museum":
        wall_box(0.0, 1.0)
        roof_polygon((0.0, 0.38), (0.0, 0.26), (0.5, 0.05), (1.0, 0.26), (1.0, 0.38))
        for x in np.linspace(left + 2, right - 2, 5).round():
            pen.line((int(x), eaves, int(x), bottom), fill=_OUTLINE)
    elif kind == "station":
        wall_box(0.0, 1.0)
        roof_polygon((-0.1, 0.38), (-0.1, 0.26), (1.1, 0.26), (1.1, 0.38))
        pen.ellipse(
            (middle - 5, top - 2, middle + 5, top + 8), fill=(250, 250, 235), outline=_OUTLINE
        )
        pen.line((middle, top + 3, middle, top), fill=_OUTLINE)
        pen.line((middle, top + 3, middle + 3, top + 3), fill=_OUTLINE)
    elif kind == "tower":
        wall_box(0.3, 0.7)
        roof_polygon((0.25, 0.38), (0.25, 0.16), (0.75, 0.16), (0.75, 0.38))
    else:
        raise ValueError(f"unknown kind of place {kind!r}; known: {', '.join(KINDS)}")


def draw_marker(pen: ImageDraw.ImageDraw, shape: str, box: Box, fill: Color) -> None:
    """One of `SHAPES`, filling `box`."""
    left, top, right, bottom = box
    if shape == "round":
        pen.ellipse(box, fill=fill, outline=_OUTLINE)
    elif shape == "square":
        pen.rectangle(box, fill=fill, outline=_OUTLINE)
    else:
        pen.polygon(
            [(left, bottom), ((left + right) // 2, top), (right, bottom)],
            fill=fill,
            outline=_OUTLINE,
        )


def _draw_outside(pen: ImageDraw.ImageDraw, place: Place, rng: np.random.Generator) -> None:
    dx, dy = (int(v) for v in rng.integers(-2, 3, 2))
    _draw_scenery(pen, place.setting, (0, 0, SIZE, SIZE), 30 + dy)
    wide = place.kind not in ("lighthouse", "tower")
    left, right = (8 + dx, 40 + dx) if wide else (2 + dx, 46 + dx)
    top, bottom = 6 + dy, 43 + dy
    wall, roof = COLORS[place.wall_color], COLORS[place.roof_color]
    _draw_silhouette(pen, place.kind, (left, top, right, bottom), wall, roof)
    middle = (left + right) // 2
    # the same place for every kind: a row of windows under the roof, the door at the foot
    gap = 5
    first = middle - gap * (place.num_windows - 1) // 2
    for i in range(place.num_windows):
        x = first + gap * i
        pen.rectangle((x - 1, 23 + dy, x + 1, 27 + dy), fill=(255, 245, 160), outline=(0, 0, 0))
    draw_marker(pen, place.door_shape, (middle - 4, 32 + dy, middle + 4, 42 + dy), (110, 70, 40))


def _draw_inside(pen: ImageDraw.ImageDraw, place: Place, rng: np.random.Generator) -> None:
    dx, dy = (int(v) for v in rng.integers(-1, 2, 2))
    pen.rectangle((0, 0, SIZE, SIZE), fill=(225, 205, 175))
    pen.rectangle((0, 30, SIZE, SIZE), fill=(160, 125, 90))
    # a painting of the building, and a window with the scenery outside
    pen.rectangle((2 + dx, 9 + dy, 21 + dx, 27 + dy), fill=(250, 250, 240), outline=(120, 90, 30))
    _draw_silhouette(
        pen, place.kind, (5 + dx, 12 + dy, 18 + dx, 25 + dy), (150, 150, 150), (90, 90, 90)
    )
    _draw_scenery(pen, place.setting, (26 + dx, 9 + dy, 45 + dx, 26 + dy), 19 + dy)
    pen.rectangle((26 + dx, 9 + dy, 45 + dx, 26 + dy), outline=(255, 255, 255), width=1)
    for i in range(place.num_lamps):
        x = 6 + 11 * i + dx
        pen.line((x, 0, x, 3), fill=(40, 40, 40))
        pen.ellipse((x - 2, 2, x + 2, 6), fill=(255, 250, 120), outline=(150, 110, 0))
    pen.rectangle(
        (3 + dx, 37 + dy, 45 + dx, 46 + dy), fill=COLORS[place.carpet_color], outline=_OUTLINE
    )
    draw_marker(pen, place.table_shape, (18 + dx, 29 + dy, 30 + dx, 39 + dy), (130, 85, 45))


def _draw_sign(pen: ImageDraw.ImageDraw, place: Place, rng: np.random.Generator) -> None:
    dx, dy = (int(v) for v in rng.integers(-1, 2, 2))
    _draw_scenery(pen, place.setting, (0, 0, SIZE, SIZE), 36 + dy)
    pen.rectangle((22 + dx, 36 + dy, 26 + dx, SIZE), fill=(100, 70, 40))
    pen.rectangle(
        (3 + dx, 19 + dy, 45 + dx, 38 + dy), fill=COLORS[place.sign_color], outline=_OUTLINE
    )
    ink = (0, 0, 0) if place.sign_color in ("white", "yellow", "orange") else (255, 255, 255)
    for position, letter in enumerate(place.sign_word):
        for row, bits in enumerate(_LETTERS[letter]):
            for column in range(5):
                if bits >> (4 - column) & 1:
                    x = 6 + 13 * position + 2 * column + dx
                    y = 22 + 2 * row + dy
                    pen.rectangle((x, y, x + 1, y + 1), fill=ink)
    _draw_silhouette(
        pen, place.kind, (15 + dx, 4 + dy, 33 + dx, 18 + dy), (150, 150, 150), (90, 90, 90)
    )
