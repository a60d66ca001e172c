"""Flickr30K and MSCOCO in both published layouts, on small files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_files import karpathy_image, write_karpathy, write_picture

from ragvl.data.captions import Captions
from ragvl.data.formats import open_questions
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


@pytest.mark.parametrize("pictures", ["val2017", "../val2017"])
def test_mscocos_own_captions(tmp_path: Path, pictures: str) -> None:
    file = tmp_path / "annotations" / "captions_val2017.json"
    images = [{"license": 4, "file_name": f"{n:012}.jpg", "height": 8, "id": n} for n in range(4)]
    annotations = [
        {"image_id": 1, "id": 7, "caption": "A dog runs .\n"},
        {"image_id": 0, "id": 8, "caption": "A cat."},
        {"image_id": 1, "id": 9, "caption": "A brown dog."},
        {"image_id": 2, "id": 10, "caption": " "},
        {"image_id": 9, "id": 11, "caption": "No image."},
        {"image_id": 1, "id": 12},
    ]
    for n in range(3):
        write_picture(file.parent / pictures / f"{n:012}.jpg")
    content = {"info": {"year": 2017}, "licenses": [{"id": 4}], "images": images}
    file.write_text(json.dumps({**content, "annotations": annotations}))
    dataset = open_questions(file)
    assert isinstance(dataset, Captions)
    assert [(q.text, q.gold) for q in dataset.questions] == [
        ("A dog runs .", ("000000000001.jpg",)),
        ("A brown dog.", ("000000000001.jpg",)),
        ("A cat.", ("000000000000.jpg",)),
    ]
    assert dataset.document("000000000000.jpg").load().size == (8, 8)
    assert dataset.problems.counts == {"empty caption": 1, "broken caption": 2}
    assert open_questions(file, purpose="train").name == dataset.name == "captions_val2017"
    with pytest.raises(ValueError, match="is one split"):
        Captions(file, split="test")


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


@pytest.mark.slow
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
        "gold picture missing": 1,
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
    with pytest.raises(ValueError, match=r"split='val'.* is one split"):
        Captions(lines, split="val")
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        Captions(tmp_path / "none.json")


def captions(folder: Path, *lines: str) -> Captions:
    write_picture(folder / "1.jpg")
    path = folder / "captions.txt"
    path.write_text("image,caption\n" + "".join(line + "\n" for line in lines), newline="")
    return Captions(path)


def test_lines_are_called_by_their_folder(tmp_path: Path) -> None:
    assert captions(tmp_path, "1.jpg,A dog").name == f"{tmp_path.name}, captions"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('1.jpg,"Rex" runs, he said', '"Rex" runs, he said'),
        ('1.jpg,"A ""dog"", brown"', 'A "dog", brown'),
        ('"1.jpg" , A dog ', "A dog"),
        ('1.jpg,12" wide', '12" wide'),
        ("./1.jpg,A dog", "A dog"),
        ("1.jpg," + "x" * 200_000, "x" * 200_000),
    ],
)
def test_what_a_line_says(line: str, text: str, tmp_path: Path) -> None:
    dataset = captions(tmp_path, line)
    assert [(q.text, q.gold) for q in dataset.questions] == [(text, ("1.jpg",))]
    assert not len(dataset.problems)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ('1.jpg,"unclosed, yes', "broken line"),
        ("1.jpg,A dog\rruns .", "broken line"),
        (",A dog", "broken line"),
        ("1.jpg", "broken line"),
        ("1.jpg, ", "empty caption"),
        ('1.jpg,""', "empty caption"),
        ("1.jpg,ok", "duplicate caption"),
        ("./1.jpg,ok", "duplicate caption"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(line: str, kind: str, tmp_path: Path) -> None:
    dataset = captions(tmp_path, "1.jpg,ok", line)
    assert [q.text for q in dataset.questions] == ["ok"]
    assert dataset.problems.counts == {kind: 1}
    assert "line 3" in dataset.problems.messages[kind][0]


@pytest.mark.parametrize("name", ["lost.jpg", "n" * 300 + ".jpg", "a\0.jpg"])
def test_each_caption_of_a_lost_picture_is_counted(name: str, tmp_path: Path) -> None:
    dataset = captions(tmp_path, "1.jpg,ok", f"{name},A", f"{name},B")
    assert dataset.problems.counts == {"missing picture": 1, "gold picture missing": 2}
    assert "line 4" in dataset.problems.messages["gold picture missing"][1]


def test_utf16_lines_are_named_for_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("image,caption\n1.jpg,ok\n", "utf-16")
    with pytest.raises(DataError, match="is UTF-16: save it as UTF-8"):
        Captions(tmp_path / "captions.txt")


def test_broken_parts_of_karpathys_file_cost_no_more_than_themselves(tmp_path: Path) -> None:
    mixed = karpathy_image("2.jpg", "Good.")
    mixed["sentences"] += [{"raw": None}, {"raw": 5}, "text", {"raw": "  "}, {"raw": "\ud800"}]
    images: list[object] = [
        karpathy_image("1.jpg", "A dog.", cocoid=10**30),
        mixed,
        karpathy_image("./1.jpg", "Again."),
        karpathy_image("\ud800.jpg", "Half a character."),
        karpathy_image("n" * 300, "Too long."),
        karpathy_image("3.jpg", "?", split="valid"),
        {**karpathy_image("1.jpg"), "filename": 5},
    ]
    for name in ("1.jpg", "2.jpg"):
        write_picture(tmp_path / name)
    dataset = Captions(write_karpathy(tmp_path / "dataset_coco.json", images))
    assert [q.text for q in dataset.questions] == ["A dog.", "Good."]
    assert dataset.problems.counts == {
        "broken caption": 4,
        "empty caption": 1,
        "duplicate id": 1,
        "broken sample": 2,
        "missing picture": 1,
        "gold picture missing": 1,
        "unknown split": 1,
    }
    assert "image 1, sentence 1" in dataset.problems.messages["broken caption"][0]


def test_latin1_costs_its_own_entry(tmp_path: Path) -> None:
    write_picture(tmp_path / "1.jpg")
    images: list[object] = [karpathy_image("2.jpg", "D?cher"), karpathy_image("1.jpg", "A dog.")]
    path = write_karpathy(tmp_path / "dataset_coco.json", images)
    path.write_bytes(path.read_bytes().replace(b"?", b"\xe4"))
    dataset = Captions(path)
    assert dataset.document_ids() == ["1.jpg"]
    assert dataset.problems.counts == {"wrong encoding": 1}


@pytest.mark.parametrize("num_lost", [1, 7])
def test_a_fold_that_lacks_pictures_names_them(num_lost: int, tmp_path: Path) -> None:
    images: list[object] = []
    real = write_picture(tmp_path / "real.jpg")
    for number in range(1000):
        images.append(karpathy_image(f"{number}.jpg", "A dog."))
        if number >= num_lost:
            (tmp_path / f"{number}.jpg").symlink_to(real)
    path = write_karpathy(tmp_path / "dataset_flickr30k.json", images)
    named = r"0\.jpg$" if num_lost == 1 else r"missing 0\.jpg, 1\.jpg, .*4\.jpg and 2 more"
    with pytest.raises(DataError, match=f"{1000 - num_lost} pictures.*{named}"):
        Captions(path, protocol="1k")


@pytest.mark.parametrize("folder", ["flickr30k_images", "flickr30k-images", "val2014", "Images"])
def test_pictures_are_found_in_the_archives_folders(folder: str, tmp_path: Path) -> None:
    write_picture(tmp_path / folder / "1.jpg")
    path = write_karpathy(tmp_path / "dataset.json", [karpathy_image("1.jpg", "A dog.")])
    assert Captions(path).document("1.jpg").load().size == (8, 8)


def test_a_documents_key_changes_with_its_file(tmp_path: Path) -> None:
    dataset = captions(tmp_path, "1.jpg,ok")
    before = dataset.document_name("1.jpg")
    assert captions(tmp_path, "1.jpg,other").document_name("1.jpg") != before  # written again
    write_picture(tmp_path / "1.jpg", "blue")
    changed = dataset.document_name("1.jpg")
    assert changed != before
    assert changed == dataset.document_name("1.jpg")
    (tmp_path / "1.jpg").unlink()
    assert dataset.document_name("1.jpg") not in (before, changed)
