"""The WebQA loader on small files in the published layout, written here, whole and broken."""

from __future__ import annotations

import base64
import json
import os
import pickle
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from data_files import WEBQA_IMAGES, webqa_fact, webqa_sample, webqa_text_fact, write_webqa

from ragvl.data.formats import open_questions
from ragvl.data.images import ImageError
from ragvl.data.problems import DataError
from ragvl.data.webqa import WebQA, write_submission
from ragvl.profiling.timing import peak_mib


def test_reads_questions_documents_and_gold(tmp_path: Path) -> None:
    samples = {
        "a": webqa_sample(),
        "b": webqa_sample(split="train"),
        "c": webqa_sample(gold=30000002),
    }
    dataset = WebQA(write_webqa(tmp_path, samples), split="test")
    assert [question.id for question in dataset.questions] == ["a", "c"]
    question = dataset.questions[0]
    assert question.text == "What color is it?"  # the file's own quotation marks are gone
    assert question.answers == ("red", "crimson")
    assert question.gold == ("30000000",)
    assert question.negatives == ("30000001",)
    assert dataset.document_ids("full") == ["30000000", "30000001", "30000002"]
    assert dataset.document_ids("gold") == ["30000000", "30000002"]
    assert [document.image for document in dataset.documents()] == list(WEBQA_IMAGES.values())
    document = dataset.document("30000002")
    assert (document.id, document.caption, document.image) == (
        "30000002",
        "c30000002",
        b"third picture",
    )


def test_the_last_row_may_lack_its_line_end(tmp_path: Path) -> None:
    folder = write_webqa(tmp_path, {"a": webqa_sample(gold=30000002)})
    (folder / "imgs.tsv").write_bytes((folder / "imgs.tsv").read_bytes().rstrip(b"\n"))
    assert WebQA(folder, split="test").document("30000002").image == b"third picture"


def test_rows_are_found_by_id_where_the_index_names_them(tmp_path: Path) -> None:
    folder = write_webqa(tmp_path, {"a": webqa_sample(gold=30000002)})
    offsets = (folder / "imgs.lineidx").read_text().split()
    by_id = zip(reversed(list(WEBQA_IMAGES)), reversed(offsets), strict=True)
    (folder / "imgs.lineidx.new").write_text("".join(f"{id}\t{at}\n" for id, at in by_id))
    (folder / "imgs.lineidx").unlink()
    dataset = WebQA(folder, split="test")
    assert [document.image for document in dataset.documents()] == [
        WEBQA_IMAGES[30000002],
        b"second",
    ]


def bytes_read() -> int:
    """What this process has read from files, as Linux counts it; 0 elsewhere."""
    status = Path("/proc/self/io")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("rchar:")), 0)


def test_a_large_file_of_pictures_is_never_read_through(tmp_path: Path) -> None:
    """34 GB, almost all of it a hole: neither read nor mapped into memory to find a row."""
    folder = write_webqa(tmp_path, {"a": webqa_sample(gold=30000001, negative=30000000)})
    size = 34 * 10**9
    row = b"30000001\t" + base64.b64encode(b"far away") + b"\n"
    with (folder / "imgs.tsv").open("wb") as file:
        file.write(b"30000000\t%%%%")  # and no line end before the next row, far away
        file.seek(size - len(row))
        file.write(row)
    (folder / "imgs.lineidx").write_text(f"0\n{size - len(row)}\n")

    def find() -> None:
        dataset = WebQA(folder, split="test")
        assert dataset.document("30000001").image == b"far away"
        with pytest.raises(ImageError, match=r"30000000.* does not end within"):
            dataset.document("30000000")

    before = bytes_read()
    peak = peak_mib(find, torch.device("cpu"))
    assert bytes_read() - before < size // 100
    assert peak is None or peak * 2**20 < size // 100
    assert (folder / "imgs.tsv").stat().st_blocks * 512 < 2**20


def test_a_test_file_lists_pictures_without_saying_which_answer(tmp_path: Path) -> None:
    facts = {"Q": '"What?"', "split": "test", "Qcate": "text", "Guid": "g", "txt_Facts": []}
    facts["img_Facts"] = [webqa_fact(30000001), webqa_fact(30000000)]
    folder = write_webqa(tmp_path, {})
    (folder / "WebQA_test.json").write_text(json.dumps({"g": facts}))
    dataset = WebQA(folder, split="test")
    (question,) = dataset.questions
    assert (question.gold, question.negatives, question.answers) == ((), (), ())
    assert dataset.document_ids() == ["30000001", "30000000"]
    assert dataset.document_ids("gold") == []


