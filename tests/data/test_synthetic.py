"""The drawn world: reproducible, disjoint between splits, with both kinds of the paper's noise."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragvl.data.captions import Captions
from ragvl.data.synthetic import (
    SUBJECTS,
    Places,
    Split,
    Subject,
    split_of,
    write_captions,
    write_world,
)
from ragvl.data.synthetic.drawing import KINDS, SETTINGS, SIZE, VIEWS, Place, draw
from ragvl.data.webqa import WebQA

PLACES = {"train": 60, "val": 40, "test": 80}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    return write_world(folder, Places(), counts=PLACES, questions_each=3, seed=7)


@pytest.fixture(scope="module")
def samples(world: Path) -> list[dict]:
    return list(json.loads((world / "WebQA_train_val.json").read_text()).values())


def names_of(sample: dict) -> set[str]:
    facts = sample["img_posFacts"] + sample["img_negFacts"]
    return {fact["title"].split()[0] for fact in facts}


@pytest.mark.slow
def test_same_seed_same_bytes_and_another_seed_others(world: Path, tmp_path: Path) -> None:
    again = write_world(tmp_path / "again", Places(), counts=PLACES, questions_each=3, seed=7)
    other = write_world(tmp_path / "other", Places(), counts=PLACES, questions_each=3, seed=8)
    for name in ("WebQA_train_val.json", "imgs.tsv", "imgs.lineidx"):
        assert (again / name).read_bytes() == (world / name).read_bytes()
        assert (other / name).read_bytes() != (world / name).read_bytes()


def test_names_and_pictures_are_disjoint_between_splits(world: Path, samples: list[dict]) -> None:
    names: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for sample in samples:
        names[sample["split"]] |= names_of(sample)
    assert not names["train"] & names["val"]
    assert not names["train"] & names["test"]
    assert not names["val"] & names["test"]
    assert all(split_of(name) == split for split, group in names.items() for name in group)
    pictures = {
        split: {document.image for document in WebQA(world, split=split).documents()}
        for split in names
    }
    assert all(len(group) > 60 for group in pictures.values())
    assert not pictures["train"] & pictures["test"]
    assert not pictures["val"] & pictures["test"]


def test_query_caption_noise_a_near_miss_name_in_the_same_view(samples: list[dict]) -> None:
    """Nearly every one-picture question has a distractor whose name differs by few letters."""

    def near(first: str, second: str) -> bool:
        differing = sum(a != b for a, b in zip(first, second, strict=False))
        return first != second and len(first) == len(second) and differing <= 2

    singles = [sample for sample in samples if len(sample["img_posFacts"]) == 1]
    with_twin = [
        sample
        for sample in singles
        if any(
            near(sample["img_posFacts"][0]["title"].split()[0], fact["title"].split()[0])
            for fact in sample["img_negFacts"]
        )
    ]
    assert len(with_twin) == len(singles)


def test_query_image_noise_same_place_same_caption_style(samples: list[dict]) -> None:
    for sample in samples:
        for fact in sample["img_posFacts"]:
            name = fact["title"].split()[0]
            same_place = [f for f in sample["img_negFacts"] if f["title"].split()[0] == name]
            assert len(same_place) == 2  # the other two views
            style = "".join(c for c in fact["caption"] if not c.isdigit())
            assert {"".join(c for c in f["caption"] if not c.isdigit()) for f in same_place} == {
                style
            }
            assert not any(view in fact["caption"] for view in VIEWS)


def test_the_questions_name_the_place_and_have_every_category(samples: list[dict]) -> None:
    assert {sample["Qcate"] for sample in samples} == {
        "color", "shape", "number", "YesNo", "choose", "text"
    }  # fmt: skip
    assert {len(sample["img_posFacts"]) for sample in samples} == {1, 2}
    for sample in samples:
        for fact in sample["img_posFacts"]:
            assert fact["title"].split()[0] in sample["Q"]
        assert not {f["image_id"] for f in sample["img_posFacts"]} & {
            f["image_id"] for f in sample["img_negFacts"]
        }


@pytest.mark.slow
def test_the_default_demo_size_meets_its_promise(tmp_path: Path) -> None:
    write_world(tmp_path, Places(), counts={"test": 520})
    dataset = WebQA(tmp_path, split="test")
    assert len(dataset.questions) >= 500
    assert len(dataset.document_ids("full")) >= 1500
    assert 0 < len(dataset.document_ids("gold")) < len(dataset.document_ids("full"))


@pytest.mark.parametrize("view", VIEWS)
def test_what_is_asked_shows_in_its_view_and_only_there(view: str) -> None:
    place = Place(
        name="Velmora", kind="barn", setting="by the sea", roof_color="red", wall_color="white",
        door_shape="round", num_windows=1, carpet_color="green", table_shape="square",
        num_lamps=1, sign_color="blue", sign_word="INN",
    )  # fmt: skip

    def changed(**values: object) -> bool:
        other = Place(**{**place.__dict__, **values})
        first, second = (
            np.asarray(draw(p, view, np.random.default_rng(3)), np.int64) for p in (place, other)
        )
        assert first.shape == (SIZE, SIZE, 3)
        return bool((abs(first - second) > 30).any())

    shows = {
        "outside": {
            "roof_color": "blue", "wall_color": "black", "door_shape": "pointed", "num_windows": 3
        },
        "inside": {"carpet_color": "red", "table_shape": "round", "num_lamps": 4},
        "sign": {"sign_color": "red", "sign_word": "ZOO"},
    }  # fmt: skip
    for where, properties in shows.items():
        for name, value in properties.items():
            assert changed(**{name: value}) == (where == view), (view, name)
    assert not changed(name="Velmira")
    assert all(changed(kind=kind) for kind in KINDS if kind != "barn")
    assert all(changed(setting=setting) for setting in SETTINGS if setting != "by the sea")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": {"test": 3}}, "even"),
        ({"counts": {"test": -2}}, "even"),
        ({"counts": {"dev": 2}}, "unknown split 'dev'"),
        ({"counts": {"test": 2}, "two_image_share": 1.5}, "between 0 and 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_world(tmp_path, Places(), **arguments)


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_captions_tell_the_same_pictures_without_a_name(
    subject: Subject[Any], tmp_path: Path
) -> None:
    counts: dict[Split, int] = {"val": 4, "test": 6}
    world = write_world(tmp_path / "world", subject, counts=counts, seed=5)
    file = write_captions(tmp_path / "captions", subject, counts=counts, seed=5)
    descriptions = json.loads((world / "descriptions.json").read_text())
    seen = set()
    for split, count in counts.items():
        captions = Captions(file, split=split)
        assert len(captions.questions) == 3 * count
        for question in captions.questions:
            (picture,) = question.gold
            image_id = picture.removesuffix(".png")
            name, _, rest = descriptions[image_id].partition(" ")
            assert question.text == rest
            assert split_of(name) == split
            seen.add(image_id)
    assert seen == set(descriptions)
    rows = dict(line.split(b"\t") for line in (world / "imgs.tsv").read_bytes().splitlines())
    for image_id in seen:
        png = (tmp_path / "captions" / "images" / f"{image_id}.png").read_bytes()
        assert png == base64.b64decode(rows[image_id.encode()])
