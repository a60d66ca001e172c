"""Flickr30K and MSCOCO in both published layouts, on small files."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_files import karpathy_image, write_karpathy, write_picture

from ragvl.data.captions import Captions
from ragvl.data.problems import DataError


def test_karpathys_file_gives_captions_and_their_pictures(tmp_path: Path) -> None:
    images = [
        karpathy_image("1.jpg", "A dog runs . ", "A brown dog."),
        karpathy_image("2.jpg", "A cat.", split="train"),
        karpathy_image("3.jpg", "A bird."),
    ]
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        write_picture(tmp_path / "flickr30k-images" / name)
    dataset = Captions(write_karpathy(tmp_path / "dataset_flickr30k.json", images))
    assert [q.text for q in dataset.questions] == ["A dog runs .", "A brown dog.", "A bird."]
    assert list(dataset.gold.values()) == [("1.jpg",), ("1.jpg",), ("3.jpg",)]
    assert len(dataset.gold) == 3  # ids differ
    assert dataset.document_ids() == dataset.document_ids("gold") == ["1.jpg", "3.jpg"]
    document = dataset.document("1.jpg")
    assert (document.caption, document.id, document.load().size) == (None, "1.jpg", (8, 8))
    assert dataset.template == "retrieval"
    with pytest.raises(KeyError, match=r"2\.jpg"):
        dataset.document("2.jpg")


def test_mscocos_pictures_lie_in_folders(tmp_path: Path) -> None:
    image = karpathy_image("COCO_1.jpg", "A dog.", filepath="val2014", cocoid=1)
    write_picture(tmp_path / "coco" / "val2014" / "COCO_1.jpg")
    path = write_karpathy(tmp_path / "dataset_coco.json", [image])
    dataset = Captions(path, images=tmp_path / "coco")
    assert dataset.document_ids() == ["val2014/COCO_1.jpg"]
    assert dataset.document("val2014/COCO_1.jpg").load().size == (8, 8)


def test_lines_of_image_and_caption(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text(
        'image,caption\n1.jpg,A dog .\n1.jpg,"A dog, brown, ""Rex"" ."\n2.jpg,One, two .\n'
        "3.jpg,\nnonsense\n"
    )
    for name in ("1.jpg", "2.jpg"):
        write_picture(tmp_path / "Images" / name)
    dataset = Captions(path)
    assert [(q.text, q.gold) for q in dataset.questions] == [
        ("A dog .", ("1.jpg",)),
        ('A dog, brown, "Rex" .', ("1.jpg",)),
        ("One, two .", ("2.jpg",)),
    ]
    assert dataset.problems.counts == {"empty caption": 1, "broken line": 1}


def test_protocols_are_folds_of_the_pictures(tmp_path: Path) -> None:
    for folder in ("", "images"):  # 2,000 names of one picture
        (tmp_path / folder).mkdir(exist_ok=True)
    real = write_picture(tmp_path / "real.jpg")
    images = []
    for number in range(2000):
        name = f"{number}.jpg"
        (tmp_path / "images" / name).symlink_to(real)
        images.append(karpathy_image(name, f"Caption {number}", f"Again {number}"))
    path = write_karpathy(tmp_path / "dataset_coco.json", images)
    (whole,) = Captions(path).searches()
    assert (len(whole.questions), len(whole.document_ids)) == (4000, 2000)
    folds = Captions(path, protocol="1k").searches()
    assert [(len(fold.questions), len(fold.document_ids)) for fold in folds] == [(2000, 1000)] * 2
    for fold in folds:
        assert {q.gold[0] for q in fold.questions} == set(fold.document_ids)
    assert not set(folds[0].document_ids) & set(folds[1].document_ids)
    with pytest.raises(DataError, match="2000 pictures, which are no folds of 5000"):
        Captions(path, protocol="5k")


def test_lost_pictures_and_broken_entries_are_named(tmp_path: Path) -> None:
    images: list[object] = [
        karpathy_image("1.jpg", "A dog."),
        karpathy_image("1.jpg", "Again."),
        karpathy_image("lost.jpg", "A cat."),
        karpathy_image("4.jpg", " "),
        {"split": "test"},
        3,
    ]
    write_picture(tmp_path / "1.jpg")
    path = write_karpathy(tmp_path / "dataset_flickr30k.json", images)
    dataset = Captions(path)
    assert [q.text for q in dataset.questions] == ["A dog."]
    assert dataset.problems.counts == {
        "duplicate id": 1,
        "missing picture": 1,
        "empty caption": 1,
        "broken sample": 2,
    }
    with pytest.raises(DataError, match="duplicate id"):
        Captions(path, strict=True)
    path.write_text(path.read_text()[:-10])
    assert Captions(path).problems.counts["truncated file"] == 1


def test_what_cannot_be_used_says_why(tmp_path: Path) -> None:
    path = write_karpathy(tmp_path / "dataset.json", [karpathy_image("1.jpg", "A dog.")])
    with pytest.raises(FileNotFoundError, match="none of the 1 pictures"):
        Captions(path)
    with pytest.raises(DataError, match="val has no usable caption"):
        Captions(path, split="val")
    lines = tmp_path / "captions.csv"
    lines.write_text("1.jpg,A dog\n")
    with pytest.raises(DataError, match="begin with the line image,caption"):
        Captions(lines)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        Captions(tmp_path / "none.json")
