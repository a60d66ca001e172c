"""Tables and JSON of the commands: nothing is cut, nothing in a cell is obeyed."""

from __future__ import annotations

import io
import json
import os
import pty
import re
from contextlib import redirect_stdout, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from ragvl.messages import visible
from ragvl.output import print_json, print_table, say

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300)
ODD = ["[red]a.png", "a[/b].png", "x\x1b[31m\x1b]0;t\x07.png", "a\nb\tc\r", "\u202egnp.a", "\ud800"]


@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT), max_size=4), ANY_TEXT)
def test_in_a_pipe_a_row_is_a_line_and_its_cells_are_whole(rows: list, title: str) -> None:
    lines = printed(rows, title)
    assert lines.pop(0) == visible(title) if title else True
    assert lines == ["a\tb", *(f"{visible(a)}\t{visible(b)}" for a, b in rows)]
    assert all(cell.isprintable() for line in lines for cell in line.split("\t"))


def printed(rows: list, title: str = "") -> list[str]:
    stream = io.StringIO()
    with redirect_stdout(stream):
        print_table(("a", "b"), rows, title=title)
    return stream.getvalue().split("\n")[:-1]


def on_a_terminal(rows: list, title: str = "", paths: tuple[str, ...] = ()) -> list[str]:
    ours, theirs = pty.openpty()
    with open(theirs, "w", encoding="utf-8") as stream, redirect_stdout(stream):
        print_table(("a", "b"), rows, title=title, numbers=("b",), paths=paths)
    plain = re.sub(r"\x1b\[[013]m", "", all_of(ours).decode())  # the head is bold
    return plain.replace("\r\n", "\n").split("\n")


def all_of(terminal: int) -> bytes:
    """What was written to a terminal that no one holds open: one read may give only its start."""
    output = b""
    with suppress(OSError):  # the end
        while part := os.read(terminal, 1 << 16):
            output += part
    os.close(terminal)
    return output


@pytest.mark.parametrize("cell", ODD)
def test_on_a_terminal_markup_and_escape_sequences_are_text(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = on_a_terminal([(cell, "0.5")], title=cell)
    assert sum(visible(cell) in line for line in lines) == 2
    assert all(line.isprintable() for line in lines)


def test_on_a_narrow_terminal_a_long_cell_goes_on_in_the_next_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = "/".join(f"folder-{i}" for i in range(20))
    lines = on_a_terminal([(path, "0.5")])
    assert all(len(line) <= 40 for line in lines)
    assert path in "".join(line[:33].strip() for line in lines)


@pytest.mark.parametrize("columns", [40, 60, 400])
@pytest.mark.parametrize("letter", ["a", "\u6f22", "\u0301"])  # of one, two and no columns
def test_of_a_path_that_is_too_long_the_front_is_left_out(
    letter: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    paths = [f"/{letter * 100}/{name}.png" for name in ("mill", letter * 9)]
    *_, first, second = [
        line.strip()
        for line in on_a_terminal([(path, "0.5") for path in paths], paths=("a",))
        if "0.5" in line
    ]
    for line, path in ((first, paths[0]), (second, paths[1])):
        shown, number = line.split()
        assert number == "0.5"
        assert cell_len(line) <= columns
        if cell_len(path) + 20 < columns:
            assert shown == path
        else:
            assert shown[0] == "…" and path.endswith(shown[1:]) and len(shown) > len("….png")
            assert cell_len(shown) > columns - 20


def test_json_is_ascii_and_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": "a\x1b\x9b\ud800ü", "scores": [float("nan"), (0.5, float("inf"))]})
    out = capsys.readouterr().out
    assert out.isascii() and "\x1b" not in out
    assert json.loads(out) == {"name": "a\x1b\x9b\ud800ü", "scores": [None, [0.5, None]]}


def test_a_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\x1b[2Jb\nc", err=True)
    assert capsys.readouterr() == ("", "a\\x1b[2Jb\\nc\n")
