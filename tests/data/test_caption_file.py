"""Captions in a file of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_files import write_picture

from ragvl.data.caption_file import CaptionFile
from ragvl.data.document import Document
from ragvl.data.problems import DataError


def write_captions(folder: Path, *lines: str) -> CaptionFile:
    folder.mkdir(exist_ok=True)
    (folder / "captions.csv").write_text("\n".join(["image,caption", *lines]))
    return CaptionFile(folder / "captions.csv")


def test_a_picture_is_known_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file's folder first: another one of that name elsewhere is another picture."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "set/a.png", "c.png"):
        write_picture(tmp_path / name)
    captions = write_captions(
        tmp_path / "set", "./a.png,Of the set", "c.png,Of here", f'{tmp_path}/a.png,"By, path"'
    )
    sources = [Path("set/a.png"), tmp_path / "set/../c.png", Path("a.png"), "set//a.png"]
    found = [captions.captioned(Document(source)) for source in sources]
    assert [one.caption for one in found] == ["Of the set", "Of here", "By, path", "Of the set"]
    assert [one.path for one in found] == list(map(str, sources))
    assert (captions.num_found, captions.num_without) == (4, 0)


def test_other_documents_stay_as_they_are(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png")
    captions = write_captions(tmp_path, "a.png,One", "a.png,Two")
    others = [
        Document(path, "Its own"),
        Document(path.read_bytes()),
        Document(text="A text"),
        Document(parts=[path, "A part"]),
        Document(tmp_path / "b.png", id="b"),
    ]
    assert [captions.captioned(one) for one in others] == others
    assert (captions.num_found, captions.num_without) == (0, 1)
    assert captions.problems.counts == {"two captions": 1}
    with pytest.raises(DataError, match="has a caption for none of the 1 pictures"):
        captions.check_found()
    named = captions.captioned(Document(path, id="a", max_pixels=100))
    assert (named.caption, named.id, named.max_pixels) == ("One", "a", 100)
    captions.check_found()
