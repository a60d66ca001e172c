"""Photos are asked for by what is told of them, without their names."""

from __future__ import annotations

import pytest
from real import gcompris
from real.layout import Layout
from real.photos import BLANK, photo_set, statements, without_name
from tiny_packages import png, rcc, write_deb

from ragvl.data.formats import open_questions

RCC = "usr/share/gcompris-qt/rcc/"
BOARD = """
QtObject {
    property var tab: [
        {
            "image": "qrc:/key.svg",
            "title": qsTr("Red Gate"),
            "text": qsTr("TEXT"),
            "image2": "qrc:/a/explore_monuments/resource/redGate.webp",
            "text2": qsTr("Red Gate"),
            "x": "0.1"
        },
        { "text": qsTr("Click on the monument.") }
    ]
}
"""
TEXT = (
    r"The Red Gate of \"Old\" Town was built in 1791. "
    "It is tall, and it stands on a hill near St. Peter."
)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return Layout(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def unpacked(layout: Layout) -> tuple[list[gcompris.Photo], list[gcompris.NamedPicture]]:
    inside = "a/explore_monuments/resource"
    monuments = {
        f"{inside}/board/board1.qml": BOARD.replace("TEXT", TEXT).encode(),
        f"{inside}/redGate.webp": png((9,) * 4),
    }
    cards = {
        f"a/lang/resource/words_sample/{name}.webp": png((number, 0, 0, 255))
        for number, name in enumerate(
            ["bigDog", "redGate", "cat", "owl", "fox", "redGates", "gate"]
        )
    }
    kinds = {
        "a/categorization/resource/images/tools/hammer1.webp": png((1, 2, 3, 255)),
        "a/categorization/resource/images/tools/hammer2.webp": png((1, 2, 4, 255)),
        "a/categorization/resource/images/tools/tool3.webp": png((1, 2, 5, 255)),
        "a/categorization/resource/images/fishes/fish1.webp": png((1, 2, 6, 255)),
    }
    files = {
        f"{RCC}explore_monuments.rcc": rcc(monuments),
        f"{RCC}lang.rcc": rcc(cards),
        f"{RCC}categorization.rcc": rcc(kinds),
        f"{RCC}chess.rcc": b"not looked at",
    }
    return gcompris.unpack(write_deb(layout.root / "g.deb", files), layout.pictures)


def test_boards_describe_photos(
    layout: Layout, unpacked: tuple[list[gcompris.Photo], list[gcompris.NamedPicture]]
) -> None:
    photos, named = unpacked
    assert [(photo.title, photo.subject) for photo in photos] == [("Red Gate", "monument")]
    assert photos[0].text.startswith('The Red Gate of "Old" Town was')
    assert (layout.pictures / photos[0].picture).read_bytes() == png((9,) * 4)
    assert sorted(picture.name for picture in named) == [
        *("big dog", "cat", "fox", "gate", "hammer", "hammer", "owl", "red gate", "red gates"),
    ]


def test_photos_are_the_test_and_other_pictures_train(
    layout: Layout, unpacked: tuple[list[gcompris.Photo], list[gcompris.NamedPicture]]
) -> None:
    made = photo_set(*unpacked)
    assert [question.text for question in made.split("test")] == [
        f'The {BLANK} of "Old" Town was built in 1791. Which monument is it?',
        "It is tall, and it stands on a hill near St. Peter. Which monument is it?",
    ]
    assert made.split("test")[0].answers == ("Red Gate",)
    words = {question.id: question for question in made.split("train") + made.split("val")}
    assert {"red gate", "red gates", "gate"}.isdisjoint(words)  # which the test asks for
    assert len(words["hammer"].gold) == 2
    assert made.split("val")

    made.write(layout)
    for split in ("train", "val", "test"):
        assert not open_questions(layout.sets / "photos", split=split).problems.counts


def test_long_sentences_are_cut_where_one_stands_by_itself() -> None:
    text = (
        "It was built long ago by people, and it stands on a very high hill. Short one here. "
        "He saw U.S. Marines there one day, and went home very late."
    )
    photo = gcompris.Photo("a.png", "monument", "Tower", text)
    assert statements(photo) == [
        "It was built long ago by people.",
        "It stands on a very high hill.",
        "He saw U.S. Marines there one day, and went home very late.",
    ]


@pytest.mark.parametrize(
    ("text", "title", "expected"),
    [
        ("Chichen Itza is at the Itza well", "Chichén Itzá", "___ is at the ___ well"),
        ("Mont Saint-Michel is an island", "Mont-Saint-Michel", "___ is an island"),
        ("The Great Wall is long", "The Great Wall of China", "The ___ is long"),
        (
            "The Cathedral of Berlin is a church",
            "Berlin Cathedral",
            "The Cathedral of ___ is a church",
        ),
        ("Pandas eat bamboo", "Panda", "___ eat bamboo"),
        ("The Taj Mahal is white", "Taj Mahal, India", "The ___ is white"),
        ("The red castle is old", "Castle Clinton", "The red castle is old"),
        ("John Washington, George Washington's son", "George Washington", "John ___, ___'s son"),
        ("Nothing to see", "Cow", "Nothing to see"),
    ],
)
def test_names_become_blanks(text: str, title: str, expected: str) -> None:
    assert without_name(text, title) == expected
