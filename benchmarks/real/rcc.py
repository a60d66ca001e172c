"""Reads Qt's resource files (.rcc): https://doc.qt.io/qt-6/resources.html.

A header names where the tree, the data and the names lie; all numbers are big-endian. A node of the
tree is a folder with a range of children, or a file with the place of its data.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_HEADER = struct.Struct(">4s4I")  # magic, version, offsets of tree, data, names
_NODE = struct.Struct(">IHII")  # name, flags; then children and first child, or locale and data
_LENGTH = struct.Struct(">I")
_ZLIB, _FOLDER, _ZSTD = 1, 2, 4
_ROOT = 0


class RccError(ValueError):
    """It is no resource file that can be read."""


def rcc_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and content of every file in it, in the order of the tree.

    Raises:
        RccError: `data` is no resource file, is cut off, or is compressed by something else than
            zlib.
    """
    try:
        magic, version, tree, contents, names = _HEADER.unpack_from(data)
        if magic != b"qres":
            raise RccError("no Qt resource file")
        yield from _walk(_Layout(data, version, tree, contents, names), _ROOT, "")
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise RccError(f"broken Qt resource file: {error}") from error


class _Layout:
    def __init__(self, data: bytes, version: int, tree: int, contents: int, names: int) -> None:
        self.data = data
        self._tree, self._contents, self._names = tree, contents, names
        self._node_size = _NODE.size + (8 if version >= 2 else 0)  # then with a time of change

    def node(self, index: int) -> tuple[int, int, int, int]:
        return _NODE.unpack_from(self.data, self._tree + index * self._node_size)

    def name(self, offset: int) -> str:
        start = self._names + offset
        (length,) = struct.unpack_from(">H", self.data, start)
        start += 6  # the length, and a hash
        return self.data[start : start + 2 * length].decode("utf-16-be")

    def content(self, offset: int, flags: int) -> bytes:
        start = self._contents + offset
        (length,) = _LENGTH.unpack_from(self.data, start)
        content = self.data[start + 4 : start + 4 + length]
        if len(content) < length:
            raise RccError("broken Qt resource file: cut off")
        if flags & _ZSTD:
            raise RccError("compressed by zstd, which is not read")
        return zlib.decompress(content[4:]) if flags & _ZLIB else content


def _walk(layout: _Layout, index: int, folder: str) -> Iterator[tuple[str, bytes]]:
    name, flags, first, second = layout.node(index)
    path = folder if index == _ROOT else f"{folder}{layout.name(name)}"
    if not flags & _FOLDER:
        yield path, layout.content(second, flags)
        return
    inside = path if index == _ROOT else f"{path}/"
    for child in range(second, second + first):
        if child <= index:
            raise RccError("broken Qt resource file: a folder within itself")
        yield from _walk(layout, child, inside)
