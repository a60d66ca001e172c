"""A world of fictional companies' charts: another subject and another style than places.

Nothing here is in the demo's training data: flat colors on white paper, bars, slices and lines, new
kinds of names' company and new questions. What differs is what a model has to carry over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ragvl.data.synthetic.drawing import COLORS, SHAPES, SIZE, draw_marker
from ragvl.data.synthetic.world import NUMBERS, DrawnQuestion

VIEWS = ("sales", "staff", "profit")
KINDS = ("bakery", "brewery", "shipyard", "bank", "farm", "foundry", "pottery", "press")
_INK = (40, 40, 40)
_PAPER = (255, 255, 255)


@dataclass(frozen=True)
class Company:
    """A fictional company. Its name is never in a picture; everything else is in one chart.

    Attributes:
        name: a made-up word.
        kind: its trade.
        num_bars: of the sales chart.
        tallest: which of them is the tallest, from 0.
        tallest_color: that bar's color; the others are grey.
        num_slices: of the staff chart.
        largest_color: its largest slice's color.
        marker: the shape of the points on the profit chart.
        line_color: its line's color.
        rises: whether profit is higher at the end than at the beginning.
    """

    name: str
    kind: str
    num_bars: int
    tallest: int
    tallest_color: str
    num_slices: int
    largest_color: str
    marker: str
    line_color: str
    rises: bool


class Charts:
    """Companies with a chart of sales, of staff and of profit."""

    views: tuple[str, ...] = VIEWS
    caption_styles: tuple[str, ...] = (
        "{name} {kind}, annual report {year}",
        "Figures of {name} {kind} for {year}",
        "{kind} {name}: chart, {year}",
    )

    def twins(self, names: tuple[str, str], rng: np.random.Generator) -> list[Company]:
        """Two companies of one trade."""
        kind = str(rng.choice(KINDS))
        return [_make_company(name, kind, rng) for name in names]

    def looks_like(self, company: Company) -> tuple[str, ...]:
        """Of one trade, since a chart does not show which it is."""
        return (company.kind,)

    def draw(self, company: Company, view: str, rng: np.random.Generator) -> Image.Image:
        """One chart, RGB, 48 x 48 pixels; `rng` moves it and sets what no question is about."""
        image = Image.new("RGB", (SIZE, SIZE), _PAPER)
        painter = {"sales": _draw_sales, "staff": _draw_staff, "profit": _draw_profit}[view]
        painter(ImageDraw.Draw(image), company, rng)
        return image

    def describe(self, company: Company, view: str) -> str:
        """What a chart shows."""
        trend = "rising" if company.rises else "falling"
        shown = {
            "sales": f"{NUMBERS[company.num_bars]} bars, the tallest {company.tallest_color}",
            "staff": f"{NUMBERS[company.num_slices]} slices, the largest {company.largest_color}",
            "profit": f"a {trend} {company.line_color} line with {company.marker} points",
        }
        return f"{company.name} {company.kind}, {view}: {shown[view]}"

    def ask(
        self,
        companies: Sequence[Company],
        per_company: int,
        two_image_share: float,
        rng: np.random.Generator,
    ) -> Iterator[DrawnQuestion]:
        """Questions of WebQA's categories, but for words in pictures, of which there are none."""
        by_kind: dict[str, list[Company]] = {}
        for company in companies:
            by_kind.setdefault(company.kind, []).append(company)
        for company in companies:
            for _ in range(per_company):
                others = [other for other in by_kind[company.kind] if other != company]
                if rng.random() < two_image_share:
                    yield _ask_about_two(company, others[rng.integers(len(others))])
                else:
                    yield _ask_about_one(company, rng)


def _make_company(name: str, kind: str, rng: np.random.Generator) -> Company:
    colors = [color for color in COLORS if color != "white"]  # the paper is
    num_bars = int(rng.integers(2, 5))
    return Company(
        name=name,
        kind=kind,
        num_bars=num_bars,
        tallest=int(rng.integers(num_bars)),
        tallest_color=str(rng.choice(colors)),
        num_slices=int(rng.integers(2, 5)),
        largest_color=str(rng.choice(colors)),
        marker=str(rng.choice(SHAPES)),
        line_color=str(rng.choice(colors)),
        rises=bool(rng.random() < 0.5),
    )