def test_questions_about_words_are_left_aside(tmp_path: Path) -> None:
    words = webqa_sample(
        img_posFacts=[], txt_posFacts=[{"title": "", "fact": "", "snippet_id": "s"}]
    )
    dataset = WebQA(write_webqa(tmp_path, {"a": webqa_sample(), "words": words}), split="test")
    assert list(dataset.gold) == ["a"]
    assert not len(dataset.problems)


# Answered from a picture, from a text, and from both
MIXED = {
    "picture": webqa_sample(txt_negFacts=[webqa_text_fact("s0"), webqa_text_fact("s1")]),
    "text": webqa_sample(
        img_posFacts=[],
        img_negFacts=[webqa_fact(30000002)],
        txt_posFacts=[webqa_text_fact("s1")],
        txt_negFacts=[webqa_text_fact("s2")],
    ),
    "both": webqa_sample(txt_posFacts=[webqa_text_fact("s3", fact=" A fact. ")]),
}


@pytest.mark.parametrize(
    ("modality", "gold", "negatives", "ids"),
    [
        (
            "image",
            {"picture": "0", "both": "0"},
            {"picture": "1", "both": "1"},
            "0 1",
        ),
        ("text", {"text": "s1", "both": "s3"}, {"text": "s2", "both": ""}, "s1 s2 s3"),
        (
            "both",
            {"picture": "0", "text": "s1", "both": "0 s3"},
            {"picture": "1 s0 s1", "text": "2 s2", "both": "1"},
            "0 1 2 s0 s1 s2 s3",
        ),
    ],
)
def test_facts_in_words_are_documents_where_that_is_asked_for(
    tmp_path: Path,
    modality: Literal["image", "text", "both"],
    gold: dict[str, str],
    negatives: dict[str, str],
    ids: str,
) -> None:
    def names(text: str) -> tuple[str, ...]:
        return tuple(id if id[0] == "s" else f"3000000{id}" for id in text.split())

    dataset = WebQA(write_webqa(tmp_path, MIXED), split="test", modality=modality)
    assert dataset.gold == {id: names(text) for id, text in gold.items()}
    assert {q.id: q.negatives for q in dataset.questions} == {
        id: names(text) for id, text in negatives.items()
    }
    assert sorted(dataset.document_ids()) == list(names(ids))
    assert set(dataset.document_ids("gold")) == {id for row in dataset.gold.values() for id in row}
    for document in dataset.documents():
        id = str(document.id)
        assert document.caption == (None if id[0] == "s" else f"c{id}")
        expected = {"s3": "A fact."}.get(id, f"Fact {id}.")
        assert document.text == (expected if id[0] == "s" else None)
    texts = [id for id in dataset.document_ids() if id[0] == "s"]
    assert [document.id for document in dataset.other_documents()] == texts
    assert not len(dataset.problems)
    named = {dataset.document_name(id) for id in dataset.document_ids()}
    assert len(named) == len(dataset.document_ids())


def test_texts_alone_need_no_pictures(tmp_path: Path) -> None:
    write_webqa(tmp_path, MIXED)
    for name in ("imgs.tsv", "imgs.lineidx"):
        (tmp_path / name).unlink()
    opened = open_questions(tmp_path, split="test", modality="text")
    assert list(opened.gold) == ["text", "both"]
    assert opened.name == f"{tmp_path.name}, test, texts"
    for modality in (None, "image", "both"):
        with pytest.raises(FileNotFoundError, match=r"imgs\.tsv is missing"):
            open_questions(tmp_path, split="test", modality=modality)


