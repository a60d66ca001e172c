from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ragvl.data.document import Document
from ragvl.data.images import ImageError
from ragvl.data.picture import Picture
from ragvl.data.query import Query


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


class TestParts:
    def test_what_is_kept_is_texts_and_pictures_in_order(self, tmp_path):
        image = Image.new("RGB", (4, 4))
        document = Document(parts=["a", image, tmp_path / "b.png", {"text": "c"}, {"image": image}])
        kinds = [part if isinstance(part, str) else type(part) for part in document.parts]
        assert kinds == ["a", Picture, Picture, "c", Picture]
        assert [p.image for p in document.pictures] == [image, tmp_path / "b.png", image]
        assert document.picture is document.pictures[0]
        assert document.path is None and document.pictures[1].path == str(tmp_path / "b.png")
        again = Document(parts=document.parts)
        assert again.parts == document.parts

    def test_a_picture_and_its_caption_and_a_text_are_parts_too(self):
        document = Document(b"...", caption="A mill")
        assert document.parts == (document.picture, "A mill")
        assert Document(text="A mill").parts == ("A mill",)
        assert Document(text="A mill").pictures == ()

    def test_a_file_that_is_not_there_is_named_with_its_place(self, tmp_path):
        with pytest.raises(ImageError, match=r"'x' \(of 2 parts\), parts\[1\] .*no\.png.*no such"):
            Document(parts=["a", tmp_path / "no.png"], id="x").check_files()

    def test_a_digest_names_all_parts_and_their_order(self, tmp_path):
        file = tmp_path / "a.png"
        Image.new("RGB", (4, 4)).save(file)
        kinds = [["a", file], [file, "a"], [file], [file, file], ["a"], ["a", "a"], ["aa"]]
        assert len({Document(parts=parts).digest() for parts in kinds}) == len(kinds)
        assert Document(parts=["a", file]).digest() == Document(parts=["a", Path(file)]).digest()

    @pytest.mark.parametrize(
        ("fields", "error", "message"),
        [
            ({}, ValueError, "one of image, text and parts"),
            ({"image": b".", "text": "a"}, ValueError, "one of image, text and parts"),
            ({"text": "a", "parts": ["a"]}, ValueError, "one of image, text and parts"),
            ({"text": "a", "caption": "b"}, ValueError, "a caption belongs to an image"),
            ({"text": " \n"}, ValueError, "the text is empty"),
            ({"text": "a\ud800"}, ValueError, "half a character"),
            ({"text": 3}, TypeError, "text must be a string or None, not int"),
            ({"parts": "text"}, TypeError, "must be a list, not str"),
            ({"parts": ["a", ""]}, ValueError, r"parts\[1\]: the text is empty"),
            ({"parts": [3]}, TypeError, r"parts\[0\]: a picture must be"),
            ({"parts": [{"text": 3}]}, TypeError, r"parts\[0\]: a text must be a string, not int"),
            ({"parts": [{"image": None}]}, TypeError, r"parts\[0\]: a picture must be"),
            ({"parts": [{"video": "a.mp4"}]}, TypeError, r"parts\[0\]: a picture must be"),
        ],
    )
    def test_what_is_no_document_is_refused(self, fields, error, message):
        with pytest.raises(error, match=message):
            Document(**fields)


class TestQuery:
    def test_what_makes_a_query(self):
        image = Image.new("RGB", (4, 4))
        assert Query.of("a").parts == ("a",)
        assert Query.of(image).pictures[0].image is image
        both = Query.of({"image": image, "text": "a"})
        assert both.parts == (both.pictures[0], "a")
        turned = Query.of({"text": "a", "image": image})
        assert turned.parts == ("a", turned.pictures[0])
        asked = turned.instructed("Find mills.")
        assert (asked.instruction, asked.parts) == ("Find mills.", turned.parts)
        assert Query.of(both) is both

    @pytest.mark.parametrize(
        ("query", "error", "message"),
        [
            (None, TypeError, "must be a string, a picture"),
            (3, TypeError, "must be a string, a picture"),
            ({"text": "a", "video": "b"}, TypeError, "unknown keys.*video"),
            ({"text": None}, ValueError, "the query is empty"),
            (" ", ValueError, "the query is empty"),
            ("a\ud800", ValueError, "half a character"),
            ({"text": 3}, TypeError, "must be a string, not int"),
            ({"text": "a", "instruction": ""}, ValueError, "the instruction is empty"),
            ({"text": "a", "image": 3}, TypeError, "the query: a picture must be"),
        ],
    )
    def test_what_is_no_query_is_refused(self, query, error, message):
        with pytest.raises(error, match=message):
            Query.of(query)


def test_a_document_may_say_nothing_if_that_is_said() -> None:
    empty = Document(parts=[], id="blank page")
    assert empty.parts == empty.pictures == ()
    assert empty.name == "document 'blank page' (that is empty)"
    for given in ({}, {"text": ""}, {"parts": [""]}, {"parts": [], "text": "a"}):
        with pytest.raises(ValueError, match=r"must have one of|is empty"):
            Document(**given)
