"""Counts the scans of a JPEG file, each of which costs as much time as the whole picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

# Encoders write up to a dozen; libjpeg-turbo has its users set a limit of this order
MAX_SCANS = 1024
_MAX_MARKERS = 100_000
_BLOCK = 2**20  # bytes
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # not those within a scan: 00 and restarts
_TEM, _START, _END, _SCAN = 0x01, 0xD8, 0xD9, 0xDA


def check_scans(file: BinaryIO) -> None:
    """Reads a JPEG file, and leaves it where it was.

    Raises:
        ValueError: its first picture has more than `MAX_SCANS` scans.
    """
    at = file.tell()
    try:
        if _count(file, bytes([0xFF, _SCAN])) > MAX_SCANS:  # seldom: the file has to be parsed
            _parse(file)
    finally:
        file.seek(at)


def _count(file: BinaryIO, pattern: bytes) -> int:
    file.seek(0)
    count, last = 0, b""
    while block := file.read(_BLOCK):
        count += (last + block).count(pattern)
        last = block[-1:]
    return count


def _parse(file: BinaryIO) -> None:
    scans = 0
    for number, code in enumerate(_markers(file)):
        scans += code == _SCAN
        if scans > MAX_SCANS:
            raise ValueError(f"it has more than {MAX_SCANS:,} scans")
        if number > _MAX_MARKERS:
            raise ValueError(f"it has more than {_MAX_MARKERS:,} parts")


def _markers(file: BinaryIO) -> Iterator[int]:
    """The codes of the first picture's markers; what segments hold is passed over."""
    window, start, at = b"", 0, 2  # `window` begins at byte `start` of the file
    while True:
        if not start <= at < start + len(window):
            file.seek(at)
            window, start = file.read(_BLOCK), at
        match = _MARKER.search(window, at - start)
        if match is None or match.end() + 2 > len(window):  # the segment's length is wanted too
            if len(window) < _BLOCK:
                return
            at = start + (len(window) - 1 if match is None else match.start())
            window = b""
            continue
        code = match[1][0]
        if code == _END:
            return
        yield code
        at = start + match.end()
        if code not in (_TEM, _START):  # which stand alone
            at += int.from_bytes(window[match.end() : match.end() + 2], "big")
