"""The MultimodalQA loader on small files in the published layout, whole and broken."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from data_files import (
    MMQA_PICTURES,
    mmqa_picture,
    mmqa_question,
    mmqa_text,
    write_lines,
    write_mmqa,
)

from ragvl.data.formats import open_questions
from ragvl.data.multimodalqa import MultimodalQA
from ragvl.data.problems import DataError


def test_reads_questions_documents_and_gold(tmp_path: Path) -> None:
    numbers = mmqa_question("q2", answers=[{"answer": 3}, {"answer": "four"}])
    numbers["metadata"] = {"type": "ImageQ", "image_doc_ids": ["p2", "p1"]}
    text = mmqa_question("q1", type="TextQ")
    dataset = MultimodalQA(write_mmqa(tmp_path, [mmqa_question(), text, numbers]))
    assert dataset.gold == {"q0": ("p1",), "q2": ("p1",)}
    first, second = dataset.questions
    assert (first.text, first.answers, first.category, first.negatives) == (
        "What color is the roof?",
        ("red",),
        "ImageQ",
        ("p0",),
    )
    assert second.answers == ("3", "four")
    assert dataset.document_ids() == ["p0", "p1", "p2"]
    assert dataset.document_ids("gold") == ["p1"]
    document = dataset.document("p2")
    assert (document.id, document.caption, document.load().size) == ("p2", "Title p2", (8, 8))
    assert not len(dataset.problems)


def test_other_types_of_questions_can_be_asked_for(tmp_path: Path) -> None:
    listed = mmqa_question(
        type="ImageListQ",
        supporting_context=[
            {"doc_id": "p1", "doc_part": "image"},
            {"doc_id": "t0", "doc_part": "table"},
            {"doc_id": "p0", "doc_part": "image"},
        ],
    )
    folder = write_mmqa(tmp_path, [listed])
    with pytest.raises(DataError, match="no usable question"):
        MultimodalQA(folder)
    assert MultimodalQA(folder, types=["ImageListQ"]).gold == {"q0": ("p1", "p0")}


def write_mixed(folder: Path, texts: Sequence[object] | None = None) -> Path:
    """A question answered from a picture, and one from a text."""
    metadata = {
        "type": "TextQ",
        "modalities": ["text"],
        "image_doc_ids": ["p2"],
        "text_doc_ids": ["t0", "t1"],
    }
    context = [{"doc_id": "t1", "doc_part": "text"}, {"doc_id": "x", "doc_part": "table"}]
    in_words = mmqa_question("q1", metadata=metadata, supporting_context=context)
    named = texts or [mmqa_text("t0"), mmqa_text("t1"), mmqa_text("unused")]
    write_lines(folder / "MMQA_texts.jsonl.gz", named)
    return write_mmqa(folder, [mmqa_question(), in_words])


@pytest.mark.parametrize(
    ("modality", "gold", "ids"),
    [
        ("image", {"q0": ("p1",)}, ["p0", "p1"]),
        ("text", {"q1": ("t1",)}, ["t0", "t1"]),
        ("both", {"q0": ("p1",), "q1": ("t1",)}, ["p0", "p1", "p2", "t0", "t1"]),
    ],
)
def test_texts_are_documents_where_that_is_asked_for(
    tmp_path: Path,
    modality: Literal["image", "text", "both"],
    gold: dict[str, tuple[str, ...]],
    ids: list[str],
) -> None:
    dataset = open_questions(write_mixed(tmp_path), modality=modality)
    assert dataset.gold == gold
    assert dataset.document_ids() == ids
    for document in dataset.documents():
        id = str(document.id)
        assert document.text == (f"Text {id}." if id[0] == "t" else None)
        assert document.caption == (None if id[0] == "t" else f"Title {id}")
    assert [d.id for d in dataset.other_documents()] == [id for id in ids if id[0] == "t"]
    assert not len(dataset.problems)
    (tmp_path / "MMQA_images.jsonl.gz").unlink()
    if modality == "text":
        assert open_questions(tmp_path, modality=modality).gold == gold
    else:
        with pytest.raises(FileNotFoundError, match=r"MMQA_images\.jsonl\.gz is missing"):
            open_questions(tmp_path, modality=modality)


def test_texts_that_are_not_there_or_broken_are_named(tmp_path: Path) -> None:
    texts = [mmqa_text("t0"), mmqa_text("t0"), mmqa_text("t1", text=" "), mmqa_text("p0")]
    dataset = MultimodalQA(write_mixed(tmp_path, texts), modality="both")
    assert dataset.gold == {"q0": ("p1",)}
    assert dataset.problems.counts == {
        "duplicate id": 2,
        "broken line": 1,
        "missing picture": 1,
        "gold picture missing": 1,
    }
    assert "document t1 is not listed" in dataset.problems.messages["missing picture"][0]


def test_of_the_test_split_neither_gold_nor_answers_are_known(tmp_path: Path) -> None:
    unknown = mmqa_question()
    del unknown["answers"], unknown["supporting_context"]
    folder = write_mmqa(tmp_path, [unknown])
    (folder / "MMQA_dev.jsonl.gz").rename(folder / "MMQA_test.jsonl.gz")
    dataset = MultimodalQA(folder, split="test")
    (only,) = dataset.questions
    assert (only.gold, only.answers, only.negatives) == ((), (), ())
    assert dataset.document_ids() == ["p0", "p1"]


def test_a_lost_picture_takes_its_question_or_itself_out(tmp_path: Path) -> None:
    other = mmqa_question("q1", supporting_context=[{"doc_id": "p0", "doc_part": "image"}])
    foreign = mmqa_question("q2", supporting_context=[{"doc_id": "p9", "doc_part": "image"}])
    folder = write_mmqa(tmp_path, [mmqa_question(), other, foreign])
    (folder / "final_dataset_images" / "p1.png").unlink()
    dataset = MultimodalQA(folder)
    assert dataset.gold == {"q1": ("p0",)}
    assert dataset.questions[0].negatives == ()
    assert dataset.document_ids() == ["p0"]
    assert dataset.problems.counts == {
        "missing picture": 1,
        "gold picture missing": 1,
        "gold not among images": 1,
    }
    assert "question q2: 'p9'" in dataset.problems.messages["gold not among images"][0]
    with pytest.raises(DataError, match="missing picture"):
        MultimodalQA(folder, strict=True)


def test_broken_lines_are_counted_and_named(tmp_path: Path) -> None:
    questions = [
        mmqa_question(),
        {"qid": "x"},
        [1],
        mmqa_question(),
        mmqa_question("q3", metadata=None),
    ]
    pictures = [
        *map(mmqa_picture, MMQA_PICTURES),
        mmqa_picture("p0"),
        mmqa_picture("p8", path=None),
    ]
    dataset = MultimodalQA(write_mmqa(tmp_path, questions, pictures))
    assert list(dataset.gold) == ["q0"]
    assert dataset.problems.counts == {"broken line": 4, "duplicate id": 2}
    assert any("line 3" in m for m in dataset.problems.messages["broken line"])


@pytest.mark.parametrize("kept", [60, -6])
def test_a_truncated_file_gives_what_comes_before(tmp_path: Path, kept: int) -> None:
    folder = write_mmqa(tmp_path, [mmqa_question(f"q{n}") for n in range(2000)])
    path = folder / "MMQA_dev.jsonl.gz"
    path.write_bytes(path.read_bytes()[:kept])
    if kept == 60:  # not a line of it is whole
        with pytest.raises(DataError, match="truncated file"):
            MultimodalQA(folder)
    else:
        dataset = MultimodalQA(folder)
        assert len(dataset.questions) > 1000
        assert dataset.problems.counts["truncated file"] == 1


def test_other_encodings_are_noted_and_crlf_is_none(tmp_path: Path) -> None:
    folder = write_mmqa(tmp_path, [mmqa_question()])
    good = json.dumps(mmqa_question("q1")).encode()
    bad = (
        json.dumps(mmqa_question("q2", question="Farbe"))
        .replace("Farbe", "F\xe4rbe")
        .encode("latin1")
    )
    (folder / "MMQA_dev.jsonl.gz").write_bytes(gzip.compress(good + b"\r\n" + bad + b"\n"))
    dataset = MultimodalQA(folder)
    assert list(dataset.gold) == ["q1"]
    assert dataset.problems.counts == {"wrong encoding": 1}


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"MMQA_dev\.jsonl\.gz"):
        MultimodalQA(tmp_path)
    folder = write_mmqa(tmp_path, [mmqa_question()])
    with pytest.raises(FileNotFoundError, match=r"MMQA_train\.jsonl\.gz"):
        MultimodalQA(folder, split="train")


def test_each_question_without_its_gold_picture_is_counted_and_named(tmp_path: Path) -> None:
    other = mmqa_question("ok", supporting_context=[{"doc_id": "p0", "doc_part": "image"}])
    folder = write_mmqa(tmp_path, [*(mmqa_question(f"q{n}") for n in range(5)), other])
    (folder / "final_dataset_images" / "p1.png").unlink()
    dataset = MultimodalQA(folder)
    assert list(dataset.gold) == ["ok"]
    assert dataset.problems.counts == {"missing picture": 1, "gold picture missing": 5}
    assert "line 4, question q3" in dataset.problems.messages["gold picture missing"][3]


@pytest.mark.parametrize(
    "changes",
    [
        {"qid": 5},
        {"qid": None},
        {"qid": "\ud800"},
        {"question": " "},
        {"question": "\ud800"},
        {"answers": None},
        {"answers": "red"},
        {"answers": [{"answer": None}]},
        {"answers": [{"answer": ["red"]}]},
        {"answers": [{"answer": True}]},
        {"metadata": {"type": "ImageQ", "image_doc_ids": "p0"}},
        {"supporting_context": None},
    ],
)
def test_wrong_types_are_broken_lines(changes: dict[str, Any], tmp_path: Path) -> None:
    questions = [mmqa_question(), mmqa_question("q1") | changes]
    dataset = MultimodalQA(write_mmqa(tmp_path, questions))
    assert list(dataset.gold) == ["q0"]
    assert dataset.problems.counts == {"broken line": 1}
    assert "line 2" in dataset.problems.messages["broken line"][0]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"answers": []}, "empty answer"),
        ({"answers": [{"answer": ""}]}, "empty answer"),
        ({"supporting_context": [{"doc_id": "p1", "doc_part": "image"}] * 2}, "named twice"),
        ({"supporting_context": []}, "no gold picture"),
        ({"supporting_context": [{"doc_id": "t", "doc_part": "text"}]}, "no gold picture"),
    ],
)
def test_gaps_are_noted_and_cost_no_question(
    changes: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    dataset = MultimodalQA(write_mmqa(tmp_path, [mmqa_question("q9", **changes)]))
    assert dataset.problems.counts == {kind: 1}
    assert "line 1, question q9" in dataset.problems.messages[kind][0]
    assert dataset.gold == {"q9": () if kind == "no gold picture" else ("p1",)}


def test_a_name_that_is_too_long_is_a_missing_picture(tmp_path: Path) -> None:
    pictures = [mmqa_picture("p0", path="n" * 300), mmqa_picture("p1"), mmqa_picture("\ud800")]
    dataset = MultimodalQA(write_mmqa(tmp_path, [mmqa_question()], pictures))
    assert dataset.document_ids() == ["p1"]
    assert dataset.problems.counts == {"missing picture": 1, "broken line": 1}


def test_a_documents_key_changes_with_its_title_and_its_file(tmp_path: Path) -> None:
    folder = write_mmqa(tmp_path, [mmqa_question()])
    keys = [MultimodalQA(folder).document_name(id) for id in ("p0", "p1")]
    pictures = [mmqa_picture("p0", title="Edited"), mmqa_picture("p1")]
    write_mmqa(tmp_path, [mmqa_question()], pictures)
    (folder / "final_dataset_images" / "p1.png").write_bytes(b"another")
    edited = MultimodalQA(folder)
    assert {edited.document_name(id) for id in ("p0", "p1")}.isdisjoint(keys)
