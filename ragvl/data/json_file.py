"""Reading a large JSON file entry by entry, going on after what is broken where that is possible.

The standard decoder does the work, on a window of the file's bytes that moves on entry by entry. So
memory does not grow with the file, it is known where an entry stands, and one in another encoding
costs no more than itself.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ragvl.data.problems import Problems, brief
from ragvl.data.reading import BYTE_ORDER_MARK, is_utf16, is_whole, place
from ragvl.files import open_regular

_CHUNK = 2**20  # bytes that are read at a time, at least
_MAX_ENTRY = 2**20  # bytes
_MOST_DIGITS = 4000  # of whole numbers; Python refuses to read longer ones
_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile("[-+.0-9eE]*")
_STRUCTURE = re.compile(r'[][{}:,"]')


def read_json_entries(
    path: Path, problems: Problems, *, key: str | None = None
) -> Iterator[tuple[str, Any]]:
    """Names and values of the object in a JSON file, or numbers and items of the list at its `key`.

    Noted as problems: "wrong encoding" (an entry that is not UTF-8 is left out; UTF-16 is not
    read), "broken sample" (its name has half a character), and "truncated file" or "broken JSON",
    which give what comes before that; so does an entry of more than 2**20 bytes.

    Raises:
        OSError: it is no regular file, or cannot be opened.
    """
    file_name = place(path)
    with open_regular(path) as file:
        if is_utf16(file.peek(2)):
            problems.add("wrong encoding", f"{file_name} is UTF-16: save it as UTF-8")
            return
        text = _JsonText(file)
        try:
            for name, value in _members(text) if key is None else _items(text, key):
                wrong_byte = value.wrong_byte if name.wrong_byte is None else name.wrong_byte
                if wrong_byte is not None:
                    message = f"byte {wrong_byte:,}, in entry {brief(name.content)}: not UTF-8"
                    problems.add("wrong encoding", f"{file_name}, {message}")
                elif not is_whole(name.content):
                    message = f"{file_name}: {brief(name.content)} has half a character"
                    problems.add("broken sample", message)
                else:
                    yield name.content, value.content
            text.end()
        except _JsonError as error:
            message = f"{file_name}, byte {error.offset:,}: {error}; what follows is lost"
            problems.add(error.kind, message)


class _JsonError(ValueError):
    """What follows cannot be read."""

    def __init__(self, kind: str, message: str, offset: int) -> None:
        super().__init__(message)
        self.kind, self.offset = kind, offset


class _Value(NamedTuple):
    """A value of JSON, and where in the file its first byte stands that is not UTF-8."""

    content: Any
    wrong_byte: int | None = None


def _members(text: _JsonText) -> Iterator[tuple[_Value, _Value]]:
    for name in _names(text):
        yield name, text.value()


def _items(text: _JsonText, key: str) -> Iterator[tuple[_Value, _Value]]:
    has_list = False
    for name in _names(text):
        if text.peek() != "[":
            text.value()
        elif name.content != key:
            deque(_values(text), maxlen=0)
        else:
            has_list = True
            for number, value in enumerate(_values(text)):
                yield _Value(str(number)), value
    if not has_list:
        raise text.error(f"there is no list {key!r}")


def _values(text: _JsonText) -> Iterator[_Value]:
    """The values in a list."""
    for _ in _each(text, "[", "]"):
        yield text.value()


def _names(text: _JsonText) -> Iterator[_Value]:
    """The names in an object; after each, its value has to be taken."""
    for _ in _each(text, "{", "}"):
        if text.peek() != '"':
            raise text.error('expected "')
        name = text.value()
        text.take(":")
        yield name


def _each(text: _JsonText, opening: str, closing: str) -> Iterator[None]:
    """Stops before each of what commas separate between two brackets."""
    text.take(opening)
    if text.peek() == closing:
        text.take(closing)
        return
    yield
    while text.take("," + closing) != closing:
        yield


class _JsonText:
    """The text of a JSON file, from front to back.

    The window holds a character for each byte (Latin-1), so that places in it are places in the
    file; the decoder reads it right but for what strings say beyond ASCII.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._window = ""
        self._at = 0  # in the window
        self._start = 0  # of the window, in the file
        self._read_on()
        if self._window.startswith(BYTE_ORDER_MARK.decode("latin-1")):
            self._at = len(BYTE_ORDER_MARK)

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            self._at = _SPACE.match(self._window, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._window) or not self._read_on():
                return self._window[self._at : self._at + 1]

    def take(self, allowed: str) -> str:
        """Goes on behind the next character, which must be one of these."""
        character = self.peek()
        if not character:
            raise self._truncated("the file ends here")
        if character not in allowed:
            raise self.error(f"expected {' or '.join(allowed)}")
        self._at += 1
        return character

    def value(self) -> _Value:
        """Goes on behind the next value."""
        self.peek()
        while (decoded := self._decoded()) is None:
            if len(self._window) - self._at > _MAX_ENTRY:
                raise self.error(f"an entry is over {_MAX_ENTRY:,} bytes")
            if not self._read_on():
                raise self._truncated("the file ends in an entry")
        value, end = decoded
        encoded = self._window[self._at : end]
        self._at, offset = end, self._start + self._at
        if encoded.isascii():
            return _Value(value)
        try:
            return _Value(_DECODER.decode(encoded.encode("latin-1").decode()))
        except UnicodeDecodeError as error:
            return _Value(value, offset + error.start)

    def end(self) -> None:
        """Nothing may follow."""
        if self.peek():
            raise self.error("expected the end")

    def error(self, message: str, at: int | None = None) -> _JsonError:
        """What is wrong at a place in the window, by default the next character."""
        return _JsonError("broken JSON", message, self._start + (self._at if at is None else at))

    def _decoded(self) -> tuple[Any, int] | None:
        """The value that stands here, and where it ends; None if the window holds no whole one."""
        try:
            value, end = _DECODER.raw_decode(self._window, self._at)
        except json.JSONDecodeError as error:
            is_last = not _STRUCTURE.search(self._window, error.pos)
            if is_last or error.msg.startswith("Unterminated string"):
                return None  # what is cut off at the window's end may be right with the rest
            raise self.error(error.msg, error.pos) from None
        except RecursionError:
            raise self.error("it is nested too deep") from None
        is_cut = _NUMBER.match(self._window, end).end() == len(self._window)  # type: ignore[union-attr]
        return None if is_cut else (value, end)  # after 1 there may come 2 or .5

    def _read_on(self) -> bool:
        """Reads more of the file; whether there was any."""
        rest = self._window[self._at :]
        # At least as much again: an entry that needs many chunks is not tried at each of them
        chunk = self._file.read(max(_CHUNK, len(rest))).decode("latin-1")
        self._start, self._window, self._at = self._start + self._at, rest + chunk, 0
        return bool(chunk)

    def _truncated(self, message: str) -> _JsonError:
        return _JsonError("truncated file", message, self._start + len(self._window))


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) < _MOST_DIGITS else float(digits)


_DECODER = json.JSONDecoder(parse_int=_whole_number)
