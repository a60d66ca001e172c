"""`ragvl index`, `ragvl search` and `ragvl ask`, from files to tables, JSON and pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from tiny_encoders import save_checkpoint, save_text_encoder
from typer.testing import CliRunner

from ragvl.cli import app
from ragvl.retriever import FusedRetriever, Retriever, open_index

CAPTIONS = ["a red square", "two blue circles above the green line", None, "the old house"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("encoders")
    return {
        "--encoder": str(save_checkpoint(folder / "clip", "clip")),
        "--text-encoder": str(save_text_encoder(folder / "text")),
    }


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures, three of them with captions, and two texts."""
    folder = tmp_path_factory.mktemp("collection")
    rng = np.random.default_rng(0)
    lines: list[dict[str, Any]] = []
    for i, caption in enumerate(CAPTIONS):
        pixels = rng.integers(0, 256, (40 + 4 * i, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append({"id": f"picture {i}", "image": f"{i}.png", "caption": caption})
    lines.append({"id": "fact", "text": "the quick brown fox jumps"})
    lines.append({"id": "later", "text": "the lazy dog", "split": "train"})
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def run_index(*arguments: str | Path) -> Result:
    return run("index", *arguments, "--device", "cpu")


@pytest.mark.parametrize(
    ("given", "num_found"), [(["--encoder"], 6), (["--text-encoder"], 5), (None, 6)]
)
def test_an_index_is_of_pictures_or_captions_or_both(
    given: list[str] | None,
    num_found: int,
    encoders: dict[str, str],
    collection: Path,
    tmp_path: Path,
) -> None:
    chosen = [x for name in given or encoders for x in (name, encoders[name])]
    outcome = run_index(collection, tmp_path / "index", *chosen)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout.endswith(f"holds {num_found} documents; {6 - num_found} skipped\n")
    retriever = open_index(tmp_path / "index", device="cpu")
    assert isinstance(retriever, Retriever if given else FusedRetriever)
    assert len(retriever) == num_found
    of_split = run_index(collection, tmp_path / "test", *chosen, "--split", "test")
    assert f"holds {num_found - 1} documents" in of_split.stdout


def test_an_index_is_named_after_its_source(
    encoders: dict[str, str], collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = tmp_path / "my.pictures"
    pictures.mkdir()
    for name in ("0.png", "1.png"):
        (pictures / name).write_bytes((collection / name).read_bytes())
    (pictures / "captions.csv").write_text("image,caption\n0.png,a red square\n")
    text_encoder = ["--text-encoder", encoders["--text-encoder"]]
    outcome = run_index("my.pictures", *text_encoder, "--captions", "my.pictures/captions.csv")
    assert outcome.stdout == "my.pictures.index holds 1 documents; 1 skipped\n"
    assert "captions.csv has captions for 1 of 2 pictures" in outcome.stderr
    held = open_index("my.pictures.index", device="cpu").documents
    assert {id: document.caption for id, document in held.items()} == {"0.png": "a red square"}
    nothing = run_index("my.pictures", "other", *text_encoder)
    assert (nothing.exit_code, (tmp_path / "other").exists()) == (1, False)
    assert "none of 2 documents can be used: no index was written" in nothing.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name what is to be searched by: --encoder for pictures, --text-encoder"),
        ({"--encoder": "./nowhere"}, "no model folder './nowhere'"),
        ({"--text-encoder": "./nowhere"}, "no model folder './nowhere'"),
        ({"--encoder": None, "--fusion": "rrf"}, "--fusion is of --encoder and --text-encoder"),
        ({"--encoder": None, "--text-encoder": None, "--fusion": "2"}, "'2' is no fusion"),
        ({"--encoder": None, "--captions": "./nowhere.csv"}, "nowhere.csv is missing"),
    ],
)
def test_what_makes_no_index_is_refused_before_the_work(
    options: dict[str, str | None],
    message: str,
    encoders: dict[str, str],
    collection: Path,
    tmp_path: Path,
) -> None:
    given = [x for name, value in options.items() for x in (name, value or encoders[name])]
    outcome = run_index(collection, tmp_path / "index", *given)
    assert (outcome.exit_code, outcome.stdout) == (1, "")
    assert message in outcome.stderr
    assert not (tmp_path / "index").exists()
