"""Files are read as far as they can be, and what is wrong is named with its place."""

from __future__ import annotations

import gzip
import json
import os
import random
import socket
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_files import write_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ragvl.data import json_file, reading
from ragvl.data.captions import Captions
from ragvl.data.checking import check_questions
from ragvl.data.formats import open_questions
from ragvl.data.images import ImageError
from ragvl.data.json_file import read_json_entries
from ragvl.data.jsonl import QuestionLine
from ragvl.data.problems import DataError, Problems, brief_quoted
from ragvl.data.reading import Listings, existing, is_file, place, read_json_lines, read_lines
from ragvl.data.schemas import parsed
from ragvl.data.sources import Documents
from ragvl.files import UnusableFileError

LINE = b'{"id": 1}\n'


def lines_of(path: Path, content: bytes) -> tuple[list[str], Problems]:
    path.write_bytes(content)
    problems = Problems()
    return [line for _, line in read_lines(path, problems)], problems


def entries_of(path: Path, content: bytes, key: str | None = None) -> tuple[list[Any], Problems]:
    path.write_bytes(content)
    problems = Problems()
    return list(read_json_entries(path, problems, key=key)), problems


# --- lines


@pytest.mark.parametrize("kept", [2000, 4000, -9])
def test_a_cut_within_a_line_that_is_too_long_is_a_truncated_file(
    kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_MAX_LINE", 1000)
    noise = random.Random(0).randbytes(20_000).hex().encode()
    packed = gzip.compress(LINE + noise + b"\n" + LINE)
    lines, problems = lines_of(tmp_path / "x.gz", packed[:kept])
    assert len(lines) == (2 if kept < 0 else 1)
    assert problems.counts == {"line too long": 1, "truncated file": 1}


def test_lines_of_the_limit_are_read_and_longer_ones_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_MAX_LINE", 10)
    content = b"a" * 9 + b"\n" + b"b" * 10 + b"\n" + b"c" * 25 + b"\nshort\n" + b"d" * 30
    lines, problems = lines_of(tmp_path / "x", content)
    assert lines == ["a" * 9, "short"]
    assert [m.split(" ")[2] for m in problems.messages["line too long"]] == ["2:", "3:", "5:"]


def test_damaged_gzip_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(20_000).hex().encode() + b"\n"
    packed = gzip.compress(LINE + noise)
    garbled = packed[:100] + bytes(200) + packed[300:]  # zlib.error
    assert lines_of(tmp_path / "x.gz", garbled)[1].counts == {"damaged file": 1}
    checksum = packed[:-8] + bytes(4) + packed[-4:]
    lines, problems = lines_of(tmp_path / "x.gz", checksum)
    assert (len(lines), problems.counts) == (2, {"damaged file": 1})
    assert "CRC check failed" in problems.messages["damaged file"][0]
    assert lines_of(tmp_path / "x.gz", LINE)[1].counts == {"not a gzip file": 1}
    assert lines_of(tmp_path / "x.gz", packed + b"more")[1].counts == {"damaged file": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_told_in_so_many_words(encoding: str, tmp_path: Path) -> None:
    content = '{"a": 1}\n{"b": 2}\n'.encode(encoding)
    for entries, problems in (
        lines_of(tmp_path / "x", content),
        entries_of(tmp_path / "x", content),
    ):
        assert (entries, problems.counts) == ([], {"wrong encoding": 1})
        assert "is UTF-16" in problems.messages["wrong encoding"][0]


def test_whether_a_file_is_there_is_never_an_error(tmp_path: Path) -> None:
    assert is_file(__file__)
    for name in ("n" * 300, "a\0b", "\ud800", "x/" * 3000, ""):
        assert not is_file(tmp_path / name)


@pytest.mark.parametrize("names", [100, 3, 0])
@pytest.mark.parametrize("are_exact", [True, False])
def test_listings_say_what_asking_for_each_file_says(
    names: int, are_exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_NAMES_ARE_EXACT", are_exact)
    for name in ("a.png", "deep/b.png", "deep/c.png", "other/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "dangling.png").symlink_to("lost.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    paths = [
        *("a.png", "deep/b.png", "deep/c.png", "other/d.png", "link.png", "deep/../a.png"),
        *("dangling.png", "loop.png", "deep", "deep/", ".", "..", "", "x.png", "lost/x.png"),
        *("n" * 300, "a\0.png", "a.png/b", "\ud800", "deep/" + "m" * 5000 + "/x"),
    ]
    for folder in (tmp_path, tmp_path / "none"):
        listings = Listings(names)
        for path in [f"{folder}/{name}" for name in paths] * 2 + ["/", "/lost.png", "lost.png"]:
            assert listings.has_file(path) is is_file(path), path


def test_a_message_can_be_printed() -> None:
    problems = Problems()
    problems.add("missing picture", "\ud800.jpg")
    assert problems.messages == {"missing picture": ["\\ud800.jpg"]}
    with pytest.raises(DataError, match=r"\\ud800"):
        Problems(strict=True).add("missing picture", "\ud800.jpg")


def test_a_message_holds_little_of_a_file(tmp_path: Path) -> None:
    name = "x" * 500 + "\x1b]0;owned\x07"
    problems = Problems()
    assert parsed(QuestionLine.model_validate, {name: 1}, "broken line", "here", problems) is None
    problems.add("missing picture", f"{place(tmp_path / name, 3)}: {brief_quoted(name)}")
    problems.add("other", name * 10)
    for messages in problems.messages.values():
        for message in messages:
            assert message.isprintable()
            assert len(message) <= 400
    assert ", line 3: 'xxx" in problems.messages["missing picture"][0]


# 1 MiB of each, which took up to 460 MiB
@pytest.mark.parametrize(
    "fields",
    [
        {"images": [0] * 300_000},
        {"images": ["a"], "answer": [0] * 300_000},
        {"images": ["a"], "captions": [0] * 300_000},
    ],
    ids=lambda fields: ", ".join(fields),
)
def test_a_line_with_many_errors_names_the_first(fields: dict[str, Any]) -> None:
    text = json.dumps({"id": "q", "question": "Who?", **fields})
    with pytest.raises(ValidationError) as error:
        QuestionLine.model_validate_json(text)
    assert error.value.error_count() <= 3


@pytest.mark.slow
def test_a_line_that_unpacks_to_gigabytes_is_left_out_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(LINE + b'{"images": [' + b"0," * 32_000_000 + b"0]}\n" + LINE)
    assert path.stat().st_size < 100_000
    problems = Problems()
    tracemalloc.start()
    try:
        numbers = [number for number, _ in read_json_lines(path, problems)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (numbers, problems.counts) == ([1, 3], {"line too long": 1})
    assert peak < 8 * 2**20


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=8), st.sampled_from([b"\n", b"\r\n"]))
def test_any_bytes_are_lines_or_problems(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], end: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(end.join([LINE.rstrip(), *lines]))
    problems = Problems()
    read = list(read_json_lines(path, problems))
    assert read[0] == (1, {"id": 1})
    assert all(isinstance(fields, dict) for _, fields in read)
    assert all(message.isprintable() for kind in problems.messages.values() for message in kind)


@pytest.fixture(params=["pipe", "socket", "device"])
def endless(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """What is no file, and would not end if it were read; its name is a file of lines'."""
    path = tmp_path / "x.jsonl"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    yield path


def test_what_is_no_file_is_refused_at_once(endless: Path) -> None:
    for read in (
        lambda: list(read_lines(endless, Problems())),
        lambda: list(read_json_entries(endless, Problems())),
        lambda: existing(endless, "write it"),
        lambda: open_questions(endless),
        lambda: check_questions(endless),
        lambda: Documents(endless),
        lambda: Captions(endless),
    ):
        with pytest.raises(UnusableFileError, match="not a file"):
            read()


def test_pictures_that_are_no_files_are_problems(tmp_path: Path, endless: Path) -> None:
    picture = endless.rename(tmp_path / "picture.png")
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        '{"id": "q", "question": "Who?", "images": ["picture.png", "a.png"], "gold": ["a.png"]}'
    )
    write_picture(tmp_path / "a.png")
    report = check_questions(questions, pictures=True)
    assert (report.questions, report.problems.counts) == (1, {"missing picture": 1})
    (tmp_path / "folder.png").mkdir()
    questions.unlink()
    first, second = Documents(tmp_path)
    assert first.load().size == (8, 8)
    with pytest.raises(ImageError, match=r"picture\.png.*not a file"):
        second.load()
    assert picture.name == second.id


# --- entries


def test_a_large_file_is_read_entry_by_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_file, "_CHUNK", 7)  # every entry spans several
    expected = {f"ключ {n}": {"a": [n, -1.5e3, True, None], "ü": '"\\ \n😀'} for n in range(50)}
    for ascii in (True, False):
        text = json.dumps(expected, ensure_ascii=ascii, indent=1).encode()
        entries, problems = entries_of(tmp_path / "x", b"\xef\xbb\xbf" + text)
        assert dict(entries) == expected
        assert not len(problems)


WORDS = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner) | st.dictionaries(WORDS, inner),
    max_leaves=20,
)


