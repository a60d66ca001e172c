"""What callers hand over for a picture, brought into one of a few forms that the rest knows."""

from __future__ import annotations

import base64
import io
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Union
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image

from ragvl.files import expand_user, url_scheme
from ragvl.messages import MAX_SHOWN, quoted, reason, shown

if TYPE_CHECKING:
    from torch import Tensor

MAX_FILE_BYTES = 2**30  # of a picture's file; twice what the largest raw picture needs
_MAX_URL = MAX_FILE_BYTES // 3 * 4  # characters, in base64
_NUM_CHANNELS = (1, 3, 4)
_EXPECTED = (
    "a picture must be a path, a data: URL, a file's bytes, a file open in binary mode, a PIL "
    "image, a numpy array, a torch tensor or {'bytes': ..., 'path': ...}"
)


@dataclass(frozen=True)
class UnusableSource:
    """What was given for a picture and is none; whoever loads it gets an error that says so.

    Attributes:
        what: what to call it in a message.
        reason: what is wrong with it.
    """

    what: str
    reason: str


PlainSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | UnusableSource
# A Union, since torch is not imported here and its name alone cannot be joined with |
ImageSource = Union[PlainSource, bytearray, memoryview, BinaryIO, Mapping[str, Any], "Tensor"]


def plain_source(source: ImageSource) -> PlainSource:
    """`source` as a path, a file's bytes, a PIL image or an array (H, W, C).

    Args:
        source: one of those, left as it is, except that "~" in a path is expanded; or

            - a data: URL, in base64 or percent-encoded; a file: URL. No other URL is fetched;
            - `bytearray` or `memoryview`: a file's bytes, copied;
            - a file open in binary mode: its bytes, read now and from its start;
            - a torch tensor (H, W), (C, H, W) or (H, W, C), on any device, uint8 or floating in
              [0, 1], with 1, 3 or 4 channels;
            - `{"bytes": ..., "path": ...}`, as Hugging Face datasets keep an encoded picture: the
              bytes, or else the path.

    Raises:
        TypeError: `source` is none of these. What is one of them and yet no picture gives an
            `UnusableSource`.
    """
    if isinstance(source, str):
        return _from_text(source)
    if isinstance(source, os.PathLike):
        return _from_path(source)
    if isinstance(source, bytes | Image.Image | np.ndarray | UnusableSource):
        return source
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    if isinstance(source, Mapping):
        return _from_cell(source)
    if (torch := sys.modules.get("torch")) is not None and isinstance(source, torch.Tensor):
        return _from_tensor(source)
    if callable(getattr(source, "read", None)):
        return _from_file(source)
    raise TypeError(f"{_EXPECTED}, not {type(source).__name__}")


def describe(picture: PlainSource, limit: int = MAX_SHOWN) -> str:
    """A few words for a picture that has no other name; of a path at most `limit` characters."""
    if isinstance(picture, UnusableSource):
        return picture.what
    if isinstance(picture, str | os.PathLike):
        return quoted(os.fspath(picture), limit)
    if isinstance(picture, bytes):
        return f"a picture of {len(picture)} bytes"
    if isinstance(picture, Image.Image):
        return f"a PIL image ({picture.mode}, {picture.width}x{picture.height})"
    return f"an array ({picture.dtype}, {picture.shape})"


def _from_text(text: str) -> PlainSource:
    scheme = url_scheme(text)
    if scheme is None:
        return expand_user(text)
    return _from_data_url(text) if scheme == "data" else _from_url(text, scheme)


def _from_path(path: os.PathLike[str]) -> PlainSource:
    text = os.fsdecode(os.fspath(path))
    if text[:5].lower() == "data:":
        # "//" in base64 has become "/"
        return UnusableSource("a data: URL", "a Path changes it: give it as a string")
    usable = _from_text(text)
    return path if usable == os.fspath(path) else usable


