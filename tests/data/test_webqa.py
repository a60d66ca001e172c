"""The WebQA loader on small files in the published layout, written here, whole and broken."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from ragvl.data.webqa import WebQA, WebQAFormatError

IMAGES = {30000000: b"first picture", 30000001: b"second", 30000002: b"third picture"}


def fact(image_id: int) -> dict:
    return {
        "image_id": image_id,
        "title": f"t{image_id}",
        "caption": f"c{image_id}",
        "url": "",
        "imgUrl": "",
    }


def sample(
    split: str = "test", gold: int = 30000000, negative: int = 30000001, **changes: object
) -> dict:
    return {
        "Q": '"What color is it?"',
        "A": ['"red"', '"crimson"'],
        "topic": "",
        "split": split,
        "Qcate": "color",
        "Guid": "g",
        "img_posFacts": [fact(gold)],
        "img_negFacts": [fact(negative)],
        "txt_posFacts": [],
        "txt_negFacts": [],
        **changes,
    }  # fmt: skip


def write(folder: Path, samples: object, images: dict[int, bytes] = IMAGES) -> Path:
    offsets, rows = [], b""
    for image_id, content in images.items():
        offsets.append(len(rows))
        rows += b"%d\t%s\n" % (image_id, base64.b64encode(content))
    (folder / "imgs.tsv").write_bytes(rows)
    (folder / "imgs.lineidx").write_text("".join(f"{offset}\n" for offset in offsets))
    (folder / "WebQA_train_val.json").write_text(json.dumps(samples))
    return folder


def test_reads_questions_documents_and_gold(tmp_path: Path) -> None:
    samples = {"a": sample(), "b": sample(split="train"), "c": sample(gold=30000002)}
    dataset = WebQA(write(tmp_path, samples), split="test")
    assert [question.id for question in dataset.questions] == ["a", "c"]
    question = dataset.questions[0]
    assert question.text == "What color is it?"  # the file's own quotation marks are gone
    assert question.answers == ("red", "crimson")
    assert question.gold == ("30000000",)
    assert question.negatives == ("30000001",)
    assert dataset.document_ids("full") == ["30000000", "30000001", "30000002"]
    assert dataset.document_ids("gold") == ["30000000", "30000002"]
    assert [document.image for document in dataset.documents()] == list(IMAGES.values())
    document = dataset.document("30000002")
    assert (document.id, document.caption, document.image) == (
        "30000002",
        "c30000002",
        b"third picture",
    )


def test_the_last_row_may_lack_its_line_end(tmp_path: Path) -> None:
    folder = write(tmp_path, {"a": sample(gold=30000002)})
    (folder / "imgs.tsv").write_bytes((folder / "imgs.tsv").read_bytes().rstrip(b"\n"))
    assert WebQA(folder, split="test").document("30000002").image == b"third picture"


@pytest.mark.parametrize(
    "broken",
    [
        {"split": "test"},
        "text",
        sample(img_posFacts=[{"image_id": 1}]),
        sample(Q=3),
        sample(A=None),
    ],
    ids=[
        "fields missing",
        "not an object",
        "fact without caption",
        "question a number",
        "no answers",
    ],
)
def test_a_broken_sample_is_left_out_counted_and_named(broken: object, tmp_path: Path) -> None:
    folder = write(tmp_path, {"good": sample(), "bad": broken})
    dataset = WebQA(folder, split="test")
    assert [question.id for question in dataset.questions] == ["good"]
    assert len(dataset.problems) == 1
    assert "bad" in dataset.problems[0]
    with pytest.raises(WebQAFormatError, match="sample bad"):
        WebQA(folder, split="test", strict=True)


def test_missing_and_garbled_files_say_which(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"WebQA_train_val\.json"):
        WebQA(tmp_path, split="test")
    folder = write(tmp_path, {"a": sample()})
    with pytest.raises(WebQAFormatError, match="no usable question of split 'val'"):
        WebQA(folder, split="val")
    (folder / "WebQA_train_val.json").write_text('{"a": ')
    with pytest.raises(WebQAFormatError, match="not JSON"):
        WebQA(folder, split="test")
    (folder / "WebQA_train_val.json").write_text("[]")
    with pytest.raises(WebQAFormatError, match="holds a list"):
        WebQA(folder, split="test")


def test_missing_foreign_and_broken_pictures_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, {"a": sample(negative=30000009)})
    with pytest.raises(KeyError, match="30000009"):
        WebQA(folder, split="test").document("30000009")
    lines = (folder / "imgs.lineidx").read_text().splitlines()
    (folder / "imgs.lineidx").write_text("\n".join([lines[1], *lines[1:]]))
    with pytest.raises(WebQAFormatError, match=r"30000000.*does not belong"):
        WebQA(folder, split="test").document("30000000")
    folder = write(tmp_path, {"a": sample()})
    (folder / "imgs.tsv").write_bytes(b"30000000\t%%%%\n")
    (folder / "imgs.lineidx").write_text("0\n")
    with pytest.raises(WebQAFormatError, match=r"30000000.*not base64"):
        WebQA(folder, split="test").document("30000000")
