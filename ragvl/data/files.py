"""Reading data sets' files as a stream, going on after what is broken."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from ragvl.data.problems import DataError, Problems

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # that Windows programs put before UTF-8
_MAX_LINE = 64 * 2**20  # bytes; a file without line ends is not read into memory whole


def existing(path: Path, hint: str) -> Path:
    """`path`, if it is a file.

    Raises:
        FileNotFoundError: it is not; `hint` says where it should come from.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {hint}")
    return path


def read_lines(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines, without their ends; blank lines are passed over.

    A name that ends in .gz is unpacked. Noted as problems: "CRLF line end", "wrong encoding" (a
    line that is not UTF-8 is left out), "line too long", and "truncated file" (a gzip file that
    ends too early gives the lines up to there).
    """
    with _open(path) as file:
        number = 0
        while True:
            try:
                line = file.readline(_MAX_LINE)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                problems.add("truncated file", f"{path}, after line {number}: {error}")
                return
            if not line:
                return
            number += 1
            if len(line) == _MAX_LINE:
                problems.add("line too long", f"{path}, line {number}: over {_MAX_LINE:,} bytes")
                while line and not line.endswith(b"\n"):
                    line = file.readline(_MAX_LINE)
                continue
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line.endswith(b"\r\n"):
                problems.add("CRLF line end", f"{path}, line {number}")
            try:
                text = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                problems.add("wrong encoding", f"{path}, line {number} is not UTF-8: {error}")
                continue
            if text.strip():
                yield number, text


def read_json_lines(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a JSONL file; a "broken line" is left out. See `read_lines`."""
    for number, line in read_lines(path, problems):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.add("broken line", f"{path}, line {number} is not JSON: {error}")
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            kind = type(value).__name__
            problems.add("broken line", f"{path}, line {number} is a {kind}, not an object")


def read_json_entries(
    path: Path, problems: Problems, *, key: str | None = None
) -> Iterator[tuple[str, Any]]:
    """Names and values of the object in a JSON file, or of the list under its `key`, one by one.

    A file that breaks off, or is not UTF-8, gives what comes before that, and is a problem.

    Raises:
        DataError: the file does not hold such an object.
    """
    import ijson  # the only user; what reads no JSON files needs no ijson

    with path.open("rb") as file:
        if file.read(3) != _BYTE_ORDER_MARK:
            file.seek(0)
        started = False
        try:
            if key is None:
                for entry in ijson.kvitems(file, "", use_float=True):
                    started = True
                    yield entry
            else:
                for number, item in enumerate(ijson.items(file, f"{key}.item", use_float=True)):
                    started = True
                    yield str(number), item
        except ijson.JSONError as error:
            if not started:
                raise DataError(f"{path} is not JSON: {error}") from error
            kind = "wrong encoding" if "UTF8" in str(error) else "truncated file"
            problems.add(kind, f"{path}: {str(error).split(chr(10))[0]}")


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
