"""The `ragvl` command: help, rerank, and errors that a person can act on."""

from __future__ import annotations

import base64
import json
import math
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from data_files import webqa_sample, webqa_text_fact, write_picture, write_webqa
from PIL import Image
from tiny_models import ARCHITECTURES
from transformers.utils.logging import enable_progress_bar
from typer.main import get_command
from typer.testing import CliRunner

from ragvl import Document, Query, Reranker
from ragvl.cli import app, wait_briefly
from ragvl.messages import visible
from ragvl.mllm import MLLM
from ragvl.ops.backends import OPERATIONS
from ragvl.training.command import recipes

ASSETS = files("ragvl") / "assets"


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = []
    for name, color in (("red.png", "red"), ("blue.png", "blue")):
        Image.new("RGB", (48, 48), color).save(tmp_path / name)
        paths.append(str(tmp_path / name))
    return paths


def test_help_names_every_command() -> None:
    outcome = CliRunner().invoke(app, ["--help"])
    assert outcome.exit_code == 0
    for command in ("demo", "rerank", "warm", "doctor"):
        assert command in outcome.output


def test_rerank_prints_each_picture_with_its_relevance(
    tiny_model: Callable[[str], Path], pictures: list[str]
) -> None:
    model = str(tiny_model(ARCHITECTURES[0]))
    command = ["rerank", "Is it red?", *pictures, "--model", model, "--device", "cpu"]
    outcome = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
    assert outcome.exit_code == 0, outcome.output
    lines = [line for line in outcome.output.splitlines() if ".png" in line]
    assert len(lines) == 2
    assert {Path(path).name for path in pictures} == {"red.png", "blue.png"}
    assert all(any(Path(path).name in line for line in lines) for path in pictures)


def test_rerank_finds_a_model_of_a_subfolder(
    tiny_model: Callable[[str], Path], pictures: list[str], tmp_path: Path
) -> None:
    shutil.copytree(tiny_model(ARCHITECTURES[0]), tmp_path / "models" / "mine")
    command = ["rerank", "q", pictures[0], "--model", str(tmp_path / "models"), "--device", "cpu"]
    found = CliRunner().invoke(app, [*command, "--subfolder", "mine", "--json"])
    assert found.exit_code == 0, found.output
    assert len(json.loads(found.stdout)["results"]) == 1
    for options, problem in (
        (["--subfolder", "other"], "there is no folder 'other' in"),
        (["--subfolder", "mine", "--revision", "v1"], "revision='v1' is of a repository"),
        (["--subfolder", "mine", "--adapters", "./nowhere"], "no model folder './nowhere'"),
    ):
        refused = CliRunner().invoke(app, [*command, *options])
        assert refused.exit_code == 1 and problem in refused.output


ODD_NAMES = ["[red]a.png", "x\x1b[31m.png", "two\nlines.png", "a[/b].png"]


def odd_pictures(folder: Path) -> list[str]:
    (folder / "a[").mkdir()
    deep = folder / "/".join(["a-long-folder-name"] * 9) / "b.png"
    deep.parent.mkdir(parents=True)
    paths = [str(folder / name) for name in ODD_NAMES] + [str(deep)]
    for path in paths:
        Image.new("RGB", (48, 48), "red").save(path)
    return paths


