"""What was computed is kept, and computed once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ragvl.evaluation.journal import Journal


def test_values_come_back_and_only_missing_ones_are_computed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.jsonl"
    asked: list[list[tuple[str, int]]] = []

    def compute(keys: list[tuple[str, int]]) -> list[float]:
        asked.append(keys)
        return [math.nan if number == 3 else number / 7 for _, number in keys]

    keys = [("ä", number) for number in range(5)]
    first: Journal[tuple[str, int]] = Journal(path)
    first.fill([*keys, keys[0]], compute, block=2, title="", progress=False)
    assert asked == [keys[:2], keys[2:4], keys[4:]]
    again: Journal[tuple[str, int]] = Journal(path)
    again.fill([("b", 1), *keys], compute, block=2, title="", progress=False)
    assert asked[3:] == [[("b", 1)]]
    assert again["ä", 4] == 4 / 7  # to the last bit
    assert math.isnan(again["ä", 3])
    assert len(list(again)) == 6


def test_a_line_that_was_broken_off_is_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal: Journal[tuple[str, tuple[str, ...]]] = Journal(path)
    keys = [("q", ()), ("q", ("a", "b"))]
    journal.fill(keys, lambda keys: ["x"] * len(keys), block=9, title="", progress=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    torn: Journal[tuple[str, tuple[str, ...]]] = Journal(path)
    assert keys[0] in torn
    assert keys[1] not in torn
    torn.fill(keys, lambda keys: ["x"] * len(keys), block=9, title="", progress=False)
    assert path.read_bytes() == whole


def test_what_was_done_before_an_error_is_kept(tmp_path: Path) -> None:
    def compute(keys: list[str]) -> list[int]:
        if "c" in keys:
            raise RuntimeError("broken off")
        return [1] * len(keys)

    journal: Journal[str] = Journal(tmp_path / "j.jsonl")
    with pytest.raises(RuntimeError):
        journal.fill("abcd", compute, block=2, title="", progress=False)
    assert set(Journal(tmp_path / "j.jsonl")) == {"a", "b"}