def test_a_test_file_lists_texts_too(tmp_path: Path) -> None:
    facts = {"Q": '"What?"', "split": "test", "Qcate": "text", "Guid": "g"}
    facts |= {"img_Facts": [webqa_fact(30000001)], "txt_Facts": [webqa_text_fact("s0")]}
    folder = write_webqa(tmp_path, {})
    (folder / "WebQA_test.json").write_text(json.dumps({"g": facts}))
    dataset = WebQA(folder, split="test", modality="both")
    assert dataset.document_ids() == ["30000001", "s0"]
    assert dataset.questions[0].gold == ()


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"txt_posFacts": [webqa_text_fact("s1", fact=" ")]}, "broken sample", "fact"),
        ({"txt_posFacts": [webqa_text_fact("")]}, "broken sample", "snippet_id"),
        ({"txt_posFacts": [{"fact": "One."}]}, "broken sample", "snippet_id"),
        ({"txt_posFacts": [7]}, "broken sample", "txt_posFacts"),
        ({"txt_negFacts": "s1"}, "broken sample", "txt_negFacts"),
        ({"txt_negFacts": [webqa_text_fact("30000002")]}, "two documents of one id", "30000002"),
        ({"img_negFacts": [], "txt_posFacts": [webqa_text_fact("s0")] * 2}, "named twice", "s0"),
        ({"txt_posFacts": [webqa_text_fact("s0", fact="Other.")]}, "two texts", "s0"),
        (
            {"txt_posFacts": [webqa_text_fact("s0")], "txt_negFacts": [webqa_text_fact("s0")]},
            "gold is a distractor",
            "s0",
        ),
        ({"img_posFacts": [], "txt_posFacts": []}, "no gold picture", "no gold facts at all"),
    ],
)
def test_broken_facts_in_words_are_counted_and_named(
    tmp_path: Path, changes: dict, kind: str, words: str
) -> None:
    first = webqa_sample(gold=30000002, txt_negFacts=[webqa_text_fact("s0")])
    folder = write_webqa(tmp_path, {"a": first, "b": webqa_sample(**changes)})
    dataset = WebQA(folder, split="test", modality="both")
    assert dataset.problems.counts == {kind: 1}
    (message,) = dataset.problems.messages[kind]
    assert "sample b" in message
    assert words in message
    with pytest.raises(DataError, match=kind):
        WebQA(folder, split="test", modality="both", strict=True)
    if "Facts" not in words and kind == "broken sample":
        assert not len(WebQA(folder, split="test").problems), "not looked at where not wanted"


def test_the_submission_has_sources_and_answers(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    answered = [("a", ["30000000", "30000002"], "bläulich"), ("b", [], ""), ("c", ["x7", "²"], "")]
    write_submission(path, answered)
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "a": {"sources": [30000000, 30000002], "answer": "bläulich"},
        "b": {"sources": [], "answer": ""},
        "c": {"sources": ["x7", "²"], "answer": ""},
    }


@pytest.mark.parametrize(
    "broken",
    [
        {"split": "test"},
        ["text"],
        webqa_sample(img_posFacts=[{"image_id": 1}]),
        webqa_sample(img_posFacts=[{"image_id": 30000000, "caption": 3}]),
        webqa_sample(Q=3),
        webqa_sample(A=None),
        webqa_sample(A="red"),
        webqa_sample(A=[5]),
        webqa_sample(Qcate=5),
        webqa_sample(Q='""'),
        webqa_sample(img_posFacts=[webqa_fact(30000000) | {"image_id": "\ud800"}]),
        webqa_sample(img_posFacts=[webqa_fact(30000000) | {"caption": "\ud800"}]),
        webqa_sample(img_posFacts=[webqa_fact(30000000) | {"image_id": [[[]]]}]),
    ],
    ids=[
        "fields missing",
        "not an object",
        "fact without caption",
        "caption a number",
        "question a number",
        "no answers",
        "one answer, which is no list",
        "answer a number",
        "category a number",
        "empty question",
        "half a character in an id",
        "half a character in a caption",
        "id a list",
    ],
)
def test_a_broken_sample_is_left_out_counted_and_named(broken: object, tmp_path: Path) -> None:
    folder = write_webqa(tmp_path, {"good": webqa_sample(), "bad": broken})
    dataset = WebQA(folder, split="test")
    assert list(dataset.gold) == ["good"]
    assert dataset.problems.counts == {"broken sample": 1}
    assert "bad" in dataset.problems.messages["broken sample"][0]
    with pytest.raises(DataError, match="sample bad"):
        WebQA(folder, split="test", strict=True)


