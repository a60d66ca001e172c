"""Names of content: two things have the same name only if they are the same, to the last byte.

A *name* is a SHA-256 in hexadecimal, made by `name_of` for something of a kind. A model's
*fingerprint* names all that its results depend on, a picture's *digest* its content, and a *key* is
what something is kept under. A *checksum* only says that a file holds what was written to it.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import importlib.metadata
import json
import os
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any

from ragvl.files import check_regular, open_regular

# Fields of a model's configuration that make no difference to what it computes: where it came from,
# which version wrote it, what its dtype was in the file, and what is returned beside the result
_IDLE_FIELDS = {
    "_name_or_path",
    "architectures",
    "dtype",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}

# A file that was changed so recently might be changed again without a later time on it
_SETTLED_AFTER = 2.0  # seconds


class UnnamedContentError(TypeError):
    """A value of which it is not known what it holds, so that no name could cover it."""


def name_of(kind: str, *parts: object) -> str:
    """A name, 64 hexadecimal digits, for something of a `kind` that is made of `parts`.

    Parts are hashed with their types and lengths, the kind first: "ab" and "c" give another name
    than "a" and "bc", 1 another than "1", and things of different kinds never share one.

    Args:
        kind: what is named: "pixels", "prefix", ...
        parts: None, booleans, numbers, strings, bytes, members of enumerations, and dataclasses,
            sequences and mappings of such; the order of a mapping's keys makes no difference.

    Raises:
        UnnamedContentError: a part is of another type.
    """
    digest = hashlib.sha256()
    for part in (kind, *parts):
        digest.update(_encoded(part))
    return digest.hexdigest()


def _encoded(part: object) -> bytes:
    """The part's type, length and content; no encoding is the beginning of another one."""
    if isinstance(part, enum.Enum):
        return _encoded((type(part).__qualname__, part.name))
    if part is None or isinstance(part, bool):
        return _tagged(b"c", str(part).encode())
    if isinstance(part, int):
        return _tagged(b"i", str(part).encode())
    if isinstance(part, float):
        return _tagged(b"f", struct.pack(">d", part))
    if isinstance(part, str):
        return _tagged(b"s", part.encode("utf-8", "surrogatepass"))
    if isinstance(part, bytes | bytearray | memoryview):
        return _tagged(b"b", bytes(part))
    if isinstance(part, Mapping):
        items = sorted((_encoded(key), _encoded(value)) for key, value in part.items())
        return _tagged(b"m", b"".join(key + value for key, value in items))
    if isinstance(part, list | tuple):
        return _tagged(b"l", b"".join(map(_encoded, part)))
    if isinstance(part, set | frozenset):
        return _tagged(b"u", b"".join(sorted(map(_encoded, part))))
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        return _encoded((type(part).__qualname__, fields))
    raise UnnamedContentError(f"a {type(part).__qualname__} has no name that covers its content")


def _tagged(tag: bytes, content: bytes) -> bytes:
    return tag + struct.pack(">Q", len(content)) + content


def checksum(*parts: bytes | memoryview) -> str:
    """The SHA-256 of some bytes in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def json_checksum(value: object, *, sort_keys: bool = False) -> str:
    """The checksum of `value` written as JSON."""
    return checksum(json.dumps(value, sort_keys=sort_keys).encode())


def file_checksum(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> str:
    """The checksum of a file's bytes.

    Raises:
        OSError: it cannot be read; see `open_regular`.
    """
    with open_regular(path, max_bytes=max_bytes) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_name(content: bytes | bytearray | memoryview) -> str:
    """The name of a picture's encoded bytes; a file that holds them has the same."""
    return name_of("bytes", hashlib.sha256(content).digest())


def pixels_name(size: tuple[int, int], pixels: bytes) -> str:
    """The name of a picture in memory, by its width and height and its 8-bit RGB pixels."""
    return name_of("pixels", size, hashlib.sha256(pixels).digest())


def document_name(caption: str | None, picture_name: str) -> str:
    """The name of a document, by its caption and the name of its picture."""
    return name_of("document", caption, picture_name)


def file_bytes_name(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> str:
    """The name of a file's bytes: see `bytes_name`.

    The file is read once, and again when it is another file or may have been changed: its size, its
    time of change and the time that its entry changed (`st_ctime_ns`, which nobody can put back)
    are looked at each time.

    Args:
        path: the file.
        max_bytes: a larger one is refused; see `open_regular`.

    Raises:
        OSError: it cannot be read.
    """
    path = os.fspath(path)
    status = check_regular(path, max_bytes=max_bytes)
    if time.time() - max(status.st_mtime, status.st_ctime) < _SETTLED_AFTER:
        return _read_name(path, max_bytes)
    return _settled_name(path, max_bytes, *_marks(status))


def file_version_name(path: str | os.PathLike[str]) -> str:
    """A name that changes whenever the file is changed, replaced or moved; it is not read.

    Works for a file that is not there.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return name_of("missing file", os.path.abspath(path))
    return name_of("file", os.path.abspath(path), _marks(status))


def _marks(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


@lru_cache(maxsize=1 << 16)
def _settled_name(path: str, max_bytes: int | None, *_marks: int) -> str:
    return _read_name(path, max_bytes)


def _read_name(path: str, max_bytes: int | None) -> str:
    return name_of("bytes", bytes.fromhex(file_checksum(path, max_bytes=max_bytes)))


# --- what a checkpoint holds beside its weights -------------------------------------------------


def config_content(config: Any) -> dict[str, Any]:
    """A Hugging Face configuration, nested ones included, as `name_of` takes it.

    Fields that have their class's default are left out, so that versions of transformers that know
    more fields give the same; so is what makes no difference to a result.
    """
    return _without_idle_fields(config.to_diff_dict())


def _without_idle_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_idle_fields(value) if isinstance(value, Mapping) else value
        for name, value in fields.items()
        if name not in _IDLE_FIELDS
    }


def tokenizer_content(tokenizer: Any) -> str:
    """All that a fast tokenizer makes of a text: vocabulary, merges, normalizers, added tokens.

    Truncation and padding are left out, which a call leaves behind in it.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({**content, "truncation": None, "padding": None}, sort_keys=True)


@cache
def library_versions() -> dict[str, str]:
    """The versions of what prepares and computes: another one may give other bits."""
    versions = {}
    for name in ("ragvl", "torch", "transformers", "tokenizers", "pillow", "torchvision"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
