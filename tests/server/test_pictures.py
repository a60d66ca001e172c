"""Pictures in requests: taken as bytes, and refused before they are decoded."""

from __future__ import annotations

import base64
import io
import zlib
from pathlib import Path

import pytest
from PIL import Image

from ragvl.server.errors import ServerError, TooLarge, Unprocessable
from ragvl.server.pictures import inline_picture, is_url

LIMIT = 100  # pixels


def png(width: int = 8, height: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    "source",
    [
        f"data:image/png;base64,{encoded(png())}",
        f"DATA:image/png;charset=x;BASE64,{encoded(png())}",
        f"  data:;base64,{encoded(png())}",
        encoded(png()),
        encoded(png()).rstrip("="),
        "\n".join(encoded(png())[i : i + 20] for i in range(0, 400, 20)),
        base64.urlsafe_b64encode(png()).decode(),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in png()),
    ],
)
def test_every_way_to_send_a_picture_gives_its_bytes(source: str) -> None:
    picture = inline_picture(source, "documents[0].image", LIMIT)
    assert picture.data == png()
    assert picture.pixels == 32


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc/passwd",
        "FILE:/etc/passwd",
        "ftp://example.org/tower.png",
        "C:/tower.png",
        "javascript:alert(1)",
    ],
)
def test_other_schemes_are_refused_by_name(source: str) -> None:
    scheme = source.partition(":")[0].lower()
    with pytest.raises(Unprocessable, match=f"not '{scheme}:'"):
        inline_picture(source, "query.image", LIMIT)


def test_a_path_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tower").write_bytes(png())
    monkeypatch.chdir(tmp_path)
    for source in ("tower", "./tower", str(tmp_path / "tower"), "~/tower"):
        with pytest.raises(Unprocessable):
            inline_picture(source, "documents[0].image", LIMIT)


@pytest.mark.parametrize(
    "source", ["data:image/png;base64", "data:image/png;base64,", "!", encoded(b"no picture")]
)
def test_what_is_no_picture_is_refused_at_its_place(source: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        inline_picture(source, "documents[2].image", LIMIT)
    assert caught.value.param == "documents[2].image"
    assert caught.value.message.startswith("documents[2].image")
    assert len(caught.value.message) < 300


@pytest.mark.slow
def test_a_picture_of_too_many_pixels_is_refused_by_its_header() -> None:
    whole = png(5000, 5000)
    with pytest.raises(TooLarge) as caught:
        # of the pixels nothing is there
        inline_picture(encoded(whole[:64]), "documents[0].image", LIMIT)
    assert "5000x5000" in caught.value.message


def test_a_picture_that_pil_takes_for_a_bomb_is_too_large() -> None:
    header = bytearray(png()[:64])
    header[16:24] = (60000).to_bytes(4) * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4)
    with pytest.raises(ServerError) as caught:
        inline_picture(encoded(bytes(header)), "documents[0].image", 10**12)
    assert caught.value.status == 413


@pytest.mark.parametrize("source", ["http://example.org/a", " HTTPS://example.org/a"])
def test_urls_are_told_from_pictures(source: str) -> None:
    assert is_url(source)
    assert not is_url(encoded(png())) and not is_url("data:image/png;base64,AA")