def test_a_sample_that_comes_twice_is_taken_once(tmp_path: Path) -> None:
    folder = write_webqa(tmp_path, {"a": webqa_sample()})
    one = json.dumps(webqa_sample())[1:-1]
    (folder / "WebQA_train_val.json").write_text(f'{{"a": {{{one}}}, "a": {{{one}}}}}')
    dataset = WebQA(folder, split="test")
    assert len(dataset.questions) == 1
    assert dataset.problems.counts == {"duplicate id": 1}


@pytest.mark.parametrize(
    ("tail", "kind"),
    [
        (b', "b": {"Q": ', "truncated file"),
        (b', "b": {"Q": "W', "truncated file"),
        (b', "b": tr', "truncated file"),
        (b', "b": "\xe4"}', "wrong encoding"),
        (b', "b": {"Q" 3}}', "broken JSON"),
        (b'} {"b": {}}', "broken JSON"),
        (b', "b": ' + b"[" * 200_000, "broken JSON"),
    ],
)
def test_what_comes_before_a_break_is_kept(tail: bytes, kind: str, tmp_path: Path) -> None:
    folder = write_webqa(tmp_path, {"a": webqa_sample()})
    path = folder / "WebQA_train_val.json"
    whole = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + whole[:-1] + tail)  # and a byte order mark before it
    dataset = WebQA(folder, split="test")
    assert list(dataset.gold) == ["a"]
    assert dataset.problems.counts == {kind: 1}
    with pytest.raises(DataError, match=kind):
        WebQA(folder, split="test", strict=True)


def test_missing_and_garbled_files_say_which(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"WebQA_train_val\.json"):
        WebQA(tmp_path, split="test")
    folder = write_webqa(tmp_path, {"a": webqa_sample()})
    with pytest.raises(DataError, match="val has no usable question"):
        WebQA(folder, split="val")
    (folder / "WebQA_train_val.json").write_text('{"a": ')
    with pytest.raises(DataError, match=r"truncated file; the first: .*byte 6: the file ends"):
        WebQA(folder, split="test")
    (folder / "WebQA_train_val.json").write_text("[]")
    with pytest.raises(DataError, match=r"no usable question; 1 x broken JSON.*expected {"):
        WebQA(folder, split="test")


def test_a_missing_picture_takes_its_question_or_itself_out(tmp_path: Path) -> None:
    samples = {
        "whole": webqa_sample(),
        "gold lost": webqa_sample(gold=30000009),
        "distractor lost": webqa_sample(gold=30000002, negative=30000008),
    }
    dataset = WebQA(write_webqa(tmp_path, samples), split="test")
    assert dataset.gold == {"whole": ("30000000",), "distractor lost": ("30000002",)}
    assert dataset.questions[1].negatives == ()
    assert dataset.document_ids() == ["30000000", "30000001", "30000002"]
    assert dataset.problems.counts == {"missing picture": 2, "gold picture missing": 1}
    assert "gold lost" in dataset.problems.messages["gold picture missing"][0]
    assert "30000009" in dataset.problems.messages["missing picture"][0]


def test_a_file_of_pictures_cut_short_while_it_is_in_use_is_an_error(tmp_path: Path) -> None:
    folder = write_webqa(tmp_path, {"a": webqa_sample()})
    dataset = WebQA(folder, split="test")
    os.truncate(folder / "imgs.tsv", 30)
    with pytest.raises(ImageError, match=r"30000000.*was cut from \d+ to 30 bytes"):
        dataset.document("30000000")
    (folder / "imgs.tsv").unlink()
    os.mkfifo(folder / "imgs.tsv")
    with pytest.raises(ImageError, match=r"30000000.*is a pipe"):
        dataset.document("30000000")


def test_a_data_set_is_picklable(tmp_path: Path) -> None:
    dataset = WebQA(write_webqa(tmp_path, {"a": webqa_sample()}), split="test")
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.document("30000000").image == b"first picture"


