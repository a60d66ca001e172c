"""What the documents say can be done: snippets run, commands and paths are there."""

from __future__ import annotations

import configparser
import itertools
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import typer
import yaml
from data_files import write_picture
from server.live import live
from shell_lines import shell_lines
from typer.testing import CliRunner

from ragvl import Document, Reranker
from ragvl.ablation.grid import AblationSettings
from ragvl.cli import app
from ragvl.data.jsonl import DOCUMENTS as DOCUMENT_LIST
from ragvl.data.jsonl import JsonlQuestions
from ragvl.data.sources import Documents
from ragvl.server.run import build_services
from ragvl.server.settings import ServerSettings
from ragvl.server.stages import Stages
from ragvl.training.command import plan
from ragvl.training.ranking import read_ranking

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "ragvl" / "assets"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
]
# Theirs are their options; tests/server asks a server as curl does in the documents
OTHER_PROGRAMS = {"torchrun", "accelerate", "curl", "docker", "serve"}
OTHER_OPTIONS = {
    "--nproc_per_node",  # torchrun's
    "--filter",  # the release's of RagVL
    "--help",
}
FRAMEWORKS = ("langchain_core", "llama_index", "haystack", "lancedb", "mteb", "rerankers")
SERVER = "http://127.0.0.1:8000"  # in snippets
# Written by runs, or to be there at a user's
NOT_HERE = re.compile(r"runs/|build/|webqa/|photos/|images?/|\.venv/|dist/")


class Block(NamedTuple):
    """A fenced block: its language, its text, and where it is."""

    language: str
    text: str
    where: str


def blocks(*languages: str, of: Path | None = None) -> list[Block]:
    """The blocks in these languages, of all documents or of one."""
    return [
        Block(
            match[1], match[2], f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start())}"
        )
        for path in ([of] if of else DOCUMENTS)
        for text in [path.read_text()]
        for match in re.finditer(r"^ *```(\w*)\n(.*?)^ *```$", text, re.M | re.S)
        if match[1] in languages
    ]


def prose(path: Path) -> str:
    """A document without its blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.M | re.S)


def spans(path: Path) -> list[str]:
    """What a document sets in code within its prose."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(path))]


def marked(blocks: list[Block]) -> list[Any]:
    return [pytest.param(block, id=block.where) for block in blocks]


# --- snippets -----------------------------------------------------------------------------------


