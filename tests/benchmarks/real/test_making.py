"""All sets are made of packages in one go, once, and a missing package is said in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from real import packages
from real.__main__ import app
from real.layout import SETS, SPLITS, Layout
from real.packages import PACKAGES, sha256_of
from tiny_packages import png, rcc, write_deb
from typer.testing import CliRunner

from ragvl.data.formats import open_questions

BOARD = """{
"title": qsTr("Thing3"), "image2": "qrc:/r/tower.webp",
"text": qsTr("Thing3 was built a long time ago.") }"""


def _write_packages(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages of a few files each, which are those that are pinned from now on."""
    stamps = {}
    for number in range(20):
        path = f"usr/share/tuxpaint/stamps/household/thing{number}"
        stamps[f"{path}.png"] = png((200, 10, number, 255))
        stamps[f"{path}.txt"] = f"A thing{number}.\nde.utf8=Ein Ding{number}.".encode()
    words = {f"r/words_sample/word{name}.webp": png((1, 2, ord(name), 255)) for name in "ABCDEFGH"}
    photos = {"r/board/board1.qml": BOARD.encode(), "r/tower.webp": png((5, 5, 5, 255))}
    gcompris = {
        "usr/share/gcompris-qt/rcc/explore_monuments.rcc": rcc(photos),
        "usr/share/gcompris-qt/rcc/lang.rcc": rcc(words),
    }
    figure = (
        "<html><title>1. Menu {0}</title>"
        "<div class='figure'><p class='title'>Figure 1. Menu {0}</p>"
        "<div class='mediaobject'><img src='images/{0}.png'/></div></div></html>"
    )
    manual = {}
    for number in range(10):
        path = "usr/share/gimp/2.0/help/en/"
        manual[f"{path}{number}.html"] = figure.format(number).encode()
        manual[f"{path}images/{number}.png"] = png((number, 9, 9, 255), (60, 60))
    layout.packages.mkdir(parents=True)
    files = {package.name: package.file for package in PACKAGES}
    tiny = {"tuxpaint-stamps-default": stamps, "gcompris-qt-data": gcompris, "gimp-help-en": manual}
    sums = {
        name: sha256_of(write_deb(layout.packages / files[name], held))
        for name, held in tiny.items()
    }
    pinned = [
        replace(package, sha256=sums.get(package.name, package.sha256)) for package in PACKAGES
    ]
    monkeypatch.setattr(packages, "PACKAGES", pinned)


def test_sets_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path / "real")
    _write_packages(layout, monkeypatch)
    run = CliRunner().invoke(app, ["sets", "--root", str(layout.root)])
    assert run.exit_code == 0, run.output
    figures = json.loads(layout.figures.read_text())
    assert tuple(figures["sets"]) == SETS
    for name in SETS:
        for split in SPLITS:
            counts = figures["sets"][name][split]
            assert f"{split} {counts['questions']} questions" in run.output
            read = open_questions(layout.sets / name, split=split)
            assert (len(read.questions), len(read.document_ids())) == tuple(counts.values())
            assert not read.problems.counts
        held = {split: open_questions(layout.sets / name, split=split) for split in SPLITS}
        calibration = open_questions(layout.calibration / name, split="val")
        assert calibration.questions == held["val"].questions
        searched = set(calibration.document_ids())
        val, test = (set(held[split].document_ids()) for split in ("val", "test"))
        assert searched >= val and searched.isdisjoint(test)
        there = len(val) + len(held["train"].document_ids())
        assert len(searched) == max(len(val), min(len(test), there))

    pairs = [json.loads(line) for line in layout.pairs.read_text().splitlines()]
    assert {pair["source"] for pair in pairs} == {"stamps", "gcompris", "gimp"}
    assert all((layout.root / pair["image"]).is_file() for pair in pairs)
    held_out = {
        document["caption"]
        for line in (layout.sets / "named" / "documents.jsonl").read_text().splitlines()
        if (document := json.loads(line))["split"] != "train"
    }
    assert held_out and held_out.isdisjoint(pair["text"] for pair in pairs)

    before = layout.figures.stat().st_mtime_ns
    run = CliRunner().invoke(app, ["sets", "--root", str(layout.root)])
    assert "there already" in run.output
    assert layout.figures.stat().st_mtime_ns == before


@pytest.mark.parametrize("gone", ["tuxpaint-stamps-default", "gimp-help-en"])
def test_a_missing_package_is_named_before_the_work(
    gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path / "real")
    _write_packages(layout, monkeypatch)
    (file,) = (package.file for package in PACKAGES if package.name == gone)
    (layout.packages / file).unlink()
    run = CliRunner().invoke(app, ["sets", "--root", str(layout.root)])
    assert run.exit_code == 1
    assert f"put {file} into {layout.packages}" in run.output
    assert "Traceback" not in run.output
    assert not layout.pictures.exists()