def _from_data_url(url: str) -> PlainSource:
    what = f"a data: URL of {len(url):,} characters"
    head, comma, body = url.partition(",")
    if not comma:
        return UnusableSource(what, "it has no comma before its data")
    if len(url) > _MAX_URL:
        return UnusableSource(what, f"it may have {_MAX_URL:,} characters")
    try:
        data = unquote_to_bytes(body)
        return _from_base64(data) if head.lower().endswith(";base64") else data
    except ValueError as error:
        return UnusableSource(what, f"its data is not base64: {reason(error)}")


def _from_base64(text: bytes) -> bytes:
    """Of either alphabet, with white space in it and its padding left out, as browsers take it."""
    digits = text.translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n\f").rstrip(b"=")
    return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)


def _from_url(url: str, scheme: str) -> PlainSource:
    what = quoted(url)
    if scheme != "file":
        why = "URLs are not fetched: download it and give the path or bytes"
        return UnusableSource(what, why)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        return UnusableSource(what, reason(error))
    if parts.netloc not in ("", "localhost"):
        return UnusableSource(what, "it is on another machine")
    return url2pathname(parts.path)


def _from_cell(cell: Mapping[str, Any]) -> PlainSource:
    if not cell or not set(cell) <= {"bytes", "path"}:
        keys = shown(", ".join(map(str, cell)))
        raise TypeError(f"{_EXPECTED}, not a {type(cell).__name__} of {keys or 'nothing'}")
    data, path = cell.get("bytes"), cell.get("path")
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    if data is not None:
        raise TypeError(f"a picture's 'bytes' must be bytes or None, not {type(data).__name__}")
    if isinstance(path, str | os.PathLike):
        return plain_source(path)
    if path is not None:
        raise TypeError(f"a picture's 'path' must be a path or None, not {type(path).__name__}")
    return UnusableSource("a picture without bytes and path", "both are None")


def _from_tensor(tensor: Tensor) -> PlainSource:
    what = f"a tensor ({tensor.dtype}, {tuple(tensor.shape)})"
    is_first, is_last = (
        tensor.ndim == 3 and tensor.shape[axis] in _NUM_CHANNELS for axis in (0, 2)
    )
    if is_first and is_last:
        why = "it may be (C, H, W) or (H, W, C): give an array (H, W, C)"
        return UnusableSource(what, why)
    if not (is_first or is_last or tensor.ndim == 2):
        why = f"expected the shape (H, W), (C, H, W) or (H, W, C), with {_NUM_CHANNELS} channels"
        return UnusableSource(what, why)
    try:
        values = tensor.detach().cpu()
        # numpy has no bfloat16
        array = (values.float() if values.is_floating_point() else values).numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, quantised, meta
        return UnusableSource(what, reason(error))
    return np.moveaxis(array, 0, 2) if is_first else array


def _from_file(file: Any) -> PlainSource:
    if isinstance(file, io.TextIOBase):
        raise TypeError(f"{_EXPECTED}, not a file open in text mode")
    what = "an open file"
    try:
        if not _is_regular(file):
            return UnusableSource(what, "it is no regular file: read it and give its bytes")
        data = _read(file)
    except (OSError, ValueError) as error:  # closed, or not open for reading
        return UnusableSource(what, reason(error))
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"{_EXPECTED}, not a file that reads as {type(data).__name__}")
    if len(data) > MAX_FILE_BYTES:
        return UnusableSource(what, f"it has over {MAX_FILE_BYTES:,} bytes")
    return bytes(data)


def _is_regular(file: Any) -> bool:
    """Whether reading it ends: a pipe, a socket or a device may not."""
    try:
        descriptor = file.fileno()
    except (AttributeError, io.UnsupportedOperation):  # not open on anything of the system's
        return True
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _read(file: Any) -> Any:
    """From its start, as PIL does, and leaves it where it was."""
    if not (hasattr(file, "seekable") and file.seekable()):
        return file.read(MAX_FILE_BYTES + 1)
    at = file.tell()
    file.seek(0)
    try:
        return file.read(MAX_FILE_BYTES + 1)
    finally:
        file.seek(at)