@pytest.mark.slow
@settings(max_examples=100)
@given(st.dictionaries(WORDS, JSON), st.integers(1, 40), st.booleans(), st.data())
def test_any_object_is_read_as_json_reads_it_and_any_cut_is_a_truncated_file(
    tmp_path_factory: pytest.TempPathFactory,
    content: dict[str, Any],
    chunk: int,
    ascii: bool,
    data: st.DataObject,
) -> None:
    text = json.dumps(content, ensure_ascii=ascii).encode()
    size = data.draw(st.integers(1, len(text) - 1))
    path = tmp_path_factory.getbasetemp() / "cut.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_file, "_CHUNK", chunk)
        whole, problems = entries_of(path, text)
        assert whole == list(content.items())
        assert not len(problems)
        before, problems = entries_of(path, text[:size])
        assert before == whole[: len(before)]
        assert list(problems.counts.values()) == [1]


def test_what_is_not_utf8_costs_its_entry_and_is_named_by_its_byte(tmp_path: Path) -> None:
    content = '{"ä": 1, "b": "D?cher", "?": 2, "d": 3}'.encode().replace(b"?", b"\xe4")
    entries, problems = entries_of(tmp_path / "x", content)
    assert entries == [("ä", 1), ("d", 3)]
    first, second = problems.messages["wrong encoding"]
    at = content.index(b"\xe4cher")
    assert f"byte {at}, in entry b" in first
    assert second.endswith("in entry ä: not UTF-8")


