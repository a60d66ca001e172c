"""Names of content: equal for equal content only."""

from __future__ import annotations

import enum
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragvl.files import open_regular
from ragvl.identity import UnnamedContentError, bytes_name, file_bytes_name, name_of, pixels_name

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Template:
    name: str
    text: str


def typed(value: object) -> str:
    """Tells True from 1 as `name_of` does; the order of keys makes no difference."""
    if isinstance(value, dict):
        return f"{{{sorted((typed(k), typed(v)) for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(typed, value))}]"
    return f"{type(value).__name__} {value!r}"


@given(st.lists(plain, max_size=3), st.lists(plain, max_size=3))
def test_names_are_equal_where_the_parts_are(one: list[object], other: list[object]) -> None:
    same = typed(one) == typed(other)
    assert (name_of("kind", *one) == name_of("kind", *other)) is same
    assert name_of("kind", *one) != name_of("another kind", *one)


def test_what_runs_together_is_kept_apart() -> None:
    parts = [
        ("a", "b"),
        ("ab",),
        ("a\0b",),
        ("a", "", "b"),
        (("a",), "b"),
        ("b", "a"),
        (b"a", "b"),
        ("1",),
        (1,),
        (True,),
        (1.0,),
        (None,),
        ("None",),
        (Colour.RED,),
        (Colour.BLUE,),
        (Template("a", "b"),),
        (Template("a", "c"),),
        ({"name": "a", "text": "b"},),
        ({1: "a"},),
        ({"1": "a"},),
    ]
    assert len({name_of("kind", *part) for part in parts}) == len(parts)
    assert name_of("kind", {"a": 1, "b": 2}) == name_of("kind", {"b": 2, "a": 1})


def test_what_cannot_be_covered_is_refused() -> None:
    with pytest.raises(UnnamedContentError, match="object"):
        name_of("kind", ["a", object()])


def test_bytes_never_take_the_name_of_pixels() -> None:
    pixels = bytes(12)
    spelled = [b"(2, 2) " + pixels, b"(2, 2)" + pixels, pixels]
    assert pixels_name((2, 2), pixels) not in {bytes_name(text) for text in spelled}
    assert pixels_name((4, 1), pixels) != pixels_name((1, 4), pixels)


@pytest.mark.parametrize("age", [0, 1000], ids=["fresh", "settled"])
def test_a_file_changed_in_place_with_its_times_put_back_is_noticed(
    tmp_path: Path, age: int
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"1234")
    then = time.time_ns() - age * 10**9
    os.utime(path, ns=(then, then))
    assert file_bytes_name(path) == bytes_name(b"1234")
    with path.open("r+b") as file:
        file.write(b"4321")
    os.utime(path, ns=(then, then))
    assert file_bytes_name(path) == bytes_name(b"4321")


def test_a_settled_file_is_read_once_until_it_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"1234")
    in_a_while = time.time() + 1000  # nobody can set the time of change back
    monkeypatch.setattr("time.time", lambda: in_a_while)
    first = file_bytes_name(path)
    reads: list[str] = []

    def note(path: str, *, max_bytes: int | None) -> BinaryIO:
        reads.append(path)
        return open_regular(path, max_bytes=max_bytes)

    monkeypatch.setattr("ragvl.identity.open_regular", note)
    assert file_bytes_name(path) == first
    assert not reads
    os.utime(path)
    assert file_bytes_name(path) == first
    assert reads == [str(path)]
