"""Reads packages of Debian (.deb), PyPI (.whl) and npm (.tgz) without installing them."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

_MAGIC = b"!<arch>\n"  # of ar, which a .deb is: members, each after a header of text
_HEADER_BYTES = 60
_SIZE = slice(48, 58)


class ArchiveError(ValueError):
    """A file is no package that can be read."""


def archived(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Path and content of the files of a package whose path is `wanted`, in the archive's order.

    Raises:
        ArchiveError: it is no .deb, .whl or .tgz, or is broken.
    """
    read = {".deb": _deb, ".tgz": _tar}.get(path.suffix, _wheel)
    try:
        yield from read(path, wanted)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        lzma.LZMAError,
        zlib.error,
        EOFError,
    ) as error:
        raise ArchiveError(f"{path.name} is no package that can be read: {error}") from error


def _wheel(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir() and wanted(info.filename):
                yield info.filename, archive.read(info)


def _deb(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as file:
        _go_to_data(file)
        yield from _tar_files(file, wanted)


def _tar(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as file:
        yield from _tar_files(file, wanted)


def _tar_files(file: IO[bytes], wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    # A stream: decompressed once, from front to back
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        for info in archive:
            name = info.name.removeprefix("./")
            if info.isfile() and wanted(name):
                content = archive.extractfile(info)
                assert content is not None  # as of every regular file
                yield name, content.read()


def _go_to_data(file: IO[bytes]) -> None:
    """Moves to where the member data.tar.* begins."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise tarfile.ReadError("it does not begin as a Debian package does")
    while header := file.read(_HEADER_BYTES):
        if header.startswith(b"data.tar"):
            return
        try:
            size = int(header[_SIZE])
        except ValueError:
            break
        file.seek(size + size % 2, 1)
    raise tarfile.ReadError("it holds no data.tar")
