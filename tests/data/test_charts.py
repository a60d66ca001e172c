"""The second drawn world: what is asked shows in its chart and only there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ragvl.data.synthetic import Places, split_of, write_world
from ragvl.data.synthetic.charts import KINDS, VIEWS, Charts, Company
from ragvl.data.synthetic.drawing import KINDS as PLACE_KINDS
from ragvl.data.webqa import WebQA

COMPANY = Company("Velmora", "bank", 3, 1, "red", 3, "blue", "round", "green", True)


def test_charts_are_written_as_webqa_and_share_nothing_with_places(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "charts", Charts(), counts={"val": 20, "test": 40}, seed=7)
    again = write_world(tmp_path / "again", Charts(), counts={"val": 20, "test": 40}, seed=7)
    for name in ("WebQA_train_val.json", "imgs.tsv", "imgs.lineidx"):
        assert (folder / name).read_bytes() == (again / name).read_bytes()
    dataset = WebQA(folder, split="test")
    assert len(dataset.questions) >= 35
    assert len(dataset.document_ids()) >= 100
    categories = {question.category for question in dataset.questions}
    assert categories == {"color", "shape", "number", "YesNo", "choose"}
    assert {len(question.gold) for question in dataset.questions} == {1, 2}
    for question in dataset.questions:
        for id in question.gold:
            caption = dataset.document(id).caption or ""
            words = {word.strip(",:") for word in caption.split()}
            words_of_question = {word.strip("?") for word in question.text.split()}
            assert any(
                split_of(word) == "test" for word in words & words_of_question if word.istitle()
            )
            assert not any(view in caption for view in VIEWS)
    assert not set(KINDS) & set(PLACE_KINDS)
    places = write_world(tmp_path / "places", Places(), counts={"test": 40}, seed=7)
    pictures = [
        {document.image for document in WebQA(world, split="test").documents()}
        for world in (folder, places)
    ]
    assert not pictures[0] & pictures[1]


@pytest.mark.parametrize("view", VIEWS)
def test_what_is_asked_shows_in_its_chart_and_only_there(view: str) -> None:
    def changed(**values: object) -> bool:
        first, second = (
            np.asarray(Charts().draw(company, view, np.random.default_rng(3)), np.int64)
            for company in (COMPANY, replace(COMPANY, **values))  # type: ignore[arg-type]
        )
        assert first.shape == (48, 48, 3)
        return bool((abs(first - second) > 30).any())

    shows = {
        "sales": {"num_bars": 4, "tallest": 0, "tallest_color": "blue"},
        "staff": {"num_slices": 4, "largest_color": "red"},
        "profit": {"marker": "square", "line_color": "red", "rises": False},
    }
    for where, properties in shows.items():
        for name, value in properties.items():
            assert changed(**{name: value}) == (where == view), (view, name)
    assert not changed(name="Velmira")
    assert not changed(kind="farm")


@pytest.mark.parametrize("seed", range(5))
def test_the_tallest_and_the_largest_are_so(seed: int) -> None:
    """Counted in pixels: the named color covers most."""
    pixels = {
        view: np.asarray(Charts().draw(COMPANY, view, np.random.default_rng(seed)))
        for view in ("sales", "staff")
    }
    columns = (pixels["sales"] == (205, 35, 35)).all(-1).any(0)
    tallest = (pixels["sales"] == (205, 35, 35)).all(-1).sum(0).max()
    others = (pixels["sales"] == (185, 185, 190)).all(-1).sum(0).max()
    assert columns.any() and tallest > others
    blue = (pixels["staff"] == (40, 80, 215)).all(-1).sum()
    greys = (
        (pixels["staff"].max(-1) == pixels["staff"].min(-1))
        & (pixels["staff"].max(-1) > 150)
        & (pixels["staff"].max(-1) < 250)
    )
    assert blue > greys.sum() * 0.9


def test_every_picture_is_described(tmp_path: Path) -> None:
    folder = write_world(tmp_path, Charts(), counts={"test": 4})
    described = json.loads((folder / "descriptions.json").read_text())
    assert set(described) == {
        line.split(b"\t")[0].decode() for line in (folder / "imgs.tsv").read_bytes().splitlines()
    }
    with pytest.raises(ValueError, match="even"):
        write_world(tmp_path, Charts(), counts={"test": 3})