@pytest.mark.parametrize(
    ("content", "kind", "offset", "words"),
    [
        (b"", "truncated file", 0, "ends here"),
        (b"[]", "broken JSON", 0, "expected {"),
        (b'{"\xc3\xa4": 1 "b": 2}', "broken JSON", 9, "expected , or }"),
        (b'{"a": 1, "b": {"c": x}}', "broken JSON", 20, "Expecting value"),
        (b'{"a": 1, "b": "open}', "truncated file", 20, "ends in an entry"),
        (b'{"a": 1, 2: 3}', "broken JSON", 9, 'expected "'),
        (b'{"a": 1} {}', "broken JSON", 9, "expected the end"),
        (b'{"a": 1, \xff: 2}', "broken JSON", 9, 'expected "'),
    ],
)
def test_a_break_is_named_by_its_byte(
    content: bytes, kind: str, offset: int, words: str, tmp_path: Path
) -> None:
    entries, problems = entries_of(tmp_path / "x", content)
    assert entries in ([], [("a", 1)], [("ä", 1)])
    assert problems.counts == {kind: 1}
    (message,) = problems.messages[kind]
    assert f"byte {offset}: " in message
    assert words in message
    assert message.endswith("what follows is lost")


def test_a_name_with_half_a_character_is_left_out(tmp_path: Path) -> None:
    entries, problems = entries_of(tmp_path / "x", b'{"\\ud800": 1, "b": 2}')
    assert (entries, problems.counts) == ([("b", 2)], {"broken sample": 1})


def test_numbers_of_any_size_are_read(tmp_path: Path) -> None:
    content = b'{"a": %d, "b": %s, "c": 1}' % (10**30, b"9" * 10_000)
    entries, problems = entries_of(tmp_path / "x", content)
    assert entries == [("a", 10**30), ("b", float("inf")), ("c", 1)]
    assert not len(problems)


def test_what_is_nested_deep_is_passed_over(tmp_path: Path) -> None:
    content = b'{"a": 1, "b": ' + b"[" * 10**5 + b"]" * 10**5 + b"}"
    entries, problems = entries_of(tmp_path / "x", content)
    assert entries == [("a", 1)]
    assert "nested too deep" in problems.messages["broken JSON"][0]


def test_an_entry_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_file, "_CHUNK", 16)
    monkeypatch.setattr(json_file, "_MAX_ENTRY", 1000)
    content = b'{"a": "%s", "b": "%s"}' % (b"x" * 900, b"y" * 5000)
    entries, problems = entries_of(tmp_path / "x", content)
    assert [name for name, _ in entries] == ["a"]
    assert "over 1,000 bytes" in problems.messages["broken JSON"][0]


def test_a_list_that_is_skipped_may_be_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_file, "_CHUNK", 16)
    monkeypatch.setattr(json_file, "_MAX_ENTRY", 100)
    content = json.dumps({"other": list(range(1000)), "images": [1, 2]})
    entries, problems = entries_of(tmp_path / "x", content.encode(), "images")
    assert entries == [("0", 1), ("1", 2)]
    assert not len(problems)


def test_the_items_of_a_list(tmp_path: Path) -> None:
    content = b'{"info": {"images": [1]}, "images": [{"a": 1}, 2, []], "after": {}}'
    assert entries_of(tmp_path / "x", content, "images")[0] == [
        ("0", {"a": 1}),
        ("1", 2),
        ("2", []),
    ]
    assert entries_of(tmp_path / "x", b'{"images": []}', "images")[0] == []
    entries, problems = entries_of(tmp_path / "x", b'{"images": {}}', "images")
    assert (entries, problems.counts) == ([], {"broken JSON": 1})
    assert "no list 'images'" in problems.messages["broken JSON"][0]


def test_lines_of_json_that_are_none(tmp_path: Path) -> None:
    deep = b"[" * 100_000
    path = tmp_path / "x"
    path.write_bytes(LINE + deep + b"\n" + b"9" * 9000 + b"\n3\n" + LINE)
    problems = Problems()
    assert [number for number, _ in read_json_lines(path, problems)] == [1, 5]
    assert problems.counts == {"broken line": 3}
