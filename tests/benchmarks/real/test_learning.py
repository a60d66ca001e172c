"""What the models learn from: drawings of Open Clip Art, and lessons of the train split only."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from real import openclipart
from real.layout import Layout
from real.learning import lessons, write_learn
from real.openclipart import title_of, unpack
from real.sets import write_lines
from tiny_packages import png, write_deb

from ragvl.data.formats import open_questions

DRAWINGS, SOURCES = "usr/share/openclipart/png/", "usr/share/openclipart/svg/"
RED, GREEN = (210, 20, 20, 255), (30, 160, 40, 255)


def source(title: str) -> bytes:
    return f"<svg><metadata><dc:title>{title}</dc:title></metadata></svg>".encode()


@pytest.fixture
def packages(tmp_path: Path) -> tuple[Path, Path]:
    drawings = {
        "animals/birds/owl_01.png": png(RED, (600, 300)),
        "animals/broken.png": b"not a picture",
        "animals/untitled.png": png(RED),
        "food/apple.png": png(GREEN),
        "food/apple2.png": png(RED),
        "buttons/play.png": png(RED),
    }
    sources = {
        "animals/birds/owl_01.svg": source("Owl &amp; moon_02"),
        "animals/broken.svg": source("Broken"),
        "animals/untitled.svg": b"<svg/>",
        "food/apple.svg": source("apple"),
        "food/apple2.svg": source("apple"),
        "buttons/play.svg": source("Play"),
    }
    return (
        write_deb(tmp_path / "png.deb", {DRAWINGS + name: data for name, data in drawings.items()}),
        write_deb(tmp_path / "svg.deb", {SOURCES + name: data for name, data in sources.items()}),
    )


def test_drawings_of_things_are_made_small_and_titled(
    packages: tuple[Path, Path], tmp_path: Path
) -> None:
    clips = unpack(*packages, tmp_path / "pictures")
    assert [(clip.kind, clip.title) for clip in clips] == [
        (("animals", "birds"), "Owl moon"),
        (("food",), "apple"),
        (("food",), "apple"),
    ]
    with Image.open(tmp_path / "pictures" / clips[0].picture) as image:
        assert image.size == (256, 128)
    assert unpack(*packages, tmp_path / "pictures") == clips, "what is there is kept"


def test_a_picture_that_is_too_large_is_left_out(
    packages: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openclipart, "_MOST_PIXELS", 1000)
    assert [clip.title for clip in unpack(*packages, tmp_path)] == ["apple", "apple"]


@pytest.mark.parametrize(
    ("written", "title"),
    [
        ("Apple_red 02", "Apple red"),
        ("caf&eacute;", "café"),
        ("42", None),
        ("", None),
        ("story " * 11, None),
    ],
)
def test_titles_are_words(written: str, title: str | None) -> None:
    assert title_of(written) == title


def test_the_set_to_learn_from_has_nothing_of_the_test_split(
    packages: tuple[Path, Path], tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "real")
    stamps = {"hen": "train", "frog": "val", "tree": "test"}
    for number, name in enumerate(("named", "blind")):
        write_lines(
            layout.sets / name / "documents.jsonl",
            [
                {
                    "id": f"stamps/{thing}.png",
                    "image": f"../../pictures/stamps/{thing}.png",
                    "caption": [f"A {thing}.", "Living things."][number],
                    "split": split,
                }
                for thing, split in stamps.items()
            ],
        )
    (layout.pictures / "stamps").mkdir(parents=True)
    for thing in stamps:
        (layout.pictures / "stamps" / f"{thing}.png").write_bytes(png(GREEN))
    write_lines(
        layout.pairs,
        [
            {"image": "pictures/gimp/crop.png", "text": "The Crop dialog", "source": "gimp"},
            {"image": "pictures/stamps/hen.png", "text": "A hen.", "source": "stamps"},
        ],
    )
    for name, thing in (("photos", "Cow"), ("screens", "Print")):
        folder = layout.sets / name
        documents = [
            {"id": f"{name}/{split}", "image": "../../pictures/stamps/hen.png", "split": split}
            for split in ("train", "val", "test")
        ]
        write_lines(folder / "documents.jsonl", [one | {"caption": thing} for one in documents])
        for split in ("train", "val", "test"):
            question = {
                "id": split,
                "question": f"The {thing}, {split}",
                "gold": [f"{name}/{split}"],
            }
            write_lines(folder / f"{split}.jsonl", [question])
    clips = [
        {"picture": clip.picture, "kind": clip.kind, "title": clip.title}
        for clip in unpack(*packages, layout.pictures)
    ]
    for title in ("frog", "Tree", "Brown cow"):  # what val and test show
        clips.append({"picture": f"openclipart/{title}.png", "kind": ("food",), "title": title})
    write_lines(layout.root / "clips.jsonl", clips)

    learned, held_out = lessons(layout)
    titles = {one.question: one.picture for one in learned if one.kind is None}
    assert titles == {"The Crop dialog": layout.root / "pictures/gimp/crop.png"}
    folder = write_learn(layout, learned, held_out)
    train = open_questions(folder, split="train", purpose="train")
    assert not train.problems
    asked = {question.text: question for question in train.questions}
    # Two apples of different colors: they are documents, and nothing is asked
    assert asked.keys() == {
        "What is the main color of the hen?",
        "What is the main color of the owl moon?",
        "The Cow, train",
        "The Print, train",
    }
    hen = asked["What is the main color of the hen?"]
    assert (hen.gold, tuple(hen.answers)) == (("stamps/hen.png",), ("green",))
    assert len(train.document_ids()) == 6
    captions = {train.document(id).caption for id in train.document_ids()}
    assert captions <= {
        "A hen.",
        "Living things.",
        "An owl moon.",
        "Animals, birds.",
        "An apple.",
        "Food.",
        "Cow",
        "Print",
    }
    val = open_questions(folder, split="val")
    assert set(val.document_ids()) == {"stamps/frog.png", "photos/val", "screens/val"}
