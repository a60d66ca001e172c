"""Reading data sets' files line by line, going on after what is broken."""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from ragvl.data.problems import Problems
from ragvl.files import check_regular, open_regular, url_scheme
from ragvl.messages import shown

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # that Windows programs put before UTF-8
_HALF = re.compile("[\ud800-\udfff]")
_PATH_SHOWN = 120  # characters
_NAMES_ARE_EXACT = sys.platform == "linux"  # elsewhere A.png may be a.png
_MAX_LINE = 2**20  # bytes, after unpacking; what reads a line may need hundreds of times as much


def existing(path: Path, hint: str) -> Path:
    """`path`, if it is a file.

    Raises:
        FileNotFoundError: there is none; `hint` says where it should come from.
        OSError: it is a folder, a pipe, a device, ..., or cannot be looked at.
    """
    try:
        check_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{place(path)} is missing; {hint}") from None
    return path


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; False too for what can be no name, unlike `Path.is_file`."""
    return os.path.isfile(path)


def why_missing(
    folder: str | Path, image: str, has_file: Callable[[str], bool] | None = None
) -> str | None:
    """What is wrong with a picture's place in a data set's file; None if a file is there.

    Args:
        folder: what the place is relative to.
        image: the place.
        has_file: whether a file is there; `is_file` if not given.
    """
    path = os.path.join(folder, image)
    if (has_file or is_file)(path):
        return None
    if url_scheme(image) is not None:
        return f"{place(image)} is a URL, and pictures are files: download it"
    return place(path)


class Listings:
    """Whether files are there, by their folders' listings: to look for each takes far longer.

    Args:
        names: so many are held; files of other folders are looked for one by one.
    """

    def __init__(self, names: int = 100_000) -> None:
        self._left = names
        self._listed: dict[str, set[str] | None] = {}

    def has_file(self, path: str) -> bool:
        """See `is_file`."""
        folder, _, name = path.rpartition(os.sep)
        if folder and folder not in self._listed and self._left > 0:
            self._listed[folder] = self._list(folder)
        names = self._listed.get(folder)
        if names is None:
            return is_file(path)
        return name in names or (not _NAMES_ARE_EXACT and is_file(path))

    def _list(self, folder: str) -> set[str] | None:
        names: set[str] = set()
        self._left -= 1  # a folder counts, too, or there might be any number of them
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._left -= 1
                    if self._left < 0:
                        return None
                    if entry.is_file():
                        names.add(entry.name)
        except (OSError, ValueError):
            return None
        return names


def place(path: str | Path, line: int | None = None) -> str:
    """What a message calls a file, or a line of it."""
    name = shown(path, _PATH_SHOWN)
    return name if line is None else f"{name}, line {line}"


def is_whole(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which nothing can encode."""
    return text.isascii() or not _HALF.search(text)


def is_utf16(start: bytes) -> bool:
    """Whether a text file that starts so is UTF-16: it has that mark, or a zero byte."""
    return start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start[:2]


def read_lines(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines, without their ends; blank lines are passed over.

    A name that ends in .gz is unpacked; lines may end in CRLF. Noted as problems: "wrong encoding"
    (a line that is not UTF-8 is left out; UTF-16 is not read), "line too long" (over 1 MiB, left
    out), and "truncated file", "damaged file" or "not a gzip file" (which give the lines up to
    there).

    Raises:
        OSError: it is no regular file, or cannot be opened.
    """
    for number, line in _raw_lines(path, problems):
        if number == 1:
            if is_utf16(line):
                problems.add("wrong encoding", f"{place(path)} is UTF-16: save it as UTF-8")
                return
            line = line.removeprefix(BYTE_ORDER_MARK)
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            problems.add("wrong encoding", f"{place(path, number)} is not UTF-8: {error}")
            continue
        if text.strip():
            yield number, text


def _raw_lines(path: Path, problems: Problems) -> Iterator[tuple[int, bytes]]:
    """Line numbers and lines with their ends, without those that are too long."""
    number = 0
    is_rest = False  # of a line that is too long
    with _opened(path) as file:
        try:
            while piece := file.readline(_MAX_LINE):
                is_whole = len(piece) < _MAX_LINE or piece.endswith(b"\n")
                if not is_rest:
                    number += 1
                    if is_whole:
                        yield number, piece
                    else:
                        message = f"{place(path, number)}: over {_MAX_LINE:,} bytes"
                        problems.add("line too long", message)
                is_rest = not is_whole
        except EOFError as error:
            problems.add("truncated file", f"{place(path)}, after line {number}: {error}")
        except (zlib.error, gzip.BadGzipFile) as error:
            kind = "damaged file" if number or "Not a gzip" not in str(error) else "not a gzip file"
            problems.add(kind, f"{place(path)}, after line {number}: {error}")


def read_json_lines(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a JSONL file; a "broken line" is left out. See `read_lines`."""
    for number, line in read_lines(path, problems):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.add("broken line", f"{place(path, number)} is not JSON: {error}")
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            kind = type(value).__name__
            problems.add("broken line", f"{place(path, number)} is a {kind}, not an object")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with open_regular(path) as file:
        if path.suffix == ".gz":
            with gzip.open(file, "rb") as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            yield file