@pytest.fixture
def place(
    tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with what the snippets name: pictures, tiny models by large ones' names."""
    for name, color in (("photos/harbour.jpg", "blue"), ("photos/museum.jpg", "red")):
        write_picture(tmp_path / name, color)
    for name, folder in (
        ("OpenGVLab/InternVL3-2B-hf", tiny_model("internvl")),
        ("openai/clip-vit-large-patch14-336", ASSETS / "tiny-retriever"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(folder)
    for name in ("a.jpg", "b.jpg", "page-7.png", "mill.jpg", "harbour.jpg"):
        write_picture(tmp_path / name, "green")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of a server."""
    stages = Stages(Reranker.from_pretrained(ASSETS / "tiny-reranker"))
    with live(build_services(stages, ServerSettings(port=0), model="tiny")) as server:
        yield server.url


@pytest.mark.slow
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "path", [p for p in DOCUMENTS if blocks("python", of=p)], ids=lambda path: path.name
)
def test_python_runs_from_the_first_block_to_the_last(
    path: Path, request: pytest.FixtureRequest
) -> None:
    if path.name == "integrations.md":
        for package in FRAMEWORKS:
            pytest.importorskip(package)
    if path.name == "scale.md":
        pytest.importorskip("pymilvus")
    names: dict[str, Any] = {
        "model": "OpenGVLab/InternVL3-2B-hf",
        "documents": [Document("a.jpg", caption="A"), Document("b.jpg", caption="B")],
        "Document": Document,
        "blocks": [],  # vectors that somebody has
    }
    for block in blocks("python", of=path):
        text = block.text
        if SERVER in text:
            text = text.replace(SERVER, request.getfixturevalue("served"))
        code = compile(text, block.where, "exec")
        if text.startswith(
            "import ray\n"
        ):  # it wants a cluster with GPUs: only its names are tried
            ours = [line for line in text.splitlines() if line.startswith("from ragvl")]
            code = compile("\n".join(ours), block.where, "exec")
        exec(code, names)


@pytest.mark.parametrize("block", marked(blocks("json")))
def test_json_is_what_it_is_said_to_be(block: Block, place: Path) -> None:
    lines = place / "test.jsonl"
    lines.write_text(block.text)
    path, _, _ = block.where.partition(":")
    lists = [one.text for one in blocks("jsonl", of=ROOT / path)]  # which questions may name
    (place / DOCUMENT_LIST).write_text("".join(lists))
    if "question_id" in block.text:
        assert read_ranking(lines)
    else:
        source = JsonlQuestions(lines)
        assert len(source.questions) == 1 and not len(source.problems)


@pytest.mark.parametrize("block", marked(blocks("jsonl")))
def test_lines_list_documents(block: Block, place: Path) -> None:
    (place / DOCUMENT_LIST).write_text(block.text)
    source = Documents(place)
    assert len(list(source)) == len(block.text.splitlines()) and not len(source.problems)


GRIDS = [block for block in blocks("yaml") if "apiVersion" not in block.text]
MANIFESTS = [block for block in blocks("yaml") if block not in GRIDS]


@pytest.mark.slow
@pytest.mark.parametrize("block", marked(GRIDS))
def test_a_grid_can_be_planned(block: Block, place: Path) -> None:
    # With a GPU or without, whatever precision it asks for
    text = re.sub(r"^settings:.*$", "settings:\n  use_cpu: true", block.text, flags=re.M)
    (place / "grid.yaml").write_text(text)
    assert AblationSettings.read(place / "grid.yaml").planned()


@pytest.mark.parametrize("block", marked(MANIFESTS))
def test_a_manifest_asks_for_what_there_is(block: Block) -> None:
    spec = yaml.safe_load(block.text)["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    check(["ragvl", "serve", *container["args"]])
    probes = [probe["httpGet"]["path"] for name, probe in container.items() if "Probe" in name]
    assert set(probes) == {"/health", "/ready"}
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}


@pytest.mark.parametrize("block", marked(blocks("ini")))
def test_a_unit_starts_a_command_that_there_is(block: Block) -> None:
    unit = configparser.ConfigParser(delimiters="=")
    unit.read_string(block.text)
    check(shlex.split(unit["Service"]["ExecStart"]))


def test_no_block_is_of_a_language_that_is_not_tested() -> None:
    written = {
        language
        for path in DOCUMENTS
        for language in re.findall(r"^ *```(\w+)$", path.read_text(), re.M)
    }
    assert written <= {"python", "bash", "json", "jsonl", "yaml", "ini", "bibtex"}


# --- commands -----------------------------------------------------------------------------------


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell's text, with its variables' values; loops for their first value."""
    values: dict[str, str] = {}
    for words in shell_lines(re.sub(r"<[\w ]+>", "X", text)):
        while len(words) > 1 and re.match(r"[A-Z_]+=", words[0]):
            del words[0]
        if not words or words[0] in ("done", "do", "export"):
            continue
        if words[0] == "for":
            values[words[1]] = words[3].rstrip(";")
        elif re.fullmatch(r"\w+=\S*", words[0]) and len(words) == 1:
            name, _, value = words[0].partition("=")
            values[name] = value
        else:
            yield [re.sub(r"\$(\w+)", lambda match: values[match[1]], word) for word in words]


@cache
def ragvl_command() -> Any:
    """`ragvl`, with all commands."""
    return typer.main.get_command(app)


def leaf(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words after `ragvl` name, and its arguments."""
    command = ragvl_command()
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def check(words: list[str]) -> None:
    """Fails if a command of the documents could not be called like that."""
    program, *arguments = words
    if Path(program).name == "ragvl":
        command, arguments = leaf(arguments)
        if command.name in ("reranker", "generator"):
            # With a GPU or without, whatever precision the recipe asks for
            plan(command.name, [*arguments, "--use_cpu", "true"])  # type: ignore[arg-type]
        else:
            command.make_context(command.name, arguments)
    elif program == "make":
        for target in (word for word in arguments if "=" not in word):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        named = ",".join(re.findall(r"\[(.*?)\]", " ".join(arguments)))
        assert set(filter(None, named.split(","))) <= set(extras["optional-dependencies"])
    elif Path(program).name.startswith("python"):
        assert (ROOT / arguments[0]).is_file(), arguments[0]
    elif program.endswith(".sh"):
        assert (ROOT / program).is_file(), program
    else:
        assert program in OTHER_PROGRAMS, program


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("block", marked(blocks("bash")))
def test_commands_can_be_called_like_that(block: Block) -> None:
    lines = list(commands(block.text))
    assert lines
    for words in lines:
        check(words)


@cache
def options() -> frozenset[str]:
    """Every option of every command, and every setting of training."""
    waiting, options = [ragvl_command()], set(OTHER_OPTIONS)
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        declared = command.make_context(command.name, [], resilient_parsing=True).command
        for parameter in declared.params:
            options |= {*parameter.opts, *parameter.secondary_opts}
    needed = ["--model", "m", "--data", "d", "--output_dir", "o"]
    for stage in ("reranker", "generator"):
        flags = [*needed, *(["--ranking", "r"] if stage == "reranker" else [])]
        options |= {f"--{name}" for name in plan(stage, flags).values}  # type: ignore[arg-type]
    return frozenset(options)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_options_in_prose_are_there(path: Path) -> None:
    known = options()
    for span in spans(path):
        words = span.split()
        if words[0] == "ragvl" and len(words) > 1:
            leaf(words[1:])
        if words[0] == "make" and len(words) > 1:
            check(words)
        if words[0].startswith("--") or words[0] == "ragvl":
            named = {w.partition("=")[0] for w in words if re.match(r"--[a-z]", w)}
            assert named <= known, span


@pytest.mark.slow
def test_the_minutes_training_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/training.md's commands on the demo's world, as they stand."""
    (text,) = (b.text for b in blocks("bash", of=ROOT / "docs" / "training.md") if "draw" in b.text)
    (tmp_path / "ragvl").symlink_to(ROOT / "ragvl")
    monkeypatch.chdir(tmp_path)
    for words in commands(text):
        assert words[0] == "ragvl"
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "runs" / "try" / "model.safetensors").exists()


# --- places -------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_what_is_there(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        to = (path.parent / name).resolve() if name else path
        assert to.exists(), target
        if anchor and "." not in anchor:  # those are of docstrings, which test_site.py builds
            headings = re.findall(r"^#+ (.*)$", prose(to), re.M)
            assert anchor in map(slug, headings), target


def expanded(pattern: str) -> list[str]:
    """A path with its {a,b} written out, and a glob for each <op>."""
    parts = [part.split(",") for part in re.split(r"[{}]", re.sub(r"<\w+>", "*", pattern))]
    return ["".join(chosen) for chosen in itertools.product(*parts)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_paths_in_prose_are_there(path: Path) -> None:
    folders = {entry.name for entry in ROOT.iterdir() if entry.is_dir()}
    for span in spans(path):
        if not re.fullmatch(r"[\w./<>{},*-]+", span) or NOT_HERE.match(span):
            continue
        top, slash, _ = span.partition("/")
        if slash and top in folders:
            assert all(any(ROOT.glob(one.rstrip("/"))) for one in expanded(span)), span
        elif re.fullmatch(r"[\w<>]+\.(py|h|cpp|cu|md|toml)", span):
            assert (
                any(ROOT.glob(f"*/{expanded(span)[0]}"))
                or any(
                    path
                    for folder in ("ragvl", "tests", "benchmarks", "docs")
                    for path in (ROOT / folder).rglob(expanded(span)[0])
                )
                or (ROOT / span).exists()
            ), span


def test_the_map_is_of_what_is_there() -> None:
    (text,) = (
        b.text for b in blocks("", of=ROOT / "docs" / "architecture.md") if "csrc/" in b.text
    )
    shown, folder = set(), ""
    for line in text.splitlines():
        name = line.split()[0]
        folder = "" if not line.startswith(" ") else "ragvl/"
        shown.add(folder + name)
        assert (ROOT / folder / name).exists(), line
    packages = {f"ragvl/{init.parent.name}/" for init in (ROOT / "ragvl").glob("*/__init__.py")}
    assert packages <= shown
