"""What was computed is kept, and computed once."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ragvl.blocks import Done
from ragvl.evaluation.journal import Journal
from ragvl.evaluation.pace import Pace
from ragvl.files import UnusableFileError


def pace(number: int) -> Pace[Any]:
    """So many keys at a time, after a first one."""
    return Pace(most=number)


def each(compute: Callable[[list[Any]], Any]) -> Callable[[Iterator[list[Any]]], Iterator[Done]]:
    """Computes block by block, in no time."""
    return lambda blocks: (Done(compute(block), 0.0) for block in blocks)


def test_values_come_back_and_only_missing_ones_are_computed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.jsonl"
    calls: list[list[tuple[str, int]]] = []

    def compute(keys: list[tuple[str, int]]) -> list[float]:
        calls.append(keys)
        return [math.nan if number == 3 else number / 7 for _, number in keys]

    keys = [("ä", number) for number in range(5)]
    first: Journal[tuple[str, int]] = Journal(path)
    first.fill([*keys, keys[0]], each(compute), pace=pace(2), title="", progress=False)
    assert calls == [keys[:1], keys[1:3], keys[3:]]
    again: Journal[tuple[str, int]] = Journal(path)
    again.fill([("b", 1), *keys], each(compute), pace=pace(2), title="", progress=False)
    assert calls[3:] == [[("b", 1)]]
    assert again["ä", 4] == 4 / 7  # to the last bit
    assert math.isnan(again["ä", 3])
    assert len(list(again)) == 6


def test_a_line_that_was_broken_off_is_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal: Journal[tuple[str, tuple[str, ...]]] = Journal(path)
    keys = [("q", ()), ("q", ("a", "b"))]
    journal.fill(keys, each(lambda keys: ["x"] * len(keys)), pace=pace(9), title="", progress=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    torn: Journal[tuple[str, tuple[str, ...]]] = Journal(path)
    assert keys[0] in torn
    assert keys[1] not in torn
    torn.fill(keys, each(lambda keys: ["x"] * len(keys)), pace=pace(9), title="", progress=False)
    assert path.read_bytes() == whole


def filled(path: Path, values: dict[str, float]) -> list[bytes]:
    """The lines of a journal with these values."""
    journal: Journal[str] = Journal(path)
    journal.fill(
        values,
        each(lambda keys: [values[k] for k in keys]),
        pace=pace(9),
        title="",
        progress=False,
    )
    return path.read_bytes().splitlines(keepends=True)


def is_share(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value <= 1


@pytest.mark.parametrize(
    "damaged",
    [
        b"\xff\x00\x80 no json\n",
        b"[]\n",
        b"{}\n",
        b"null\n",
        b'["b", 0.25]\n',
        b'["b", 0.25, "00000000"]\n',
        b'[{"b": 1}, 0.25, "00000000"]\n',
        b"[" * 100_000 + b"\n",
        b"x" * 2**21 + b"\n",
        b"\n",
    ],
)
def test_a_damaged_line_costs_itself(
    damaged: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal.jsonl"
    lines = filled(path, {"a": 0.5, "b": 0.25, "c": 0.75})
    path.write_bytes(b"".join([lines[0], damaged, lines[2]]))
    journal: Journal[str] = Journal(path, is_value=is_share)
    assert {key: journal[key] for key in journal} == {"a": 0.5, "c": 0.75}
    (message,) = caplog.messages
    assert str(path) in message and "1 lines are damaged" in message
    caplog.clear()
    assert set(Journal(path)) == {"a", "c"}
    assert caplog.messages == [], "it was mended"


def test_a_changed_figure_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    filled(path, {"a": 0.53, "b": 0.25})
    path.write_bytes(path.read_bytes().replace(b"0.53", b"0.93"))
    assert set(Journal(path, is_value=is_share)) == {"b"}


def test_lines_that_contradict_each_other_are_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, other = tmp_path / "journal.jsonl", tmp_path / "other.jsonl"
    lines = filled(path, {"a": 0.5, "b": 0.25}) + filled(other, {"a": 0.75, "b": 0.25})
    path.write_bytes(b"".join(lines))
    journal: Journal[str] = Journal(path)
    assert set(journal) == {"b"} and journal["b"] == 0.25
    assert "1 keys have several values" in caplog.text


def test_values_of_another_kind_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    values: dict[str, Any] = {"a": True, "b": "0.5", "c": None, "d": 7.5, "e": math.nan, "f": 0.5}
    filled(path, values)
    assert set(Journal(path, is_value=is_share)) == {"f"}


def test_what_could_not_be_computed_is_tried_again_another_time(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    computed = iter([[0.5], [math.nan], [0.25]])
    for expected in (math.nan, 0.25):
        journal: Journal[str] = Journal(path, is_value=is_share)
        journal.fill("ab", each(lambda _: next(computed)), pace=pace(9), title="", progress=False)
        journal.fill("ab", each(lambda _: next(computed)), pace=pace(9), title="", progress=False)
        assert journal["a"] == 0.5
        assert journal["b"] == pytest.approx(expected, nan_ok=True)


def test_a_pipe_in_its_place_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnusableFileError, match="a pipe"):
        Journal(tmp_path / "pipe")


def test_what_was_done_before_an_error_is_kept(tmp_path: Path) -> None:
    def compute(keys: list[str]) -> list[int]:
        if "d" in keys:
            raise RuntimeError("broken off")
        return [1] * len(keys)

    journal: Journal[str] = Journal(tmp_path / "j.jsonl")
    with pytest.raises(RuntimeError):
        journal.fill("abcd", each(compute), pace=pace(2), title="", progress=False)
    assert set(Journal(tmp_path / "j.jsonl")) == {"a", "b", "c"}


KILLED = """
import os, signal, sys
from pathlib import Path
from ragvl.blocks import Done
from ragvl.evaluation.journal import Journal
from ragvl.evaluation.pace import Pace

def compute(blocks):
    for keys in blocks:
        if "d" in keys:
            os.kill(os.getpid(), signal.SIGKILL)
        yield Done([1] * len(keys), 0.0)

Journal(Path(sys.argv[1])).fill("abcd", compute, pace=Pace(most=2), title="", progress=False)
"""


def test_what_was_done_before_the_process_was_killed_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert set(Journal(path)) == {"a", "b", "c"}
