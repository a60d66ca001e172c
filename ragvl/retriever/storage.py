"""A folder that changes from one whole state to the next, and knows when it is damaged.

    folder/ragvl_index.json     which state is current: its files, their sizes and SHA-256
    folder/state-<hex>/...      that state's files

A new state is written beside the old one; replacing `ragvl_index.json`, one atomic rename, makes it
the current one. Until then a reader sees the old state, whatever happens to the writer.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from ragvl.files import UnusableFileError, check_regular, flush, open_regular, write_text
from ragvl.identity import file_checksum, json_checksum
from ragvl.messages import shown, validation_reason

MANIFEST = "ragvl_index.json"
FORMAT_VERSION = 1

_STATE_NAME = re.compile(r"state-[0-9a-f]{16}")


_MAX_MANIFEST_BYTES = 2**20

_FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")]


class _Entry(BaseModel):
    bytes: Annotated[int, Field(ge=0)]
    sha256: str


class _Manifest(BaseModel):
    """What the manifest says; the names of its files lead nowhere else."""

    metadata: dict[str, Any]
    state: Annotated[str, StringConstraints(pattern=rf"^{_STATE_NAME.pattern}$")]
    files: dict[_FileName, _Entry]


class IndexFileError(ValueError):
    """A saved index is damaged, incomplete, or something else altogether."""


def save_state(
    folder: str | Path, metadata: Mapping[str, Any], files: Mapping[str, Callable[[Path], object]]
) -> None:
    """Makes `metadata` and `files` the state of `folder`, all at once or not at all.

    Args:
        folder: made if it is not there; other files in it are left alone.
        metadata: anything that JSON can hold.
        files: writes the file of that name to the path it is given.

    Raises:
        OSError: `folder` is a file, or cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / f"state-{secrets.token_hex(8)}"
    state.mkdir()
    try:
        entries = {}
        for name, write in files.items():
            write(state / name)
            flush(state / name)
            size, sha256 = (state / name).stat().st_size, file_checksum(state / name)
            entries[name] = {"bytes": size, "sha256": sha256}
        body = {
            "format": FORMAT_VERSION,
            "metadata": dict(metadata),
            "state": state.name,
            "files": entries,
        }
        flush(state)
        text = json.dumps({**body, "sha256": json_checksum(body, sort_keys=True)}, indent=2)
        write_text(folder / MANIFEST, text + "\n")
    except BaseException:
        shutil.rmtree(state, ignore_errors=True)
        raise
    flush(folder)
    for other in folder.iterdir():
        if _STATE_NAME.fullmatch(other.name) and other.name != state.name:
            shutil.rmtree(other)


def load_state(folder: str | Path) -> tuple[dict[str, Any], Path]:
    """A folder's metadata, and where its files are, after checking every byte of them.

    Raises:
        FileNotFoundError: there is no saved index in `folder`.
        IndexFileError: it is damaged, or of a newer version.
    """
    folder = Path(folder)
    written = _check_sizes(folder)
    state = folder / written.state
    for name, entry in written.files.items():
        if file_checksum(state / name) != entry.sha256:
            raise IndexFileError(f"{shown(state / name)} is damaged: its checksum does not match")
    return written.metadata, state


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """A folder's metadata, once its files are seen to have their sizes; none is read.

    Raises:
        FileNotFoundError, IndexFileError: see `load_state`.
    """
    return _check_sizes(Path(folder)).metadata


def _check_sizes(folder: Path) -> _Manifest:
    """What the manifest of `folder` says, once the files that it names are there."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        raise FileNotFoundError(f"{folder} holds no saved index (there is no {MANIFEST} in it)")
    try:
        with open_regular(manifest, max_bytes=_MAX_MANIFEST_BYTES) as file:
            body = json.loads(file.read())
        checksum = body.pop("sha256")
        version = body["format"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IndexFileError(f"{shown(manifest)} is damaged, or not written by ragvl") from error
    except UnusableFileError as error:
        raise IndexFileError(f"{shown(manifest)}: {error.strerror}") from error
    if version != FORMAT_VERSION:
        raise IndexFileError(
            f"{manifest} has format {version!r} and this ragvl reads {FORMAT_VERSION}; "
            "use the ragvl that wrote it, or build the index again"
        )
    if checksum != json_checksum(body, sort_keys=True):
        raise IndexFileError(f"{manifest} is damaged: its checksum does not match")
    try:  # a checksum says that it is as it was written, not that ragvl wrote it
        written = _Manifest.model_validate(body)
    except ValidationError as error:
        raise IndexFileError(
            f"{shown(manifest)} was not written by ragvl: {validation_reason(error)}"
        ) from error
    state = folder / written.state
    for name, entry in written.files.items():
        path = state / name
        if not path.exists():
            raise IndexFileError(f"{shown(path)} is missing; build the index again")
        try:
            check_regular(path, max_bytes=entry.bytes)
        except UnusableFileError as error:
            raise IndexFileError(f"{shown(path)} is damaged: {error.strerror}") from error
        if path.stat().st_size != entry.bytes:
            raise IndexFileError(f"{shown(path)} is damaged: its size does not match")
    return written
