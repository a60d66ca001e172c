"""Figures of a manual are asked for by their titles."""

from __future__ import annotations

from pathlib import Path

import pytest
from real import screens
from real.layout import Layout
from real.pairs import Described, train_pairs, write_pairs
from real.screens import Figure, figures_of, screen_set
from real.sets import RealSet, SetDocument
from tiny_packages import png, write_deb

from ragvl.data.formats import open_questions

HELP = "usr/share/gimp/2.0/help/en/"


def _page(heading: str, *figures: str) -> str:
    return (
        f"<html><head><title>{heading}</title></head><body><p class='title'>not a figure's</p>"
        f"<img src='images/prev.png' alt='Prev'/>{''.join(figures)}<p>Text.</p></body></html>"
    )


def _figure(title: str, *media: tuple[str, str]) -> str:
    shown = "".join(
        f"<div class='mediaobject'><img src='images/{name}' alt=''/>"
        f"<div class='caption'><p>{caption}</p></div></div>"
        for name, caption in media
    )
    return (
        f"<div class='figure'><a id='x'></a><p class='title'><strong>{title}</strong></p>"
        f"<div class='figure-contents'>{shown}</div></div>"
    )


def test_figures_are_read_with_headings_and_titles() -> None:
    html = _page(
        "4.4.\xa0Crop &amp; Cut",
        _figure("Figure 14.127.\xa0The “Crop”\n  tool", ("crop.png", "How it looks")),
        _figure("Figure A.2. Two", ("one.png", "Before"), ("two.png", "After")),
        "<div class='informalfigure'><img src='images/other.png'/></div>",
        _figure("", ("untitled.png", "")),
    )
    assert list(figures_of("crop.html", html)) == [
        Figure("images/crop.png", "crop.html", "Crop & Cut", "The “Crop” tool"),
        Figure("images/one.png", "crop.html", "Crop & Cut", "Two: Before"),
        Figure("images/two.png", "crop.html", "Crop & Cut", "Two: After"),
    ]


@pytest.mark.parametrize(
    ("written", "heading"),
    [
        ("Chapter\xa012.\xa0Enrich my GIMP", "Enrich my GIMP"),
        ("Appendix\xa0E.\xa0Licence", "Licence"),
        ("8.\xa0What's New in GIMP 2.8?", "What's New in GIMP 2.8?"),
        ("3D Transform", "3D Transform"),
    ],
)
def test_headings_lose_their_numbers(written: str, heading: str) -> None:
    [figure] = figures_of("a.html", _page(written, _figure("Figure 1.1. A", ("a.png", ""))))
    assert figure.heading == heading


@pytest.fixture
def figures(tmp_path: Path) -> list[Figure]:
    files = {
        "a.html": _page(
            "1. A",
            _figure("Figure 1.1. First", ("first.png", "")),
            _figure("Figure 1.2. Untouched", ("photo.png", "")),
            _figure("Figure 1.3. Icon", ("icon.png", "")),
            _figure("Figure 1.4. Gone", ("gone.png", "")),
        ).encode(),
        "b.html": _page("2. B", _figure("Figure 2.1. Untouched", ("copy.png", ""))).encode(),
        "images/first.png": png((1, 1, 1, 255), (60, 60)),
        "images/photo.png": png((2, 2, 2, 255), (60, 60)),
        "images/copy.png": png((2, 2, 2, 255), (60, 60)),
        "images/icon.png": png((3, 3, 3, 255), (60, 22)),
    }
    for number in range(8):
        page = _page(f"{number}. Page", _figure("Figure 9. Menu", (f"m{number}.png", "")))
        files[f"p{number}.html"] = page.encode()
        files[f"images/m{number}.png"] = png((9, number, 1, 255), (60, 60))
    deb = write_deb(tmp_path / "h.deb", {HELP + name: data for name, data in files.items()})
    return screens.unpack(deb, tmp_path / "pictures")


def test_pictures_with_a_description_of_their_own_are_unpacked(
    figures: list[Figure], tmp_path: Path
) -> None:
    assert [figure.picture for figure in figures if figure.heading != "Page"] == ["gimp/first.png"]
    assert len(figures) == 9
    assert (tmp_path / "pictures/gimp/first.png").exists()


def test_a_title_of_many_figures_asks_for_none(figures: list[Figure], tmp_path: Path) -> None:
    made = screen_set(figures)
    assert [question.text for question in made.questions] == ["First"]
    assert {document.caption for document in made.documents} == {"A", "Page"}
    made.write(Layout(tmp_path))
    [split] = [name for name in ("train", "val", "test") if made.split(name)]
    assert not open_questions(tmp_path / "sets/screens", split=split).problems.counts


def test_pairs_are_of_train_and_of_no_held_out_text(tmp_path: Path) -> None:
    one = RealSet("one", [SetDocument("a/1.png", "train"), SetDocument("a/2.png", "train")], [])
    two = RealSet("two", [SetDocument("b/1.png", "test"), SetDocument("b/2.png", "train")], [])
    pairs = train_pairs(
        [
            Described(one, {"a/1.png": "A red hen.", "a/2.png": "An owl."}),
            Described(two, {"b/1.png": "hen", "b/2.png": "Menu"}),
        ],
    )
    write_pairs(pairs, Layout(tmp_path))
    assert (tmp_path / "pairs.jsonl").read_text().splitlines() == [
        '{"image": "pictures/a/2.png", "text": "An owl.", "source": "a"}',
        '{"image": "pictures/b/2.png", "text": "Menu", "source": "b"}',
    ]
