"""Tiny packages, of the formats that registries serve."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from PIL import Image

_FOLDER, _ZLIB = 2, 1


def write_deb(path: Path, files: Mapping[str, bytes]) -> Path:
    """A Debian package: an ar archive of a version, an empty control part and the files."""
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": _tar({}, "w:xz"),
        "data.tar.xz": _tar({f"./{name}": data for name, data in files.items()}, "w:xz"),
    }
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in members.items():
            header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
            file.write(header.encode() + content + b"\n" * (len(content) % 2))
    return path


def write_npm(path: Path, files: Mapping[str, bytes]) -> Path:
    """A package of npm: a .tgz."""
    path.write_bytes(_tar(files, "w:gz"))
    return path


def _tar(files: Mapping[str, bytes], mode: Literal["w:xz", "w:gz"]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return written.getvalue()


def write_wheel(folder: Path, name: str, files: Mapping[str, bytes]) -> Path:
    """A wheel of version 1.0 that pip takes."""
    about = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, content in files.items():
            archive.writestr(inside, content)
        archive.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{about}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{about}/LICENSE", "do as you like")
        archive.writestr(f"{about}/RECORD", "")
    return path


def rcc(files: Mapping[str, bytes], *, version: int = 2, compressed: bool = True) -> bytes:
    """Qt's resource file: header, data, names, tree."""
    tree: dict = {}
    for path, content in files.items():
        *folders, name = path.split("/")
        inside = tree
        for folder in folders:
            inside = inside.setdefault(folder, {})
        inside[name] = content
    data, names, nodes = bytearray(), bytearray(), [b""]
    queue = [(0, "", tree)]
    while queue:
        index, name, content = queue.pop(0)
        name_offset = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(content, dict):
            first = len(nodes)
            nodes += [b""] * len(content)
            queue += [(first + rank, *item) for rank, item in enumerate(content.items())]
            node = struct.pack(">IHII", name_offset, _FOLDER, len(content), first)
        else:
            offset = len(data)
            stored = struct.pack(">I", len(content)) + zlib.compress(content)
            stored = stored if compressed else content
            data += struct.pack(">I", len(stored)) + stored
            node = struct.pack(">IHII", name_offset, _ZLIB if compressed else 0, 0, offset)
        nodes[index] = node + (bytes(8) if version >= 2 else b"")
    start = 20 + (4 if version >= 3 else 0)
    header = struct.pack(">4sI", b"qres", version)
    places = start + len(data) + len(names), start, start + len(data)
    flags = bytes(4) if version >= 3 else b""
    return header + struct.pack(">3I", *places) + flags + data + names + b"".join(nodes)


def png(color: tuple[int, ...], size: tuple[int, int] = (24, 24), mode: str = "RGBA") -> bytes:
    """A picture of one color."""
    written = io.BytesIO()
    Image.new(mode, size, color).save(written, "PNG")
    return written.getvalue()