def test_rerank_prints_whole_names_and_json(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    paths = odd_pictures(tmp_path)
    model = ["--model", str(tiny_model(ARCHITECTURES[0])), "--device", "cpu"]
    enable_progress_bar()
    table = CliRunner().invoke(app, ["rerank", "Is it red?", *paths, *model])
    assert (table.exit_code, "Loading" in table.stderr) == (0, False), table.output
    head, *rows = [line.split("\t") for line in table.stdout.splitlines()]
    assert head == ["document", "relevance", "kept"]
    assert [name for name, _, _ in rows] == list(map(visible, paths))  # all score alike
    outcome = CliRunner().invoke(app, ["rerank", "Is it red?", *paths, *model, "--json"])
    printed = json.loads(outcome.stdout)
    assert (printed["query"], printed["threshold"]) == ("Is it red?", 0.5)
    assert [result["picture"] for result in printed["results"]] == paths
    relevances = [f"{result['relevance']:.4f}" for result in printed["results"]]
    assert relevances == [relevance for _, relevance, _ in rows]
    for result in printed["results"]:
        assert 1 / (1 + math.exp(-result["raw"])) == pytest.approx(result["relevance"], rel=1e-6)
    failed = CliRunner().invoke(app, ["rerank", "q", "no\x1b[31m\n[/b].png", *model, "--json"])
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert r"no\x1b[31m" in failed.stderr.splitlines()[-1]
    assert "\x1b" not in failed.stderr


def test_rerank_takes_data_urls(tiny_model: Callable[[str], Path], pictures: list[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    Image.fromarray(noise).save(pictures[0])
    url = "data:image/png;base64," + base64.b64encode(Path(pictures[0]).read_bytes()).decode()
    assert "//" in url  # which a path would make one
    model = ["--model", str(tiny_model(ARCHITECTURES[0])), "--device", "cpu"]
    outcome = CliRunner().invoke(app, ["rerank", "Is it red?", url, pictures[0], *model, "--json"])
    first, second = json.loads(outcome.stdout)["results"]
    assert {first["picture"], second["picture"]} == {url, pictures[0]}
    assert first["relevance"] == second["relevance"]
    table = CliRunner().invoke(app, ["rerank", "Is it red?", url, *model])
    assert len(table.stdout.splitlines()[1]) < 300 < len(url)


@pytest.mark.slow
def test_rerank_takes_texts_documents_and_a_picture_query(
    tiny_mllm: Callable[[str], MLLM],
    tiny_model: Callable[[str], Path],
    pictures: list[str],
    tmp_path: Path,
) -> None:
    """All kinds of documents and queries, scored as in Python."""
    parts = [{"image": "red.png"}, "Seen twice.", {"image": "blue.png"}]
    lines = [{"parts": parts, "id": "pair"}, {"text": "Blue."}, {"image": "lost.png"}]
    own = tmp_path / "documents.jsonl"
    own.write_text("\n".join(map(json.dumps, lines)))
    documents = [
        Document(pictures[0]),
        Document(parts=[Path(pictures[0]), "Seen twice.", Path(pictures[1])]),
        Document(text="Blue."),
        Document(text="The roof is red."),
    ]
    command = ["rerank", "--model", str(tiny_model("qwen2_vl")), "--device", "cpu"]
    command += ["--text", "The roof is red."]
    reranker = Reranker(tiny_mllm("qwen2_vl"))
    for text, picture in [("Is it red?", None), ("Is it this?", pictures[1]), ("", pictures[1])]:
        extra = [] if picture is None else ["--query-image", picture]
        outcome = CliRunner().invoke(app, [*command, *extra, "--json", text, pictures[0], str(own)])
        assert outcome.exit_code == 0, outcome.output
        printed = json.loads(outcome.stdout)
        assert (printed["query"], printed.get("query_picture")) == (text, picture)
        expected = reranker.score([(Query(text or None, picture), one) for one in documents])
        results = {result["index"]: result for result in printed["results"]}
        scores = [results[i]["relevance"] for i in range(len(documents))]
        assert scores == pytest.approx(expected.tolist(), abs=1e-6)
        assert results[0]["picture"] == pictures[0]
        assert results[1]["id"] == "pair"
        assert [list(part) for part in results[1]["parts"]] == [["picture"], ["text"], ["picture"]]
        assert [results[i]["text"] for i in (2, 3)] == ["Blue.", "The roof is red."]
        assert "missing picture: 1" in outcome.stderr
    table = CliRunner().invoke(app, [*command, "Is it red?", pictures[0], str(own)])
    shown = {line.split("\t")[0] for line in table.stdout.splitlines()[1:]}
    assert shown == {pictures[0], "'The roof is red.'", "pair", "'Blue.'"}


def test_rerank_refuses_what_it_has_no_place_for(
    tiny_model: Callable[[str], Path], pictures: list[str]
) -> None:
    model = ["--model", str(tiny_model(ARCHITECTURES[0])), "--device", "cpu"]
    for command, message in [
        (["", *pictures], "the query is empty"),
        (["Red?"], "there is nothing to rank: name pictures, folders, or give --text"),
        (["Red?", *pictures, "--template", "newest"], "newest"),
        (["Red?", "--text", " "], "the text is empty"),
        (["Red?", *pictures, "--query-image", "lost.png"], "lost.png"),
        (["Red?", *pictures, "--instruction", "Judge."], "no place for the instruction"),
        (["Red?", "lost.jsonl"], "there is no lost.jsonl"),
    ]:
        failed = CliRunner().invoke(app, ["rerank", *command, *model])
        assert failed.exit_code == 1
        assert message in failed.stderr
        assert "Traceback" not in failed.output


def test_rerank_takes_folders_patterns_and_lists_with_captions(
    tiny_mllm: Callable[[str], MLLM],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    colors = {"a/red.png": "red", "a/deep/blue.png": "blue", "b/green.png": "green"}
    for name, color in colors.items():
        write_picture(tmp_path / name, color)
    (tmp_path / "a" / "broken.png").write_bytes(b"no picture")
    lines = (
        "image,caption\nred.png,Red\nb/green.png,A green one\nb/green.png,Another\nlost.png,Lost\n"
    )
    (tmp_path / "a" / "captions.csv").write_text(lines)
    (tmp_path / "own.jsonl").write_text('{"image": "a/red.png", "caption": "My own", "id": "own"}')
    model = ["--model", str(tiny_model(ARCHITECTURES[0])), "--device", "cpu"]
    command = ["rerank", "Is it red?", "a", "b/*.png", "own.jsonl", *model]
    command += ["--captions", "a/captions.csv"]
    outcome = CliRunner().invoke(app, [*command, "--json"])
    assert outcome.exit_code == 0, outcome.output
    results = sorted(json.loads(outcome.stdout)["results"], key=lambda result: result["index"])
    paths = ["a/deep/blue.png", "a/red.png", "b/green.png", "a/red.png"]
    captions = [None, "Red", "A green one", "My own"]
    assert [result["picture"] for result in results] == paths
    assert [result.get("caption") for result in results] == captions
    assert [result.get("id") for result in results] == ["deep/blue.png", "red.png", None, "own"]
    documents = [Document(path, caption) for path, caption in zip(paths, captions, strict=True)]
    expected = Reranker(tiny_mllm(ARCHITECTURES[0])).score([("Is it red?", d) for d in documents])
    assert [result["relevance"] for result in results] == pytest.approx(expected.tolist(), abs=1e-6)
    for line in (
        "broken picture: 1",
        "two captions: 1",
        "a/captions.csv has captions for 2 of 4 pictures",
    ):
        assert line in outcome.stderr
    assert "no pictures by their names" not in outcome.stderr  # the captions are of use
    table = CliRunner().invoke(app, [*command, "a/captions.csv"]).stdout.splitlines()
    assert table[0].split("\t") == ["document", "caption", "relevance", "kept"]
    shown = {tuple(line.split("\t")[:2]) for line in table[1:]}
    assert shown == {
        ("a/deep/blue.png", ""),
        ("a/red.png", "Red"),
        ("b/green.png", "A green one"),
        ("own", "My own"),
    }


def test_rerank_looks_at_every_path_before_it_loads_a_model(
    pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no picture")
    (tmp_path / "captions.csv").write_text("image,caption\nother.png,Other\n")
    (tmp_path / "other.csv").write_text("picture,text\n")
    for given, message in [
        (["nowhere.png"], "there is no nowhere.png"),
        (["*.jpeg"], "no file fits the pattern '*.jpeg'"),
        (["note.png"], "'note.png' is not a picture that can be read here"),
        (["https://example.org/a.png"], "URLs are not fetched: download it"),
        (["empty"], "empty holds no documents"),
        (["broken"], "document 'broken/a.png' is not a picture that can be read here"),
        (["broken"], "there is nothing to rank: none of the documents can be used"),
        ([pictures[0], "--query-image", "nowhere.png"], "there is no such file"),
        ([pictures[0], "--captions", "nowhere.csv"], "nowhere.csv is missing"),
        ([pictures[0], "--captions", "other.csv"], "other.csv has no usable caption; 1 x broken"),
        ([*pictures, "--captions", "captions.csv"], "captions.csv has a caption for none of the 2"),
    ]:
        failed = CliRunner().invoke(app, ["rerank", "Red?", *given, "--model", "/no/such/model"])
        assert (failed.exit_code, failed.stdout) == (1, "")
        assert message in failed.stderr
        assert "Errno" not in failed.stderr and "/no/such/model" not in failed.stderr


def test_warm_knows_documents_of_every_kind(
    tiny_model: Callable[[str], Path],
    pictures: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = [
        {"image": pictures[0], "caption": "A mill"},
        {"text": "Anna Brandt built the mill."},
        {"parts": [{"image": pictures[0]}, "and", {"image": pictures[1]}]},
    ]
    own = tmp_path / "documents.jsonl"
    own.write_text("\n".join(map(json.dumps, lines)))
    command = ["warm", str(own), "--model", str(tiny_model("qwen2_vl")), "--device", "cpu"]
    command += ["--cache", str(tmp_path / "cache"), "--keep", "kv"]
    assert "3 built, 0 there already, 0 skipped" in CliRunner().invoke(app, command).output
    assert "0 built, 3 there already, 0 skipped" in CliRunner().invoke(app, command).output
    limited = CliRunner().invoke(app, [*command, "--template", "plain"])
    assert "1 built, 0 there already, 2 skipped" in limited.output
    assert "'plain' is about one picture" in caplog.text


def test_every_command_with_a_table_prints_json(tmp_path: Path) -> None:
    def printed(*arguments: str) -> Any:
        outcome = CliRunner().invoke(app, [*arguments, "--json"])
        assert outcome.exit_code == 0, outcome.output
        return json.loads(outcome.stdout)

    findings = printed("doctor")
    assert findings["versions"]["python"] == platform.python_version()
    assert {row["operation"] for row in findings["backends"]} == set(OPERATIONS)
    assert printed("train", "recipes").keys() == recipes().keys()
    picture = tmp_path / "a.png"
    write_picture(picture)
    line = '{"id": "q", "question": "Who?", "images": ["a.png"], "gold": ["a.png"]}\n'
    (tmp_path / "own.jsonl").write_text(line * 2)
    checked = printed("data", "check", str(tmp_path / "own.jsonl"))
    (of_split,) = checked["splits"]
    assert (of_split["questions"], of_split["documents"], of_split["split"]) == (1, 1, None)
    assert of_split["problems"]["duplicate id"]["count"] == 1
    drawn = printed("data", "draw", str(tmp_path / "world"), "--val", "2")
    assert (drawn["subject"], drawn["things"]) == ("places", {"val": 2})
    assert Path(drawn["written"]).exists()
    commands = dict(get_command(app).commands)  # type: ignore[attr-defined]
    for group in (commands.pop("data"), commands.pop("train")):
        commands |= group.commands
    without = {
        name
        for name, command in commands.items()
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert without == {"serve", "reranker", "generator"}  # which print no table


def test_rerank_errors_are_one_line(tiny_model: Callable[[str], Path], pictures: list[str]) -> None:
    model = str(tiny_model(ARCHITECTURES[0]))
    missing = CliRunner().invoke(
        app, ["rerank", "q", "nowhere.png", "--model", model, "--device", "cpu"]
    )
    assert missing.exit_code == 1
    assert "nowhere.png" in missing.output
    no_model = CliRunner().invoke(app, ["rerank", "q", *pictures, "--model", "/no/such/folder"])
    assert no_model.exit_code == 1
    assert "/no/such/folder" in no_model.output
    assert "Traceback" not in missing.output + no_model.output
    for wrong in ("nan", "inf", "1e9", "-1"):
        command = ["rerank", "q", *pictures, "--model", "/no/such/folder"]
        outcome = CliRunner().invoke(app, [*command, "--threshold", wrong])
        assert outcome.exit_code == 1
        assert "is not a probability" in outcome.output, "before the model is looked for"


def test_what_the_chat_template_reads_can_be_set(
    tiny_model: Callable[[str], Path], pictures: list[str], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model("qwen2_vl"), tmp_path / "model")
    template = folder / "chat_template.jinja"
    spoken = "On ' + strftime_now('%d %b') + ' be ' + tone + '."
    template.write_text(template.read_text().replace("You are a helpful assistant.", spoken))
    model = ["--model", str(folder), "--device", "cpu", "--cache", str(tmp_path / "cache")]
    tone = ["--chat-template-kwargs", '{"tone": "curt"}']

    def warm(*options: str) -> str:
        outcome = CliRunner().invoke(app, ["warm", str(Path(pictures[0]).parent), *model, *options])
        return outcome.output

    assert "2 built" in warm(*tone)
    assert "0 built, 2 there already" in warm(*tone, "--date", "2024-07-26")
    assert "2 built" in warm(*tone, "--date", "2026-11-28")
    assert "ragvl warm: date='soon': expected one such" in warm(*tone, "--date", "soon")
    assert "the chat template reads no 'mood'" in warm("--chat-template-kwargs", '{"mood": 1}')
    assert "is no JSON: Expecting" in warm("--chat-template-kwargs", "tone")
    assert "must be a JSON object" in warm("--chat-template-kwargs", "[1]")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [ARCHITECTURES[0], "paligemma"])
def test_warm_fills_a_cache_that_rerank_uses(
    architecture: str, tiny_model: Callable[[str], Path], pictures: list[str], tmp_path: Path
) -> None:
    """With prefixes, or where none can be reused with visual tokens."""
    model = ["--model", str(tiny_model(architecture)), "--device", "cpu"]
    cache = ["--cache", str(tmp_path / "cache")]
    folder = str(Path(pictures[0]).parent)
    first = CliRunner().invoke(app, ["warm", folder, *model, *cache])
    assert first.exit_code == 0, first.output
    assert "2 built, 0 there already, 0 skipped" in first.output
    again = CliRunner().invoke(app, ["warm", folder, *model, *cache])
    assert "0 built, 2 there already, 0 skipped" in again.output
    command = ["rerank", "Is it red?", *pictures, *model]
    outcomes = [CliRunner().invoke(app, [*command, *extra]) for extra in ([], cache)]
    assert outcomes[0].stdout == outcomes[1].stdout
    assert outcomes[0].stdout.count(".png") == 2
    assert "2 of 2 prefixes were in the cache\n" in outcomes[1].stderr
    assert "in the cache" not in outcomes[0].stderr


@pytest.mark.slow
def test_compressed_prefixes_are_of_use_to_the_same_compression(
    tiny_model: Callable[[str], Path], pictures: list[str], tmp_path: Path
) -> None:
    model = ["--model", str(tiny_model("llava")), "--device", "cpu"]
    cache = ["--cache", str(tmp_path / "cache")]
    folder = str(Path(pictures[0]).parent)
    warm = ["warm", folder, *model, *cache, "--keep", "kv"]
    assert CliRunner().invoke(app, [*warm, "--compression", "int4"]).exit_code == 0
    rerank = ["rerank", "Is it red?", *pictures, *model]
    for extra, known in ((["--compression", "int4"], 2), (["--compression", "int8"], 0), ([], 0)):
        outcome = CliRunner().invoke(app, [*rerank, *cache, *extra])
        assert f"{known} of 2 prefixes were in the cache" in outcome.stderr
    unknown = CliRunner().invoke(app, [*warm, "--compression", "int2"])
    assert "int8" in unknown.stderr and "int4" in unknown.stderr
    nowhere = CliRunner().invoke(app, [*rerank, "--compression", "int4"])
    assert "--compression int4 is of a folder of prefixes: name --cache" in nowhere.stderr


def test_warm_counts_and_names_what_it_cannot_read(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    model = ["--model", str(tiny_model(ARCHITECTURES[0])), "--device", "cpu"]
    folder, cache = tmp_path / "pictures", ["--cache", str(tmp_path / "cache")]
    folder.mkdir()
    write_picture(folder / "good.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "drawing.svg").write_text("<svg/>")
    for name in ("notes.txt", "more.txt", "plain"):
        (folder / name).touch()
    outcome = CliRunner().invoke(app, ["warm", str(folder), *model, *cache])
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout.startswith("1 built, 0 there already, 2 skipped; ")
    assert "drawing.svg" in outcome.stderr
    assert "2 .txt, 1 without a suffix" in outcome.stderr
    printed = json.loads(
        CliRunner().invoke(app, ["warm", str(folder), *model, *cache, "--json"]).stdout
    )
    assert [printed[name] for name in ("built", "known", "skipped")] == [0, 1, 2]
    assert printed["passed_over"] == {".txt": 2, "without a suffix": 1}
    lines = ['{"image": "pictures/good.png"}', '{"image": "lost.png"}', "{}"]
    own = tmp_path / "own.jsonl"
    own.write_text("\n".join(lines))
    outcome = CliRunner().invoke(app, ["warm", str(own), *model, *cache])
    assert outcome.stdout.startswith("0 built, 1 there already, 2 skipped; ")
    assert "missing picture: 1" in outcome.stderr
    strict = CliRunner().invoke(app, ["warm", str(folder), *model, *cache, "--strict"])
    assert strict.exit_code == 1
    assert "drawing.svg" in strict.stderr
    (folder / "good.png").unlink()
    assert CliRunner().invoke(app, ["warm", str(folder), *model, *cache]).exit_code == 1


def test_warm_cuts_long_captions_where_asked(
    tiny_model: Callable[[str], Path], pictures: list[str], tmp_path: Path
) -> None:
    documents = tmp_path / "documents.jsonl"
    documents.write_text(json.dumps({"image": pictures[0], "caption": "word " * 2000}))
    command = ["warm", str(documents), "--model", str(tiny_model(ARCHITECTURES[0]))]
    command += ["--device", "cpu", "--cache", str(tmp_path / "cache")]
    assert "0 built, 0 there already, 1 skipped" in CliRunner().invoke(app, command).output
    cut = CliRunner().invoke(app, [*command, "--caption-tokens", "30"])
    assert "1 built, 0 there already, 0 skipped" in cut.output


def test_warm_errors_are_one_line(
    tiny_model: Callable[[str], Path], pictures: list[str], tmp_path: Path
) -> None:
    model = ["--model", str(tiny_model(ARCHITECTURES[0])), "--device", "cpu"]
    cache = ["--cache", str(tmp_path / "cache")]
    Path(pictures[0]).write_bytes(b"no picture")
    folder = str(Path(pictures[0]).parent)
    lenient = CliRunner().invoke(app, ["warm", folder, *model, *cache])
    assert "1 built, 0 there already, 1 skipped" in lenient.output
    for command, message in [
        (["warm", folder, *model, *cache, "--strict"], "is not a picture"),
        (["warm", str(tmp_path / "nowhere"), *model, *cache], "there is no"),
        (["warm", folder, *model, "--cache", pictures[1]], "is no folder"),
        (["warm", folder, *model, *cache, "--disk", "much"], "much"),
    ]:
        failed = CliRunner().invoke(app, command)
        assert failed.exit_code == 1
        assert message in failed.output
        assert "Traceback" not in failed.output


def test_import_is_light_and_the_function_wins_over_its_module() -> None:
    code = (
        "import sys, ragvl; assert 'torch' not in sys.modules, 'torch was imported';"
        "from ragvl.fast_rerank import fast_rerank as f; from ragvl import fast_rerank as g;"
        "import ragvl.fast_rerank; assert callable(f) and f is g is ragvl.fast_rerank;"
        "assert ragvl.Document.__name__ == 'Document'; assert 'Reranker' in dir(ragvl);"
        "print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    import ragvl

    with pytest.raises(AttributeError, match="no attribute 'slow_rerank'"):
        ragvl.slow_rerank  # noqa: B018


def test_data_draw_writes_what_the_other_commands_read(tmp_path: Path) -> None:
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["data", *arguments])

    outcome = invoke("draw", str(tmp_path / "w"), "--test", "4", "--val", "2", "--questions", "3")
    assert outcome.exit_code == 0, outcome.output
    assert "6 places" in outcome.output
    report = invoke("check", str(tmp_path / "w"), "--split", "test").output
    assert 4 < int(report.removeprefix("test: ").split()[0]) <= 12  # two may be the same
    whole = invoke("check", str(tmp_path / "w")).output.splitlines()
    assert [line.partition(": ")[0] for line in whole] == ["val", "test"]
    assert "12 documents, 0 problems" in report
    outcome = invoke("draw", str(tmp_path / "c"), "--subject", "charts", "--test", "4")
    assert "4 charts" in outcome.output
    assert ", profit: " in (tmp_path / "c" / "descriptions.json").read_text()
    outcome = invoke("draw", str(tmp_path / "k"), "--test", "4", "--captions")
    assert "12 usable questions" in invoke("check", str(tmp_path / "k" / "captions.json")).output
    for wrong, message in (((), "nothing to draw"), (("--test", "3"), "not even")):
        outcome = invoke("draw", str(tmp_path / "wrong"), *wrong)
        assert outcome.exit_code == 1
        assert message in outcome.output
    assert not (tmp_path / "wrong").exists()


def test_facts_in_words_are_documents_where_modality_says_so(tmp_path: Path) -> None:
    fact = webqa_text_fact("s0")
    samples = {
        "picture": webqa_sample(txt_negFacts=[fact]),
        "text": webqa_sample(img_posFacts=[], txt_posFacts=[fact]),
    }
    folder = str(write_webqa(tmp_path, samples))
    for modality, counts in {"": (1, 2), "image": (1, 2), "text": (1, 1), "both": (2, 3)}.items():
        option = ["--modality", modality] if modality else []
        command = ["data", "check", folder, "--split", "test", *option, "--json"]
        (checked,) = json.loads(CliRunner().invoke(app, command).stdout)["splits"]
        assert (checked["questions"], checked["documents"]) == counts
        assert not checked["problems"]
    own = tmp_path / "own.jsonl"
    own.write_text('{"id": "q", "question": "Who?", "texts": ["Anna."]}')
    refused = CliRunner().invoke(app, ["data", "check", str(own), "--modality", "text"])
    assert refused.exit_code == 1
    assert "modality='text' is of WebQA" in refused.stderr


def test_data_check_says_what_is_wrong(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    good = '{"id": "q", "question": "Who?", "images": ["a.png"], "gold": ["a.png"]}'
    file = tmp_path / "own.jsonl"
    lost = good.replace("a.png", "z.png").replace('"q"', '"r"')
    file.write_text(f"{good}\n{good}\n{lost}\n")
    outcome = CliRunner().invoke(app, ["data", "check", str(file)])
    assert outcome.exit_code == 0, outcome.output
    lines = outcome.output.splitlines()
    assert lines[0] == "duplicate id: 1"
    assert "line 2" in lines[1]
    assert lines[2] == "missing picture: 1"
    assert "gold picture missing: 1" in lines
    assert lines[-1] == "1 usable questions, 1 documents, 3 problems"
    assert CliRunner().invoke(app, ["data", "check", str(file), "--strict"]).exit_code == 1
    file.write_text(good)
    assert CliRunner().invoke(app, ["data", "check", str(file), "--strict"]).exit_code == 0
    outcome = CliRunner().invoke(app, ["data", "check", str(tmp_path / "none")])
    assert (outcome.exit_code, "there is no" in outcome.output) == (1, True)


def test_threads_wait_briefly_unless_told_otherwise() -> None:
    for given in ({"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}):
        environment = dict(given)
        wait_briefly(environment)
        assert environment == given
    wait_briefly(environment := {})
    assert environment == {"GOMP_SPINCOUNT": "10000"}
    # It is read when torch is imported, so no command may have done that before
    program = "import sys, ragvl.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
