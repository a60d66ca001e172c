"""Stamps become questions about colors, in splits that share nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from real import stamps
from real.colors import COLORS, IN_GERMAN, color_shares, main_colors
from real.layout import SPLITS, Layout
from real.sets import RealSet, SetDocument, SetError, SetQuestion, split_of
from real.things import thing_sets
from real.words import Thing, colors_in, thing_of, without_colors
from tiny_packages import png, write_deb

from ragvl.data.formats import open_questions

STAMPS = "usr/share/tuxpaint/stamps/"
RED, GREEN, BLUE, GREY = (210, 20, 20, 255), (30, 160, 40, 255), (20, 40, 200, 255), (128,) * 3
CIRCLE = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="4cm" height="4cm" viewBox="0 0 9 9">'
    '<circle cx="4" cy="4" r="4" fill="#22cc22"/></svg>'
)


def _described(english: str, german: str = "") -> bytes:
    lines = [english, "fr.utf8=Une chose.", f"de.utf8={german}" if german else ""]
    return "\n".join(lines).encode()


def _package(folder: Path) -> Path:
    files = {
        "animals/birds/cartoon/hen.png": png(RED),
        "animals/birds/cartoon/hen.txt": _described("A red hen.", "Eine rote Henne."),
        "animals/birds/hen2.png": png(RED, (30, 20)),
        "animals/birds/hen2.txt": _described("A hen."),
        "animals/birds/same.png": png(RED),  # the first one's bytes
        "animals/birds/same.txt": _described("Another hen."),
        "town/flag.png": png(GREEN),
        "town/flag.txt": _described("A flag!"),
        "town/flag2.png": png(BLUE),
        "town/flag2.txt": _described("A blue flag."),
        "plants/leaf.svg": CIRCLE.encode(),
        "plants/leaf.txt": _described("A leaf. Do not eat it!", "Ein Blatt."),
        "plants/hen.svg": CIRCLE.encode(),
        "plants/hen.png": png(GREEN, (9, 9)),  # the same as a bitmap
        "plants/hen.txt": _described("It grows where there is a lot of rain and little sun."),
        "plants/unnamed.png": png(GREEN),
        "symbols/a.png": png(GREEN),
        "symbols/a.txt": _described("The letter A."),
        "plants/sound.ogg": b"not a picture",
    }
    for number in range(12):  # enough for every split
        files[f"household/thing{number}.png"] = png(GREY, (number + 5, 9), "RGB")
        files[f"household/thing{number}.txt"] = _described(f"A thing{number}.", f"Ein D{number}.")
    return write_deb(folder / "s.deb", {STAMPS + name: data for name, data in files.items()})


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return Layout(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def unpacked(layout: Layout) -> list[stamps.Stamp]:
    return stamps.unpack(_package(layout.root), layout.pictures)


@pytest.fixture(scope="module")
def made(layout: Layout, unpacked: list[stamps.Stamp]) -> dict[str, RealSet]:
    sets = thing_sets(unpacked, layout.pictures)
    for one in sets:
        one.write(layout)
    return {one.name: one for one in sets}


def test_described_pictures_of_things_are_unpacked(
    layout: Layout, unpacked: list[stamps.Stamp]
) -> None:
    by_name = {stamp.picture: stamp for stamp in unpacked if "thing" not in stamp.picture}
    assert set(by_name) == {
        "stamps/animals/birds/cartoon/hen.png",
        "stamps/animals/birds/hen2.png",
        "stamps/town/flag.png",
        "stamps/town/flag2.png",
        "stamps/plants/leaf.png",
        "stamps/plants/hen.png",
    }
    hen = by_name["stamps/animals/birds/cartoon/hen.png"]
    assert hen.kind == ("animals", "birds")
    assert hen.english == "A red hen."
    assert hen.translations == {"fr": "Une chose.", "de": "Eine rote Henne."}
    with Image.open(layout.pictures / "stamps/plants/leaf.png") as leaf:
        assert leaf.size == (256, 256)
        assert main_colors(leaf) == ("green",)
        assert leaf.convert("RGBA").getpixel((250, 250))[3] == 0


def test_pictures_that_are_none_are_refused(tmp_path: Path) -> None:
    files = {f"{STAMPS}a/b.png": b"no picture", f"{STAMPS}a/b.txt": b"A bee."}
    with pytest.raises(ValueError, match=r"a/b\.png"):
        stamps.unpack(write_deb(tmp_path / "a.deb", files), tmp_path)


def test_questions_ask_for_colors(made: dict[str, RealSet]) -> None:
    questions = {question.id: question for question in made["named"].questions}
    hen = questions["hen"]
    assert hen.text == "What is the main color of the hen?"
    assert hen.gold == ("stamps/animals/birds/cartoon/hen.png", "stamps/animals/birds/hen2.png")
    assert hen.answers == ("red",)
    assert hen.category == "animals"
    assert "flag" not in questions  # a green and a blue one
    assert questions["thing3"].answers == ("grey",)
    assert made["blind"].questions == made["named"].questions

    german = {question.id: question for question in made["german"].questions}
    assert german["hen"].text == "Eine Henne: Welche Farbe überwiegt?"
    assert german["hen"].answers == ("rot", "red")
    assert german["leaf"].answers == ("grün", "green")


def test_captions_tell_no_color_and_kinds_no_name(made: dict[str, RealSet]) -> None:
    named = {document.picture: document.caption for document in made["named"].documents}
    blind = {document.picture: document.caption for document in made["blind"].documents}
    assert named["stamps/animals/birds/cartoon/hen.png"] == "A hen."
    assert blind["stamps/animals/birds/cartoon/hen.png"] == "Animals, birds."
    assert named["stamps/plants/hen.png"].startswith("It grows")
    assert {named[picture] for picture in made["named"].pictures("train")}.isdisjoint(
        named[picture] for picture in made["named"].pictures("test")
    )


@pytest.mark.parametrize("name", ["named", "blind", "german"])
def test_sets_are_read_by_ragvl(name: str, made: dict[str, RealSet], layout: Layout) -> None:
    for split in SPLITS:
        read = open_questions(layout.sets / name, split=split)
        assert not read.problems.counts
        assert [question.id for question in read.questions] == [
            question.id for question in made[name].split(split)
        ]
        assert set(read.document_ids()) == set(made[name].pictures(split))
        read.document(read.document_ids()[0]).check_files()


@pytest.mark.parametrize(
    ("description", "article", "name"),
    [
        ("An Adelaide Rosella.", "an", "Adelaide Rosella"),
        ("A male black rhino.", "a", "male rhino"),
        ("A ripe, red tomato!", "a", "ripe tomato"),
        ("A red and white anemone flower.", "an", "anemone flower"),
        ("An orange.", "an", "orange"),
        ("A Seville orange, also called a bitter orange.", "a", "Seville orange"),
        ("A red-nosed reindeer.", "a", "reindeer"),
        ("A UK post box. Put your letter in here!", "a", "UK post box"),
        ("A “Fuji” apple.", "a", "Fuji apple"),
        ("A ginger 'root'.", "a", "ginger root"),
        ("A peacock (a male peafowl).", "a", "peacock"),
        ("Two flowers.", "two", "flowers"),
        ("Mars—the red planet.", "", "Mars"),
    ],
)
def test_descriptions_name_things(description: str, article: str, name: str) -> None:
    assert thing_of(description) == Thing(article, name)


@pytest.mark.parametrize(
    "description",
    [
        "",
        "Boom!!!",
        "“Arrow”.",
        "Eat your broccoli!",
        "Down at the docks.",
        "A boxcar is used to carry livestock.",
        "The red light means you must stop now.",
        "...",
    ],
)
def test_sentences_and_cries_name_nothing(description: str) -> None:
    assert thing_of(description) is None


def test_things_are_spoken_of() -> None:
    assert Thing("a", "hen").named == "the hen"
    assert Thing("two", "hens").named == "the two hens"
    assert Thing("", "Mars").named == "Mars"
    assert Thing("an", "emu").caption == "An emu."
    assert without_colors("A blue owl, and a green one.") == "An owl, and a one."
    assert colors_in("A red and white flag on a gray pole.") == ("red", "white", "grey")


@pytest.mark.parametrize(
    ("rgb", "color"),
    [
        ((0, 0, 0), "black"),
        ((255, 255, 255), "white"),
        ((128, 128, 128), "grey"),
        ((220, 20, 30), "red"),
        ((255, 140, 0), "orange"),
        ((250, 220, 30), "yellow"),
        ((40, 160, 60), "green"),
        ((30, 60, 200), "blue"),
        ((110, 40, 160), "purple"),
        ((255, 150, 190), "pink"),
        ((120, 72, 30), "brown"),
    ],
)
def test_colors_have_their_usual_names(rgb: tuple[int, int, int], color: str) -> None:
    assert color_shares(Image.new("RGB", (5, 4), rgb)) == {color: 1.0}
    assert set(IN_GERMAN) == set(COLORS)


def test_colors_are_those_of_the_opaque_part() -> None:
    image = Image.new("RGBA", (40, 40), (255, 255, 255, 0))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 39, 9), fill=BLUE)
    draw.rectangle((0, 10, 39, 15), fill=RED)
    draw.rectangle((0, 16, 39, 17), fill=GREEN)
    assert main_colors(image) == ("blue", "red")  # 10, 6 and 2 of 18 rows
    assert main_colors(image, least=0.5) == ("blue",)
    assert main_colors(Image.new("RGBA", (4, 4), (255, 255, 255, 0))) == ()


def test_splits_have_their_shares_and_stay() -> None:
    keys = [f"key {number}" for number in range(200)]
    split = split_of(keys, salt="a", shares=(0.3, 0.2, 0.5))
    assert [list(split.values()).count(name) for name in SPLITS] == [60, 40, 100]
    assert split == split_of(reversed(keys), salt="a", shares=(0.3, 0.2, 0.5))
    assert split != split_of(keys, salt="b", shares=(0.3, 0.2, 0.5))


def test_sets_that_cannot_be_are_refused() -> None:
    one, other = SetDocument("a.png", "train"), SetDocument("b.png", "test")
    question = SetQuestion("q", "?", ("a.png",))
    with pytest.raises(SetError, match=r"a\.png is there twice"):
        RealSet("s", [one, one], [])
    with pytest.raises(SetError, match="question q is there twice"):
        RealSet("s", [one], [question, question])
    for gold in [(), ("c.png",), ("a.png", "b.png")]:
        with pytest.raises(SetError, match="s, q"):
            RealSet("s", [one, other], [SetQuestion("q", "?", gold)])