def test_foreign_and_broken_rows_are_named_and_left_out(tmp_path: Path) -> None:
    folder = write_webqa(tmp_path, {"a": webqa_sample()})
    lines = (folder / "imgs.lineidx").read_text().splitlines()
    (folder / "imgs.lineidx").write_text("\r\n".join([lines[1], *lines[1:]]) + "\r\n")
    dataset = WebQA(folder, split="test")
    assert not len(dataset.problems)
    with pytest.raises(ImageError, match=r"30000000.*does not belong"):
        dataset.document("30000000")
    folder = write_webqa(tmp_path, {"a": webqa_sample()})
    (folder / "imgs.tsv").write_bytes(b"30000000\t%%%%\n30000001\tQUJD\n")
    (folder / "imgs.lineidx").write_text("0\n14\n")
    dataset = WebQA(folder, split="test")
    with pytest.raises(ImageError, match=r"30000000.*not base64"):
        dataset.document("30000000")
    assert [document.image for document in dataset.documents()] == [b"ABC"]
    assert dataset.problems.counts == {"broken picture": 1}
    with pytest.raises(DataError, match="not base64"):
        list(WebQA(folder, split="test", strict=True).documents())


def test_an_unreadable_line_of_the_index_costs_its_own_row(tmp_path: Path) -> None:
    folder = write_webqa(tmp_path, {"a": webqa_sample(gold=30000002, negative=30000000)})
    lines = (folder / "imgs.lineidx").read_text().splitlines()
    (folder / "imgs.lineidx").write_text("\n".join([lines[0], "?", lines[2]]))
    dataset = WebQA(folder, split="test")
    assert dataset.problems.counts == {"broken line": 1}
    assert [document.image for document in dataset.documents()] == [
        b"third picture",
        b"first picture",
    ]


def test_a_row_is_an_id_modulo_ten_million(tmp_path: Path) -> None:
    images = {40000000: b"zero", 30000001: b"one"}
    samples = {
        "a": webqa_sample(gold=40000000, negative=30000001),
        "b": webqa_sample(gold=31000000),  # row 1,000,000, of which the index knows nothing
    }
    dataset = WebQA(write_webqa(tmp_path, samples, images), split="test")
    assert [document.image for document in dataset.documents()] == [b"zero", b"one"]
    assert list(dataset.gold) == ["a"]
    assert dataset.problems.counts == {"missing picture": 1, "gold picture missing": 1}


@pytest.mark.parametrize("bad", ["-5", "1_0", "", "?", "9" * 30, "9" * 5000, "٣", "999999", "200"])
@pytest.mark.parametrize("by_id", [False, True])
def test_what_is_no_offset_within_the_file_costs_one_row(
    bad: str, by_id: bool, tmp_path: Path
) -> None:
    folder = write_webqa(tmp_path, {"a": webqa_sample(gold=30000002, negative=30000001)})
    offsets = (folder / "imgs.lineidx").read_text().split()
    offsets[1] = bad
    ids = [f"{id}\t" if by_id else "" for id in WEBQA_IMAGES]
    lines = [id + offset for id, offset in zip(ids, offsets, strict=True)]
    (folder / ("imgs.lineidx.new" if by_id else "imgs.lineidx")).write_text("\n".join(lines))
    dataset = WebQA(folder, split="test")
    assert [document.image for document in dataset.documents()] == [b"third picture"]
    if bad or by_id:  # a blank line is none, but the lines after it keep their numbers
        assert dataset.problems.counts.total() == 2
        kind = "offset past the end" if bad in ("999999", "200") else "broken line"
        assert "line 2" in dataset.problems.messages[kind][0]
    assert "30000001" in dataset.problems.messages["missing picture"][0]


def test_an_id_that_the_index_has_twice_is_noted(tmp_path: Path) -> None:
    folder = write_webqa(tmp_path, {"a": webqa_sample()})
    ids = [30000000, 30000001, 30000000]
    offsets = (folder / "imgs.lineidx").read_text().split()
    lines = [f"{id}\t{offset}" for id, offset in zip(ids, offsets, strict=True)]
    (folder / "imgs.lineidx.new").write_text("\n".join(lines))
    dataset = WebQA(folder, split="test")
    assert dataset.problems.counts == {"duplicate id": 1}
    assert dataset.document("30000000").image == b"first picture"


def test_a_row_ends_where_the_next_begins(tmp_path: Path) -> None:
    folder = write_webqa(tmp_path, {"a": webqa_sample()})
    (folder / "imgs.tsv").write_bytes(b"30000000\tQUJD30000001\tQUJD\n")
    (folder / "imgs.lineidx").write_text("0\n13\n")
    dataset = WebQA(folder, split="test")
    assert [document.image for document in dataset.documents()] == [b"ABC"] * 2