def _ask_about_one(company: Company, rng: np.random.Generator) -> DrawnQuestion:
    who = f"{company.name} {company.kind}"
    colored = {
        "tallest bar in the sales chart": ("sales", company.tallest_color),
        "largest slice in the staff chart": ("staff", company.largest_color),
        "line in the profit chart": ("profit", company.line_color),
    }
    counted = {
        "bars does the sales chart": ("sales", company.num_bars),
        "slices does the staff chart": ("staff", company.num_slices),
    }
    category = str(rng.choice(["color", "shape", "number", "YesNo", "choose"]))
    if category == "number":
        what = str(rng.choice(list(counted)))
        view, count = counted[what]
        question = f"How many {what} of {who} have?"
        return DrawnQuestion("number", question, NUMBERS[count], ((company.name, view),))
    if category == "shape":
        question = f"What shape are the points in the profit chart of {who}?"
        return DrawnQuestion("shape", question, company.marker, ((company.name, "profit"),))
    if category == "YesNo":
        question = f"Does the profit of {who} rise?"
        answer = "yes" if company.rises else "no"
        return DrawnQuestion("YesNo", question, answer, ((company.name, "profit"),))
    what = str(rng.choice(list(colored)))
    view, color = colored[what]
    if category == "color":
        question = f"What color is the {what} of {who}?"
        return DrawnQuestion("color", question, color, ((company.name, view),))
    wrong = str(rng.choice([other for other in COLORS if other != color]))
    first, second = (color, wrong) if rng.random() < 0.5 else (wrong, color)
    question = f"Is the {what} of {who} {first} or {second}?"
    return DrawnQuestion("choose", question, color, ((company.name, view),))


def _ask_about_two(company: Company, other: Company) -> DrawnQuestion:
    gold = ((company.name, "sales"), (other.name, "sales"))
    if company.num_bars != other.num_bars:
        more = company if company.num_bars > other.num_bars else other
        question = (
            f"Which {company.kind} has more bars in its sales chart, {company.name} or "
            f"{other.name}?"
        )
        return DrawnQuestion("choose", question, more.name, gold)
    question = (
        f"Are the tallest bars in the sales charts of {company.name} and {other.name} "
        f"{company.kind} of the same color?"
    )
    same = company.tallest_color == other.tallest_color
    return DrawnQuestion("YesNo", question, "yes" if same else "no", gold)


def _draw_axes(pen: ImageDraw.ImageDraw, left: int, bottom: int) -> None:
    pen.line((left, 4, left, bottom), fill=_INK)
    pen.line((left, bottom, SIZE - 3, bottom), fill=_INK)


def _draw_sales(pen: ImageDraw.ImageDraw, company: Company, rng: np.random.Generator) -> None:
    left, bottom = 5 + int(rng.integers(3)), 42 + int(rng.integers(3))
    _draw_axes(pen, left, bottom)
    step = (SIZE - 4 - left) // company.num_bars
    for number in range(company.num_bars):
        is_tallest = number == company.tallest
        height = int(rng.integers(30, 35)) if is_tallest else int(rng.integers(8, 24))
        color = COLORS[company.tallest_color] if is_tallest else (185, 185, 190)
        x = left + 3 + number * step
        pen.rectangle((x, bottom - height, x + step - 4, bottom), fill=color, outline=_INK)


def _draw_staff(pen: ImageDraw.ImageDraw, company: Company, rng: np.random.Generator) -> None:
    dx, dy = (int(v) for v in rng.integers(-2, 3, 2))
    box = (6 + dx, 6 + dy, 42 + dx, 42 + dy)
    largest = float(rng.uniform(0.5, 0.6))
    rest = (1 - largest) / (company.num_slices - 1)
    angle = float(rng.uniform(0, 360))
    for number in range(company.num_slices):
        turn = 360 * (largest if number == 0 else rest)
        shade = 165 + 25 * number
        color = COLORS[company.largest_color] if number == 0 else (shade, shade, shade)
        pen.pieslice(box, angle, angle + turn, fill=color, outline=_INK)
        angle += turn


def _draw_profit(pen: ImageDraw.ImageDraw, company: Company, rng: np.random.Generator) -> None:
    left, bottom = 5 + int(rng.integers(3)), 42 + int(rng.integers(3))
    _draw_axes(pen, left, bottom)
    heights = np.linspace(6, 32, 4) + rng.uniform(-2, 2, 4)
    if not company.rises:
        heights = heights[::-1]
    xs = [left + 5 + 10 * number for number in range(4)]
    points = [(x, bottom - int(height)) for x, height in zip(xs, heights, strict=True)]
    pen.line(points, fill=COLORS[company.line_color], width=2)
    for x, y in points:
        draw_marker(pen, company.marker, (x - 3, y - 3, x + 3, y + 3), COLORS[company.line_color])
