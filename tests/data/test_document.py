from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ragvl.data.document import Document
from ragvl.data.images import ImageError


@pytest.mark.parametrize(
    "image", ["a.png", Path("a.png"), b"\x89PNG", Image.new("RGB", (2, 2)), np.zeros((2, 2))]
)
def test_of_wraps_a_bare_picture(image):
    document = Document.of(image)
    assert document.image is image
    assert document.caption is None
    assert document.id is None


def test_of_keeps_a_document():
    document = Document("a.png", caption="a", id="1")
    assert Document.of(document) is document


@pytest.mark.parametrize("image", [None, 7, ["a.png"], {"image": "a.png"}])
def test_of_refuses_what_is_no_picture(image):
    with pytest.raises(TypeError, match=type(image).__name__):
        Document.of(image)


def test_fields_are_checked():
    with pytest.raises(TypeError, match="caption must be a string or None, not int"):
        Document("a.png", caption=3)
    with pytest.raises(TypeError, match="id must be a string or None, not int"):
        Document("a.png", id=3)
    with pytest.raises(ValueError, match="id is empty"):
        Document("a.png", id="")


def test_name_says_which_document():
    assert Document("a.png").name == "document 'a.png'"
    assert Document("a.png", id="7").name == "document '7' ('a.png')"
    assert Document(b"1234", id="7").name == "document '7' (a picture of 4 bytes)"


def test_path():
    assert Document("a.png").path == "a.png"
    assert Document(Path("b") / "a.png").path == str(Path("b") / "a.png")
    assert Document(b"1234").path is None


def test_identity_makes_documents_usable_as_keys():
    array = np.zeros((2, 2))
    first, second = Document(array), Document(array)
    assert first != second
    assert len({first, second, first}) == 2


def test_load(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (3, 2), 9).save(path)
    image = Document(path).load()
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert image.getpixel((0, 0)) == (9, 9, 9)


def test_load_names_the_document(tmp_path):
    with pytest.raises(ImageError, match=r"document '30011' \('.*gone\.png'\)"):
        Document(tmp_path / "gone.png", id="30011").load()


def test_a_digest_names_the_content(tmp_path):
    picture = Image.new("RGB", (8, 6), "red")
    other = Image.new("RGB", (6, 8), "red")
    digests = {Document(x).digest() for x in (picture, picture.copy(), np.asarray(picture))}
    assert len(digests) == 1
    assert Document(other).digest() not in digests
    path = tmp_path / "a.png"
    picture.save(path)
    assert Document(path).digest() == Document(path.read_bytes()).digest()
    with pytest.raises(ImageError, match=r"missing\.png"):
        Document(tmp_path / "missing.png").digest()
    with pytest.raises(ImageError, match="no pixels"):
        Document(np.zeros((0, 3, 3), np.uint8), id="empty").digest()


@pytest.mark.parametrize("age", [0, 1000], ids=["fresh", "settled"])
def test_a_changed_file_has_another_digest(tmp_path, age):
    """Even one that keeps its size and, within the clock's resolution, its time of change."""
    path = tmp_path / "a.bin"
    document = Document(path)
    path.write_bytes(b"1234")
    then = time.time() - age
    os.utime(path, (then, then))
    first = document.digest()
    assert document.digest() == first
    path.write_bytes(b"4321")
    if age == 0:
        os.utime(path, (then, then))
    assert document.digest() != first


def test_bytes_that_spell_a_picture_do_not_take_its_name() -> None:
    picture = Image.new("RGB", (8, 6), "red")
    spelled = f"{picture.size} ".encode() + picture.tobytes()
    assert Document(spelled).digest() != Document(picture).digest()
