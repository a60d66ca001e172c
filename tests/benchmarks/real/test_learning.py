"""What the models learn from: drawings of Open Clip Art, and lessons of the train split only."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image
from real import emoji, openclipart
from real.layout import Layout
from real.learning import Lesson, lessons, write_describe, write_learn, write_relevance
from real.openclipart import title_of, unpack
from real.sets import write_lines
from tiny_packages import png, write_deb, write_npm

from ragvl.data.formats import open_questions

DRAWINGS, SOURCES = "usr/share/openclipart/png/", "usr/share/openclipart/svg/"
RED, GREEN = (210, 20, 20, 255), (30, 160, 40, 255)


def source(title: str, *keywords: str) -> bytes:
    items = "\n".join(f"<rdf:li>{keyword}</rdf:li>" for keyword in keywords)
    subject = f"<dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject>" if keywords else ""
    return f"<svg><metadata><dc:title>{title}</dc:title>{subject}</metadata></svg>".encode()


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
        "animals/birds/owl_01.svg": source("Owl &amp; moon_02", "Owl", "tree", "hill", "owl", "ok"),
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
    assert [clip.keywords for clip in clips] == [("owl", "tree", "hill"), (), ()]
    with Image.open(tmp_path / "pictures" / clips[0].picture) as image:
        assert image.size == (256, 128)
    assert unpack(*packages, tmp_path / "pictures") == clips, "what is there is kept"


def test_a_picture_that_is_too_large_is_left_out(
    packages: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openclipart, "_MOST_PIXELS", 1000)
    assert [clip.title for clip in unpack(*packages, tmp_path)] == ["apple", "apple"]


@pytest.mark.parametrize(
    ("text", "color", "colored"),
    [
        ("An apple.", RED, "A red apple."),
        ("An apple.", (255, 140, 0, 255), "An orange apple."),
        ("A green apple.", RED, "A green apple."),
        ("An apple.", (0, 0, 0, 0), "An apple."),
    ],
)
def test_a_wording_has_the_color(
    text: str, color: tuple[int, ...], colored: str, tmp_path: Path
) -> None:
    picture = tmp_path / "apple.png"
    picture.write_bytes(png(color))
    lesson = Lesson("apple", picture, text, "Food.", ("fruit", "core"))
    question = "What is the main color of the apple?"
    assert lesson.wordings == (text, question, colored, "fruit, core")


def test_emoji_are_drawn_by_several(tmp_path: Path) -> None:
    def entry(code: str, subgroups: str, annotation: str, skintone: str = "") -> dict[str, str]:
        written = {"hexcode": code, "group": "food-drink", "subgroups": subgroups}
        tags = {"tags": "sweet, red", "openmoji_tags": "red, it"}
        return written | tags | {"annotation": annotation, "skintone": skintone}

    entries = [
        entry("1F34E", "food-fruit", "red apple"),
        entry("2615-FE0F", "food-drink", "cup: tea"),
        entry("1F44B-1F3FB", "hand", "waving hand", "1"),
        entry("E1", "brand", "a logo"),
    ]
    svg = (
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0h9v9z"/></svg>'
    )
    files = {
        "openmoji": {
            "package/data/openmoji.json": json.dumps(entries).encode(),
            **{f"package/color/svg/{one['hexcode']}.svg": svg for one in entries},
            "package/black/svg/1F34E.svg": b"broken",
        },
        "@twemoji/svg": {"package/1f34e.svg": svg, "package/2615.svg": svg, "package/1.svg": svg},
        "@lobehub/fluent-emoji-3d": {"package/assets/2615.png": png(RED)},
    }
    packages = {
        name: write_npm(tmp_path / f"{number}.tgz", inside)
        for number, (name, inside) in enumerate(files.items())
    }
    drawn = emoji.unpack(packages, tmp_path / "pictures")
    assert {one.picture: one.title for one in drawn} == {
        "emoji/lobehub-fluent-emoji-3d/2615.png": "tea cup",
        "emoji/openmoji/1F34E.png": "red apple",
        "emoji/openmoji/2615-FE0F.png": "tea cup",
        "emoji/twemoji-svg/1f34e.png": "red apple",
        "emoji/twemoji-svg/2615.png": "tea cup",
    }
    assert drawn[1].kind == ("food drink", "food fruit") and drawn[1].keywords == ("sweet", "red")
    with Image.open(tmp_path / "pictures" / drawn[1].picture) as image:
        assert image.size == (192, 192)


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
    drawn = [*(f"stamps/{thing}.png" for thing in stamps), "emoji/a/leap.png", "gimp/crop.png"]
    for name in drawn:
        (layout.pictures / name).parent.mkdir(parents=True, exist_ok=True)
        (layout.pictures / name).write_bytes(png(GREEN))
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
    drawings = [asdict(clip) for clip in unpack(*packages, layout.pictures)]
    some = {"kind": ("food",), "keywords": ()}
    for title in ("frog", "Tree", "Brown cow", "Two FROGS on ice"):  # what val and test show
        drawings.append(some | {"picture": f"openclipart/{title}.png", "title": title})
    drawings.append(some | {"picture": "emoji/a/leap.png", "title": "leapfrog"})
    write_lines(layout.root / "drawings.jsonl", drawings)

    learned, held_out = lessons(layout)
    assert {one.id: one.keywords for one in learned if one.keywords} == {
        "openclipart/animals/birds/owl_01.png": ("owl", "hill")
    }
    assert [one.text for one in learned if not one.asked] == ["A leapfrog."]
    titles = {one.question: one.picture for one in learned if one.kind is None}
    assert titles == {"The Crop dialog": layout.root / "pictures/gimp/crop.png"}
    told = write_describe(layout, learned, held_out)
    for split, part in {"train": learned, "val": held_out}.items():
        describe = open_questions(told, split=split, purpose="train")
        assert not describe.problems
        assert {question.text for question in describe.questions} == {"What does the picture show?"}
        words = {question.gold: question.answers for question in describe.questions}
        assert words == {(one.id,): (one.colored,) for one in part}
        documents = [describe.document(id) for id in describe.document_ids()]
        assert [one.caption for one in documents] == [None] * len(part)
        pictures = [Path(str(one.image)).resolve() for one in documents]
        assert pictures == [one.picture.resolve() for one in part]
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
    relevance = open_questions(
        write_relevance(layout, learned, held_out), split="train", purpose="train"
    )
    assert not relevance.problems
    assert relevance.document_ids() == train.document_ids()
    assert {q.text: q.gold for q in relevance.questions} == {q.text: q.gold for q in asked.values()}
    val = open_questions(folder, split="val")
    assert set(val.document_ids()) == {"stamps/frog.png", "photos/val", "screens/val"}


def test_distractors_are_other_things_of_the_same_kind(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for name, color in {"red": RED, "green": GREEN}.items():
        (tmp_path / f"{name}.png").write_bytes(png(color))
    texts = {
        "hen": ("A hen.", "Birds."),
        "hen 2": ("A hen.", "Birds."),  # asked for by the same question
        "owl": ("An owl.", "Birds."),
        "nest": ("A nest.", "Birds."),  # has the hen's name among its words
        "fish": ("A fish.", "Fish."),
        **{f"bird {i}": (f"A bird of kind {i}.", "Birds.") for i in range(9)},
    }
    things = [
        Lesson(id, tmp_path / "red.png", text, kind, ("hens",) if id == "nest" else ())
        for id, (text, kind) in texts.items()
    ]
    for name in ("photos", "screens"):
        for file in ("documents", "train", "val"):
            write_lines(layout.sets / name / f"{file}.jsonl", [])
    write_learn(layout, things, [])
    folder = write_relevance(layout, things, [])
    by_gold = {q.gold: q.negatives for q in open_questions(folder, split="train").questions}
    birds = {"owl", *(f"bird {i}" for i in range(9))}
    of_hens = by_gold["hen", "hen 2"]
    assert len(of_hens) == 8 and birds.issuperset(of_hens)
    of_owls = by_gold["owl",]
    assert len(of_owls) == 8 and {"fish", "owl"}.isdisjoint(of_owls)
    assert list(of_hens) != sorted(of_hens), "drawn, not the first ones"
    assert by_gold["fish",] == ()
    again = write_relevance(layout, things, [])
    assert {q.gold: q.negatives for q in open_questions(again, split="train").questions} == by_gold
