"""What is wrong is said before a model is loaded: here it is one that cannot be."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_encoders import save_checkpoint
from typer.testing import CliRunner

from ragvl import Generator, Reranker, fast_rerank
from ragvl.cli import app
from ragvl.data.synthetic import Places, write_world
from ragvl.mllm import MLLM
from ragvl.retriever import DualEncoder


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that commands are given; do not write into it."""
    folder = tmp_path_factory.mktemp("given")
    model = shutil.copytree(tiny_model("llava"), folder / "model")
    settings = json.loads((model / "config.json").read_text())
    settings["text_config"]["num_hidden_layers"] += 1
    (model / "config.json").write_text(json.dumps(settings))
    save_checkpoint(folder / "encoder", "clip")
    write_world(folder / "world", Places(), counts={"val": 2}, seed=0)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "a.png")
    (folder / "pictures").mkdir()
    shutil.copy(folder / "a.png", folder / "pictures")
    (folder / "captions.csv").write_text("image,caption\nother.png,Another\n")
    os.mkfifo(folder / "pipe")
    (folder / "list.json").write_text("[1]")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """Its files are whole, and its weights are too few."""
    return folder / "model"


def test_the_model_cannot_be_loaded(model: Path) -> None:
    with pytest.raises(ValueError, match="lacks 9 weights"):
        MLLM.from_pretrained(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "banana"}, "device='banana' is unknown"),
        ({"device": "meta"}, "device='meta' cannot be used"),
        ({"dtype": "int9"}, "dtype='int9' is not a floating-point dtype"),
        ({"dtype": "float33"}, "dtype='float33' is not a floating-point dtype"),
        ({"preset": "qwen"}, "unknown preset 'qwen'"),
        ({"template": "captoin"}, "unknown template 'captoin'"),
        ({"threshold": "adaptive"}, "'adaptive' is not known"),
        ({"threshold": 1.5}, "is not a probability"),
        ({"answers": "Yes"}, "answers='Yes'"),
        ({"answers": ("Yes", "")}, "answers="),
        ({"prefix_cache": "8 GiBs"}, "'8 GiBs' is not a size"),
        ({"processor_settings": {"sizes": 8}}, "has no 'sizes'"),
    ],
)
def test_arguments(arguments: dict, message: str, model: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Reranker.from_pretrained(model, **arguments)
    for loader in (Generator.from_pretrained, DualEncoder.from_pretrained):
        if arguments.keys() & {"device", "dtype"}:
            with pytest.raises(ValueError, match=message):
                loader(model, **arguments)


@pytest.mark.parametrize(
    ("query", "documents", "options", "message"),
    [
        ("Red?", ["no.png"], {}, r"no\.png' cannot be used as a picture: there is no such"),
        ("Red?", ["."], {}, "it is a folder"),
        ("Red?", [], {}, "documents is empty"),
        (" ", ["."], {}, "the query is empty"),
        ("Red?", ["."], {"top_k": 0}, "top_k"),
        ("Red?", ["."], {"threshold": 2}, "is not a probability"),
    ],
)
def test_fast_rerank(query, documents, options, message, model: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fast_rerank(query, documents, model=model, **options)


# Of each command its arguments, and what is in the place of one of them
_DATA = "{world} --split val"
_EVALUATE = f"evaluate {_DATA} --encoder {{encoder}} --reranker {{model}} --out {{out}}"
_CALIBRATE = f"calibrate {_DATA} --encoder {{encoder}} --reranker {{model}}"
_COMMANDS = [
    ("rerank q no.png --model {model}", "no.png"),
    ("rerank q {picture} --model {model} --device banana", "'banana' is unknown"),
    ("rerank q {picture} --model {model} --preset qwen", "unknown preset 'qwen'"),
    ("rerank q {picture} --model {model} --threshold adaptive", "'adaptive' is not known"),
    ("rerank q {picture} --model {folder}/modle", "did you mean {folder}/model?"),
    ("warm {picture}s --model {model} --cache {out}", "there is no {picture}s"),
    ("warm {world} --model {folder}/modle --cache {out}", "did you mean {folder}/model?"),
    ("warm {world} --model {model} --cache {picture}", "{picture} is no folder"),
    ("warm {pictures} --model {model} --cache {out} --captions {captions}", "for none of the 1"),
    ("rerank q {picture} --model {model} --cache {picture}", "{picture} is no folder"),
    ("warm {world} --model {model} --cache {out} --template x", "unknown template 'x'"),
    ("index {picture}s --encoder {encoder}", "there is no {picture}s"),
    ("index {world} {out} --split val --encoder {model}", "not a dual encoder"),
    ("index {world} {picture} --split val --encoder {encoder}", "{picture} is no folder"),
    ("search {out} q --reranker {model}", "there is no index {out}"),
    ("search {folder} q --reranker {model}", "holds no saved index"),
    ("ask {out} q --reranker {model} --generator {model}", "there is no index {out}"),
    ("ask {folder} q --reranker {model} --generator {encoder}", "'clip' model"),
    ("data ranking {world} --encoder {folder}/encodre --out {out}", "mean {folder}/encoder?"),
    ("overhead {folder}/modle", "did you mean {folder}/model?"),
    ("overhead {model} --data {picture}s", "{picture}s"),
    (f"{_EVALUATE} --generator {{folder}}/modle", "did you mean {folder}/model?"),
    (f"{_EVALUATE} --threshold adaptive", "'adaptive' is not known"),
    (f"{_EVALUATE} --dtype int9", "'int9' is not a floating-point dtype"),
    (f"{_EVALUATE} --template x", "unknown template 'x'"),
    (_EVALUATE.replace("{encoder}", "{folder}/encodre"), "did you mean {folder}/encoder?"),
    (_EVALUATE.replace("{out}", "{picture}"), "{picture} is no folder"),
    (_EVALUATE.replace("{world}", "{world}s"), "{world}s"),
    (f"{_CALIBRATE} --threshold best", "'best' is none to estimate"),
    (_CALIBRATE.replace("{model}", "{folder}/modle"), "did you mean {folder}/model?"),
    ("rerank ' ' {picture} --model {model}", "the query is empty"),
    ("rerank q\udcff {picture} --model {model}", "half a character"),
    ("rerank q data:image/png;base64,@@@ --model {model}", "is not base64"),
    ("rerank q https://a.b/c.png --model {model}", "URLs are not fetched"),
    (
        "rerank q {picture} --model {model} --chat-template-kwargs '{{\"foo\": 1}}'",
        "reads no 'foo'",
    ),
    ("data ranking {world} --split val --encoder {model} --out {out}", "not a dual encoder"),
    ("data ranking {world} --encoder {encoder} --out {out} --index {picture}", "is no folder"),
    ("data ranking {world} --encoder {encoder} --out {folder}", "is no file"),
    ("data ranking {missing} --encoder owner/e --out {out}", "there is no {missing}"),
    ("train generator --config {pipe}", "it is a pipe, not a file"),
    ("train reranker --config={folder}", "it is a folder, not a file"),
    ("ablate {pipe} --out {folder}", "it is a pipe, not a file"),
    ("overhead {model} --json {folder}", "is no file"),
    ("demo --html {folder}", "is no file"),
    ("evaluate {world} {models} --out {folder} --date never", "date='never'"),
    ("evaluate {world} {models} --out {folder} --chat-template-kwargs '{{'", "is no JSON"),
    ("evaluate {world} {models} --out {folder} --submission {out}", "--generator"),
    ("evaluate {world} {models} --out {folder} --compare {pipe}", "it is a pipe, not a file"),
    (f"{_EVALUATE} --generator {{encoder}}", "'clip' model"),
    (
        "evaluate {missing} --encoder owner/e --reranker owner/r --out {out}",
        "there is no {missing}",
    ),
    (_EVALUATE.replace("{encoder}", "{model}"), "not a dual encoder"),
    ("calibrate {world} {models} --out {folder}", "is no file"),
    ("calibrate {world} {models} --out {list}", "holds no thresholds"),
    ("calibrate {world} {models} --out {out} --work {picture}", "is no folder"),
    (
        "calibrate {missing} --encoder owner/e --reranker owner/r --out {out}",
        "there is no {missing}",
    ),
]


@pytest.mark.parametrize(("command", "message"), _COMMANDS)
def test_commands(command: str, message: str, folder: Path, tmp_path: Path) -> None:
    places = {
        "folder": folder,
        "model": folder / "model",
        "encoder": folder / "encoder",
        "models": f"--encoder {folder / 'encoder'} --reranker {folder / 'model'}",
        "world": folder / "world",
        "picture": folder / "a.png",
        "pictures": folder / "pictures",
        "captions": folder / "captions.csv",
        "pipe": folder / "pipe",
        "list": folder / "list.json",
        "missing": folder / "missing",
        "out": tmp_path / "out",
    }
    before = sorted(folder.rglob("*"))
    outcome = CliRunner().invoke(app, shlex.split(command.format(**places)))
    assert (outcome.exit_code, outcome.stdout) == (1, "")
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("ragvl ")
    assert message.format(**places) in line
    assert sorted(folder.rglob("*")) == before


def test_commands_do_load_the_model(folder: Path, tmp_path: Path) -> None:
    """Where nothing else is wrong."""
    places = {name: folder / name for name in ("model", "world", "encoder")} | {"out": tmp_path}
    for command in (_EVALUATE, _CALIBRATE):
        outcome = CliRunner().invoke(app, command.format(**places).split())
        assert "lacks 9 weights" in outcome.output
