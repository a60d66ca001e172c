"""Packages are read as they are served, and broken ones are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from real.archives import ArchiveError, archived
from real.rcc import RccError, rcc_files
from tiny_packages import rcc, write_deb, write_npm, write_wheel

FILES = {"usr/share/a.txt": b"first", "usr/share/doc/copyright": b"mine", "b": b""}


def _written(kind: str, folder: Path) -> Path:
    if kind == "deb":
        return write_deb(folder / "a_1_all.deb", FILES)
    if kind == "tgz":
        return write_npm(folder / "a-1.tgz", FILES)
    return write_wheel(folder, "a", FILES)


@pytest.mark.parametrize("kind", ["deb", "whl", "tgz"])
def test_wanted_files_are_read(kind: str, tmp_path: Path) -> None:
    path = _written(kind, tmp_path)
    assert dict(archived(path, FILES.__contains__)) == FILES
    assert dict(archived(path, lambda name: name == "b")) == {"b": b""}


@pytest.mark.parametrize("kind", ["deb", "whl", "tgz"])
@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_broken_package_is_named(kind: str, damage: str, tmp_path: Path) -> None:
    path = _written(kind, tmp_path)
    content = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "cut": content[: len(content) // 2], "other": b"x" * 99}[damage]
    )
    with pytest.raises(ArchiveError, match=path.name):
        list(archived(path, lambda _: True))


TREE = {"qrc/board/a.qml": b"text" * 50, "qrc/board/b.webp": b"\0\1", "qrc/key": b"k", "top": b""}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("compressed", [True, False])
def test_resource_file_is_walked(version: int, compressed: bool) -> None:
    assert dict(rcc_files(rcc(TREE, version=version, compressed=compressed))) == TREE


@pytest.mark.parametrize("cut", [0, 10, 60, -9])
def test_broken_resource_file_is_refused(cut: int) -> None:
    with pytest.raises(RccError):
        list(rcc_files(rcc(TREE)[:cut]))


def test_resource_file_of_something_else_is_refused() -> None:
    with pytest.raises(RccError, match="no Qt resource file"):
        list(rcc_files(b"GIF89a" + bytes(90)))


def test_folder_within_itself_is_refused() -> None:
    content = bytearray(rcc({"a/b": b"c"}))
    tree = int.from_bytes(content[8:12], "big")
    first_child = tree + 10
    content[first_child : first_child + 4] = bytes(4)  # the root's first child is the root
    with pytest.raises(RccError, match="within itself"):
        list(rcc_files(bytes(content)))
