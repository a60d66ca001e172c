"""Whatever a caller has for a picture becomes one of a few forms, or says why it cannot."""

from __future__ import annotations

import base64
import gzip
import io
import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ragvl.data.document import Document
from ragvl.data.image_sources import UnusableSource, plain_source
from ragvl.data.images import ImageError, load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()
BASE64 = base64.b64encode(PNG).decode()


def pixels(source: Any) -> np.ndarray:
    return np.asarray(Document(source).load())


@pytest.mark.parametrize(
    "source",
    [
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        memoryview(np.repeat(np.frombuffer(PNG, np.uint8), 2))[::2],
        io.BytesIO(PNG),
        f"data:image/png;base64,{BASE64}",
        f"DATA:image/png;charset=x;BASE64,{BASE64.rstrip('=')}",
        f"data:;base64,{BASE64[:20]}\r\n {BASE64[20:]}",
        "data:image/png;base64," + base64.urlsafe_b64encode(PNG).decode(),
        "data:image/png;base64," + BASE64.replace("+", "%2B").replace("/", "%2f"),
        "data:image/png," + quote_from_bytes(PNG),
        {"bytes": PNG, "path": None},
        {"bytes": PNG, "path": "gone.png"},
        {"bytes": bytearray(PNG)},
        PIXELS,
        torch.from_numpy(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255).requires_grad_(),
        (torch.from_numpy(PIXELS) / 255).double(),
    ],
    ids=lambda source: type(source).__name__,
)
def test_forms_in_memory(source: Any) -> None:
    np.testing.assert_array_equal(pixels(source), PIXELS)


def test_tensors_of_one_channel_and_of_half_precision() -> None:
    grey = torch.tensor([[0.0, 0.5, 1.0]])
    expected = np.repeat(np.uint8([[[0], [128], [255]]]), 3, axis=2)
    for tensor in (grey, grey[None].repeat(1, 2, 2), grey.bfloat16(), grey.half()):
        loaded = pixels(tensor)
        np.testing.assert_array_equal(loaded[:1, :3], expected)


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ein Bild, ü.png"
    path.write_bytes(PNG)
    packed = tmp_path / "picture.png.gz"
    packed.write_bytes(gzip.compress(PNG))
    monkeypatch.setenv("HOME", str(tmp_path))
    short = f"~/{path.name}"
    for source in (path, str(path), short, Path(short), path.as_uri(), {"path": short}):
        np.testing.assert_array_equal(pixels(source), PIXELS)
        assert Document(source).path == str(path)
    with (
        path.open("rb") as plain,
        path.open("rb", buffering=0) as raw,
        gzip.open(packed) as unpacked,
        tempfile.TemporaryFile() as temporary,
    ):
        temporary.write(PNG)  # and is at its end
        for file in (plain, raw, unpacked, temporary):
            at = file.tell()
            document = Document(file)
            assert file.tell() == at
            file.close()
            np.testing.assert_array_equal(np.asarray(document.load()), PIXELS)
    with path.open() as text, pytest.raises(TypeError, match="text mode"):
        Document(text)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("https://example.org/a.png", "URLs are not fetched: download it"),
        (Path("https://example.org/a.png"), "URLs are not fetched"),
        ("s3://bucket/a.png", "URLs are not fetched"),
        ("file://elsewhere/a.png", "another machine"),
        ("file://[", "Invalid IPv6"),
        (f"data:image/png;base64,!{BASE64}", "not base64"),
        ("data:image/png;base64,A", "not base64"),
        ("data:image/png;base64,\ud800", "not base64"),
        ("data:image/png;base64", "no comma"),
        ("data:,", "0 bytes"),
        (f"data:image/svg+xml;base64,{BASE64[8:]}", "not a picture that can be read here"),
        (Path(f"data:image/png;base64,{BASE64}"), "give it as a string"),
        (BASE64 * 50, "before base64 text put 'data:"),
        ("a\0b.png", "no file can have this name"),
        ("\ud800.png", "no file can have this name"),
        (io.BytesIO(), "0 bytes"),
        ({"bytes": None, "path": None}, "both are None"),
        (torch.zeros(3, 5, 3), r"may be \(C, H, W\) or \(H, W, C\)"),
        (torch.zeros(1, 3, 5, 5), "expected the shape"),
        (torch.zeros(2, 5, 5), "expected the shape"),
        (torch.zeros(3, 5, 5, dtype=torch.int64), "expected the dtype"),
        (torch.full((3, 5, 5), 200.0), r"must be in \[0, 1\]"),
        (torch.zeros(3, 5, 5, device="meta"), "cannot be used"),
        (torch.zeros(5, 5).to_sparse(), "cannot be used"),
    ],
    ids=lambda value: f"{value!s:.30}" if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_a_picture_says_why_when_it_is_loaded(source: Any, reason: str) -> None:
    document = Document(source, id="i" * 1000)
    for call in (document.load, document.digest):
        if call == document.digest and isinstance(document.image, bytes):
            continue
        with pytest.raises(ImageError, match=reason) as error:
            call()
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 500
        assert not str(error.value).rstrip().endswith(":")


@pytest.mark.parametrize(
    "source", [{}, {"image": "a"}, {"bytes": "a"}, {"path": 3}, object(), io.StringIO("x")]
)
def test_what_is_none_of_the_forms_is_a_type_error(source: Any) -> None:
    with pytest.raises(TypeError, match=r"must be|picture's"):
        Document(source)


def test_files_that_need_not_end_or_cannot_be_read(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as pipe, open(write_end, "wb") as writing:
        for file in (pipe, writing):
            assert plain_source(file) == UnusableSource(
                "an open file", "it is no regular file: read it and give its bytes"
            )
    closed = (tmp_path / "a").open("wb")
    assert "not readable" in plain_source(closed).reason or "read" in plain_source(closed).reason
    closed.close()
    for file in (closed, io.BytesIO()):
        file.close()
        assert "closed file" in plain_source(file).reason


def test_what_changes_later_was_copied() -> None:
    data = bytearray(PNG)
    document = Document(data)
    first = document.digest()
    data[:] = bytes(len(data))
    assert Document(document.image).digest() == first
    np.testing.assert_array_equal(np.asarray(document.load()), PIXELS)


@given(st.binary(max_size=100), st.booleans(), st.text("abc;=/+-.", max_size=10))
def test_data_urls_give_back_any_bytes(data: bytes, in_base64: bool, kind: str) -> None:
    kind = kind.removesuffix(";base64")
    body = base64.b64encode(data).decode() if in_base64 else quote_from_bytes(data)
    assert plain_source(f"data:{kind}{';base64' * in_base64},{body}") == data


STARTS = st.sampled_from(["data:", "data:;base64,", "file:/", "ab://", "~", ""])


@given(st.text(max_size=60), STARTS)
def test_any_text_is_a_path_bytes_or_unusable_and_loads_as_an_error(text: str, start: str) -> None:
    picture = plain_source(start + text)
    assert isinstance(picture, str | bytes | UnusableSource)
    with pytest.raises(ImageError) as error:
        load_image(start + text)
    assert str(error.value).isprintable()


def test_names_hold_little_and_nothing_that_a_terminal_obeys() -> None:
    long = Document("p" * 5000 + "\x1b[31m.png", id="i" * 5000 + "\x1b]0;\x07").name
    assert long.isprintable()
    assert long.count("p") + long.count("i") <= 210
    url = Document(f"data:image/png;base64,{BASE64}")
    assert url.name == f"document a picture of {len(PNG)} bytes"