def test_an_empty_file_of_pictures_is_a_problem_like_others(tmp_path: Path) -> None:
    folder = write_webqa(tmp_path, {"a": webqa_sample()})
    (folder / "imgs.tsv").write_bytes(b"")
    with pytest.raises(DataError, match=r"no usable question; 1 x empty file.*imgs\.tsv") as caught:
        WebQA(folder, split="test")
    assert caught.value.problems is not None
    assert caught.value.problems.counts["gold picture missing"] == 1


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"negative": 30000000}, "gold is a distractor"),
        ({"img_posFacts": [webqa_fact(30000000)] * 2}, "named twice"),
        ({"img_negFacts": [webqa_fact(30000001)] * 2}, "named twice"),
        ({"img_negFacts": [webqa_fact(30000000) | {"caption": "other"}]}, "two captions"),
        ({"A": []}, "empty answer"),
        ({"A": ['""']}, "empty answer"),
        ({"A": ["red", " "]}, "empty answer"),
        ({"img_posFacts": []}, "no gold picture"),
    ],
)
def test_contradictions_and_gaps_are_noted_and_cost_no_question(
    changes: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    folder = write_webqa(tmp_path, {"a": webqa_sample(**changes)})
    dataset = WebQA(folder, split="test")
    assert kind in dataset.problems.counts
    assert "sample a" in dataset.problems.messages[kind][0]
    (question,) = dataset.questions
    assert question.gold == (() if kind == "no gold picture" else ("30000000",))
    assert not set(question.gold) & set(question.negatives)
    assert all(question.answers)
    with pytest.raises(DataError):
        WebQA(folder, split="test", strict=True)


def test_the_first_caption_is_kept(tmp_path: Path) -> None:
    empty, other = (webqa_fact(30000000) | {"caption": caption} for caption in ("", "other"))
    samples = {
        "lost": webqa_sample(img_posFacts=[other, webqa_fact(30000009)]),
        "a": webqa_sample(img_posFacts=[empty]),
        "b": webqa_sample(),
        "c": webqa_sample(img_posFacts=[other]),
    }
    dataset = WebQA(write_webqa(tmp_path, samples), split="test")
    assert dataset.document("30000000").caption == "c30000000"
    assert dataset.problems.counts["two captions"] == 1
    assert "sample c" in dataset.problems.messages["two captions"][0]


@pytest.mark.parametrize("split", ["valid", 5, None, [[[]]]])
def test_a_split_that_no_one_knows_is_noted(split: object, tmp_path: Path) -> None:
    samples = {"a": webqa_sample(), "b": webqa_sample() | {"split": split}}
    dataset = WebQA(write_webqa(tmp_path, samples), split="test")
    assert list(dataset.gold) == ["a"]
    assert dataset.problems.counts == {"unknown split": 1}


def test_a_missing_gold_picture_is_noted_for_each_question(tmp_path: Path) -> None:
    samples = {f"q{n}": webqa_sample(gold=30000009) for n in range(30)}
    dataset = WebQA(write_webqa(tmp_path, {"a": webqa_sample(), **samples}), split="test")
    assert dataset.problems.counts == {"missing picture": 1, "gold picture missing": 30}
    assert "sample q7" in dataset.problems.messages["gold picture missing"][7]


def test_a_documents_key_changes_with_its_caption_and_its_file(tmp_path: Path) -> None:
    folder = write_webqa(tmp_path, {"a": webqa_sample()})
    before = WebQA(folder, split="test")
    keys = [before.document_name(id) for id in before.document_ids()]
    assert len(set(keys)) == 2
    assert keys == [WebQA(folder, split="test").document_name(id) for id in before.document_ids()]
    sample = webqa_sample(img_posFacts=[webqa_fact(30000000) | {"caption": "edited"}])
    (folder / "WebQA_train_val.json").write_text(json.dumps({"a": sample}))
    edited = WebQA(folder, split="test")
    assert edited.document_name("30000000") != keys[0]
    assert edited.document_name("30000001") == keys[1]
    os.utime(folder / "imgs.tsv", (0, 0))
    assert WebQA(folder, split="test").document_name("30000001") != keys[1]
    with pytest.raises(KeyError):
        edited.document_name("30000007")
