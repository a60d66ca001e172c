"""What all commands of `ragvl` have in common: version, completion, exit codes, plain output."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

import ragvl
from ragvl.cli import app
from ragvl.cli.common import one_line_errors, shown_while
from ragvl.cli.options import DeclaredLater
from ragvl.server.settings import TINY_RERANKER


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_the_version_is_printed_and_nothing_else() -> None:
    outcome = CliRunner().invoke(app, ["--version"])
    assert (outcome.exit_code, outcome.stdout) == (0, f"ragvl {ragvl.__version__}\n")


@pytest.mark.slow
def test_commands_and_options_complete_in_a_shell() -> None:
    code = "from ragvl.cli import app; app(prog_name='ragvl')"
    for words, place, expected in (
        ("ragvl se", "1", ["search", "serve"]),
        ("ragvl serve --turn", "2", ["--turn-pairs"]),
    ):
        asked = {"_RAGVL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": place}
        done = run_python(code, **asked)
        assert done.stdout.split() == expected, done.stderr


def test_exit_codes_are_in_the_help() -> None:
    page = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    for text in ("Exit codes: 0", "1 it could not", "2 the command line", "130 Ctrl-C"):
        assert text in page


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["data", "check", "nowhere"], 1),
        (["search", "nowhere", "q"], 1),
        (["rerank", "q", "nowhere.png", "--model", "m"], 1),
        (["demo", "--html", "-"], 1),
        (["banana"], 2),
        (["rerank", "q", "a.png"], 2),
        (["index", "--kind", "best", "."], 2),
        (["doctor", "--banana"], 2),
    ],
)
def test_exit_codes(
    arguments: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = CliRunner().invoke(app, arguments)
    assert (outcome.exit_code, outcome.stdout) == (code, "")
    assert outcome.stderr
    assert not list(tmp_path.iterdir())


def test_an_interrupt_is_one_line_and_130(capsys: pytest.CaptureFixture[str]) -> None:
    # Shells have what they start in the background ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as ended, one_line_errors("index"):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "ragvl index: interrupted\n"


def test_every_command_and_option_says_what_it_is() -> None:
    commands = get_command(app).commands.items()  # type: ignore[attr-defined]
    below = [one for _, group in commands for one in getattr(group, "commands", {}).items()]
    for name, command in [*commands, *below]:
        if isinstance(command, DeclaredLater):
            first_line = command.help
            command = command.declared()
            assert command.help.startswith(f"{first_line}\n"), name
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), (name, parameter.name)


def test_help_is_light_and_plain() -> None:
    code = (
        "import sys; from ragvl.cli import app; app(['--help'], standalone_mode=False);"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'pydantic', 'jinja2', 'fastapi'};"
        "print('HEAVY', sorted(heavy & sys.modules.keys()))"
    )
    done = run_python(code)
    assert "HEAVY []" in done.stdout, done.stdout[-200:] + done.stderr
    assert "Usage:" in done.stdout and "\x1b" not in done.stdout


# What reranking pictures has no use for, of which several take a second to import
_NOT_FOR_RERANKING = {
    *("datasets", "fastapi", "faiss", "jsonargparse", "matplotlib", "pandas", "peft", "sklearn"),
    *("sentence_transformers", "tensorboard", "torchvision", "uvicorn"),
    *("ragvl.evaluation", "ragvl.generator", "ragvl.retriever", "ragvl.server", "ragvl.training"),
    "transformers.trainer",
}


@pytest.mark.slow
def test_rerank_imports_what_it_needs_and_prints_its_table_alone(tmp_path: Path) -> None:
    picture = str(tmp_path / "a.png")
    Image.new("RGB", (48, 48), "red").save(picture)
    command = ["rerank", "Is it red?", picture, "--model", str(TINY_RERANKER), "--device", "cpu"]
    code = (
        "import gc, sys; from ragvl.cli import app;"
        f"app({command!r}, standalone_mode=False);"
        f"print('HEAVY', sorted({_NOT_FOR_RERANKING!r} & sys.modules.keys()), gc.isenabled())"
    )
    done = run_python(code)
    head, row, heavy = done.stdout.splitlines()
    assert head == "document\trelevance\tkept"
    assert row.startswith(f"{picture}\t0.")
    assert (heavy, done.stderr) == ("HEAVY [] True", "")


@pytest.mark.slow
def test_a_process_ends_with_its_exit_code_and_all_that_was_to_be_done() -> None:
    """Once threads have ended and handlers have run, with what was printed."""
    code = """
import atexit, sys, threading, time
from ragvl.cli import entry
def app():
    atexit.register(print, "handler", file=sys.stderr)
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    sys.stdout.write("printed ")
    raise END
entry.app = app
entry.main()
"""
    for end, expected in (
        ("SystemExit(3)", 3),
        ("SystemExit()", 0),
        ("SystemExit('why')", 1),
        ("KeyError()", 1),
    ):
        done = run_python(code.replace("END", end))
        assert (done.returncode, done.stdout) == (expected, "printed thread\n")
        assert done.stderr.endswith("handler\n")
        assert ("why" in done.stderr, "Traceback" in done.stderr) == ("why" in end, "Key" in end)


@pytest.mark.parametrize(("term", "shown"), [("xterm", "loading ...\r\x1b[K"), ("dumb", "")])
def test_what_has_no_bar_is_named_on_a_terminal_alone(
    term: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", term)
    with shown_while("loading"):
        pass
    assert capsys.readouterr().err == "", "it is no terminal"
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with contextlib.suppress(ValueError), shown_while("loading"):
            raise ValueError
        terminal.write("|")
        terminal.flush()
        written = b""
        while not written.endswith(b"|"):
            written += os.read(ours, 1000)
        assert written.decode() == f"{shown}|"
    os.close(ours)


@pytest.mark.slow
def test_a_pipe_that_nobody_reads_is_no_traceback() -> None:
    code = "from ragvl.cli.entry import main; import sys; sys.argv[1:] = ['doctor']; main()"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1
