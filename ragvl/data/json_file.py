"""Reading a large JSON file entry by entry, going on after what is broken where that is possible.

The standard decoder does the work, on a window of the text that moves on entry by entry. So it is
known where an entry stands, one in another encoding costs no more than itself, and what is nested
deep is refused in no time.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ragvl.data.files import BYTE_ORDER_MARK, is_utf16, is_whole, place
from ragvl.data.problems import Problems, brief
from ragvl.files import open_regular

_CHUNK = 2**20  # bytes that are read at a time, at least
_MAX_ENTRY = 2**20  # characters
_LONGEST_LITERAL = 16  # characters; what is so close to the window's end may change with the rest
_MOST_DIGITS = 4000  # of whole numbers; Python refuses to read longer ones
_SPACE = re.compile(r"[ \t\n\r]*")
_STRUCTURE = re.compile(r'[][{}:,"]')


def read_json_entries(
    path: Path, problems: Problems, *, key: str | None = None
) -> Iterator[tuple[str, Any]]:
    """Names and values of the object in a JSON file, or numbers and items of the list at its `key`.

    Noted as problems: "wrong encoding" (an entry that is not UTF-8 is left out; UTF-16 is not
    read), "broken sample" (its name has half a character), and "truncated file" or "broken JSON",
    which give what comes before that; so does an entry of more than 2**20 characters.

    Raises:
        OSError: it is no regular file, or cannot be opened.
    """
    file_name = place(path)
    with open_regular(path) as file:
        start = file.read(len(BYTE_ORDER_MARK))
        if is_utf16(start):
            problems.add("wrong encoding", f"{file_name} is UTF-16: save it as UTF-8")
            return
        if start != BYTE_ORDER_MARK:
            file.seek(0)
        text = _JsonText(file)
        try:
            for name, value, wrong_byte in _members(text) if key is None else _items(text, key):
                if wrong_byte is not None:
                    message = f"{file_name}, byte {wrong_byte:,}, in entry {brief(name)}: not UTF-8"
                    problems.add("wrong encoding", message)
                elif not is_whole(name):
                    problems.add(
                        "broken sample", f"{file_name}: {brief(name)} has half a character"
                    )
                else:
                    yield name, value
            text.end()
        except _JsonError as error:
            message = f"{file_name}, byte {error.offset:,}: {error}; what follows is lost"
            problems.add(error.kind, message)


def first_items(path: Path) -> Iterator[tuple[str, Any]]:
    """Of the lists in a JSON file's object their names and first items; None of an empty one.

    What cannot be read ends it.

    Raises:
        OSError: it is no regular file, or cannot be opened.
    """
    with open_regular(path) as file:
        text = _JsonText(file)
        try:
            for name, _ in _names(text):
                if text.peek() == "[":
                    items = _values(text)
                    first, _ = next(items, (None, None))
                    yield name, first
                    for _ in items:
                        pass
                else:
                    _skip(text)
        except _JsonError:
            return


_Entry = tuple[str, Any, int | None]  # its name, its value, and where it has a byte that is wrong


def _members(text: _JsonText) -> Iterator[_Entry]:
    for name, wrong_in_name in _names(text):
        value, wrong_byte = text.value()
        yield name, value, wrong_byte if wrong_in_name is None else wrong_in_name


def _items(text: _JsonText, key: str) -> Iterator[_Entry]:
    is_found = False
    for name, _ in _names(text):
        if name == key and text.peek() == "[":
            is_found = True
            for number, (value, wrong_byte) in enumerate(_values(text)):
                yield str(number), value, wrong_byte
        else:
            _skip(text)
    if not is_found:
        raise text.error(f"there is no list {key!r}")


def _values(text: _JsonText) -> Iterator[tuple[Any, int | None]]:
    """The values in a list."""
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    while True:
        yield text.value()
        if text.take(",]") == "]":
            return


def _names(text: _JsonText) -> Iterator[tuple[str, int | None]]:
    """The names in an object; after each, its value has to be taken."""
    text.take("{")
    if text.peek() == "}":
        text.take("}")
        return
    while True:
        text.expect('"')
        name = text.value()
        text.take(":")
        yield name
        if text.take(",}") == "}":
            return


def _skip(text: _JsonText) -> None:
    """Goes on behind the next value; one that has entries may be of any size."""
    start = text.peek()
    if start == "[":
        for _ in _values(text):
            pass
    elif start == "{":
        for _ in _names(text):
            text.value()
    else:
        text.value()


class _JsonError(ValueError):
    """What follows cannot be read."""

    def __init__(self, kind: str, message: str, offset: int) -> None:
        super().__init__(message)
        self.kind, self.offset = kind, offset


class _JsonText:
    """The text of a file, read from front to back; bytes that are not UTF-8 are lone surrogates."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._window = ""
        self._at = 0  # in the window
        self._offset = file.tell()  # of the same place, in the file
        self._is_last = False  # nothing comes after the window

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            self._pass(_following(self._window, self._at))
            if self._at < len(self._window):
                return self._window[self._at]
            if self._is_last:
                return ""
            self._read_on()

    def expect(self, allowed: str) -> str:
        """The next character, which must be one of these."""
        found = self.peek()
        if not found:
            raise _JsonError("truncated file", "the file ends here", self._offset)
        if found not in allowed:
            wanted = " or ".join(allowed)
            raise self.error(f"expected {wanted}, found {found!r}")
        return found

    def take(self, allowed: str) -> str:
        """The same, and goes on behind it."""
        found = self.expect(allowed)
        self._pass(self._at + 1)
        return found

    def value(self) -> tuple[Any, int | None]:
        """The next value, and the place in the file of its first byte that is not UTF-8."""
        self.peek()
        while True:
            try:
                value, end = self._decode_value()
                return value, self._pass(end)
            except json.JSONDecodeError as error:
                if not self._may_go_on(error):
                    raise self._syntax_error(error) from None
            except RecursionError:
                raise self.error("it is nested too deep") from None
            if len(self._window) - self._at > _MAX_ENTRY:
                raise self.error(f"an entry is over {_MAX_ENTRY:,} characters")
            self._read_on()

    def end(self) -> None:
        """Nothing may follow."""
        if found := self.peek():
            raise self.error(f"expected the end, found {found!r}")

    def _read_on(self) -> None:
        rest = self._window[self._at :]
        # At least as much again: an entry that needs many chunks is not tried at each of them
        chunk = self._file.read(max(_CHUNK, len(rest)))
        self._is_last = not chunk
        self._window, self._at = rest + self._decode(chunk, final=not chunk), 0

    def _pass(self, end: int) -> int | None:
        """Goes on to there in the window; the place of the first byte passed that is not UTF-8."""
        passed = self._window[self._at : end]
        start, self._at = self._offset, end
        try:
            self._offset += len(passed.encode())
        except UnicodeEncodeError as error:
            self._offset += _num_bytes(passed)
            return start + _num_bytes(passed[: error.start])
        return None

    def _decode_value(self) -> tuple[Any, int]:
        value, end = _DECODER.raw_decode(self._window, self._at)
        following = _following(self._window, end)
        # Else a number, which may not be whole
        if following == len(self._window) or self._window[following] not in ",:]}":
            raise json.JSONDecodeError("Expecting ',' delimiter", self._window, following)
        return value, end

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Whether what is wrong may be right with more of the text."""
        is_near_end = error.pos > len(self._window) - _LONGEST_LITERAL
        return not self._is_last and (is_near_end or _is_open(error))

    def _syntax_error(self, error: json.JSONDecodeError) -> _JsonError:
        rest = self._window[error.pos :]
        if self._is_last and (_is_open(error) or not _STRUCTURE.search(rest)):
            offset = self._offset + _num_bytes(self._window[self._at :])
            return _JsonError("truncated file", "the file ends in an entry", offset)
        return self.error(error.msg, error.pos)

    def error(self, message: str, at: int | None = None) -> _JsonError:
        """What is wrong at a place in the window, by default the next character."""
        at = self._at if at is None else at
        offset = self._offset + _num_bytes(self._window[self._at : at])
        is_garbled = "\udc80" <= self._window[at : at + 1] <= "\udcff"
        return _JsonError("wrong encoding" if is_garbled else "broken JSON", message, offset)


def _following(text: str, at: int) -> int:
    """Where the next character stands that is no space."""
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # which matches nothing too


def _is_open(error: json.JSONDecodeError) -> bool:
    return error.msg.startswith("Unterminated string")


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) < _MOST_DIGITS else float(digits)


_DECODER = json.JSONDecoder(parse_int=_whole_number)
