"""Documents from folders, WebQA sets and files with one document a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_files import webqa_sample, webqa_text_fact, write_picture, write_webqa

from ragvl.data.problems import DataError
from ragvl.data.sources import Documents
from ragvl.data.synthetic import Places, write_world
from ragvl.data.webqa import WebQA


def test_a_folder_is_searched_with_its_subfolders(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "deep/er/c.webp"):
        write_picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    documents = Documents(tmp_path)
    assert len(documents) == 3
    assert [document.id for document in documents] == ["a.JPG", "b.png", "deep/er/c.webp"]
    assert [document.load().size for document in documents] == [(8, 8)] * 3


def test_a_file_names_a_document_a_line(tmp_path: Path) -> None:
    write_picture(tmp_path / "pictures" / "a.png")
    lines = [
        {"image": "pictures/a.png", "caption": "Ein Türmchen", "id": "one"},
        {"image": str(tmp_path / "pictures" / "a.png")},
    ]
    path = tmp_path / "documents.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    documents = Documents(path)
    assert len(documents) == 2
    first, second = documents
    assert (first.id, first.caption, first.load().size) == ("one", "Ein Türmchen", (8, 8))
    assert (second.id, second.caption, second.load().size) == (None, None, (8, 8))


def test_a_line_may_be_a_text_or_several_parts(tmp_path: Path) -> None:
    for name in ("p1.png", "p2.png"):
        write_picture(tmp_path / name)
    parts = [{"image": "p1.png"}, "The deed of sale", {"image": "p2.png"}, {"text": "of 1871"}]
    lines = [
        {"text": "Anna Brandt built it.", "id": "fact"},
        {"parts": parts, "id": "pages"},
        {"parts": [{"image": "lost.png"}, "Lost"]},
    ]
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    documents = Documents(path)
    fact, pages = documents
    assert len(documents) == 2
    assert (fact.id, fact.text, fact.pictures) == ("fact", "Anna Brandt built it.", ())
    assert pages.parts[1::2] == ("The deed of sale", "of 1871")
    assert [Path(str(p.path)).name for p in pages.pictures] == ["p1.png", "p2.png"]
    assert documents.problems.counts == {"missing picture": 1}
    assert "lost.png" in documents.problems.messages["missing picture"][0]


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        '{"text": ""}',
        '{"text": "one", "image": "a.png"}',
        '{"text": "one", "caption": "two"}',
        '{"parts": []}',
        '{"parts": [7]}',
        '{"parts": "one"}',
        "[1]",
        "{}",
        '{"image": 3}',
        '{"image": "a.png", "title": "unknown"}',
        '{"image": "a.png", "caption": 7}',
    ],
)
def test_a_line_that_is_no_document_is_named(line: str, tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    path = tmp_path / "documents.jsonl"
    path.write_text(f'{{"image": "a.png"}}\n\n{line}\n')
    documents = Documents(path)
    assert [Path(document.image).name for document in documents] == ["a.png"]
    assert documents.problems.counts == {"broken line": 1}
    assert "line 3" in documents.problems.messages["broken line"][0]
    documents = iter(Documents(path, strict=True))
    next(documents)
    with pytest.raises(DataError, match="line 3"):
        next(documents)


def test_numbers_are_ids_urls_are_called_so_and_unknown_keys_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    path = tmp_path / "documents.jsonl"
    url = "https://example.org/b.png"
    lines = [{"id": 1, "image": "a.png"}, {"image": url}, {"img": "a.png", "alt": "Roof"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    documents = Documents(path)
    assert [document.id for document in documents] == ["1"]
    messages = documents.problems.messages
    assert f"line 2: {url} is a URL" in messages["missing picture"][0]
    assert "unknown keys: img, alt; expected a line such as {" in messages["broken line"][0]


def test_lost_files_and_ids_that_come_twice_are_left_out_and_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    names = [("a.png", "x"), ("a.png", "x"), ("lost.png", "y"), ("n" * 300, None), ("a.png", None)]
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"image": i, "id": id}) + "\n" for i, id in names))
    documents = Documents(path)
    assert [document.id for document in documents] == ["x", None]
    assert len(documents) == 2
    assert documents.problems.counts == {"duplicate id": 1, "missing picture": 2}
    assert "line 3" in documents.problems.messages["missing picture"][0]


def test_lines_without_an_id_that_say_the_same_are_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    lines = [
        {"image": "a.png", "caption": "A mill"},
        {"caption": "A mill", "image": "./a.png"},
        {"image": "a.png"},
        {"text": "One."},
        {"id": "two", "text": "One."},
        {"parts": ["One.", {"image": "a.png"}]},
        {"parts": [{"text": "One."}, {"image": "a.png"}]},
        {"text": "One."},
    ]
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    documents = Documents(path)
    assert len(list(documents)) == len(documents) == 5
    assert documents.problems.counts == {"duplicate line": 3}
    first = documents.problems.messages["duplicate line"][0]
    assert "line 2: the same document as in an earlier line" in first


def test_a_folder_may_list_its_documents_by_split(tmp_path: Path) -> None:
    lines = [
        {"id": "hill", "text": "Of every split."},
        {"id": "mill", "text": "Of one.", "split": "test"},
        {"id": "till", "text": "Of another.", "split": "train"},
    ]
    write_picture(tmp_path / "unlisted.png")
    (tmp_path / "documents.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "test.jsonl").write_text('{"id": "q", "question": "Which?", "gold": ["mill"]}')
    for source in (tmp_path, tmp_path / "documents.jsonl"):
        assert Documents(source).data_set is None
        assert [one.id for one in Documents(source)] == ["hill", "mill", "till"]
        assert [one.id for one in Documents(source, split="test")] == ["hill", "mill"]
    (tmp_path / "documents.jsonl").write_text(json.dumps(lines[1]))
    with pytest.raises(DataError, match="no documents of the split 'val'"):
        Documents(tmp_path, split="val")


def test_a_webqa_folder_is_read_by_its_loader(tmp_path: Path) -> None:
    write_world(tmp_path, Places(), counts={"test": 4}, seed=0)
    documents = Documents(tmp_path, split="test")
    expected = WebQA(tmp_path, split="test")
    assert [document.id for document in documents] == expected.document_ids()
    assert len(documents) == len(expected.document_ids())
    assert next(iter(documents)).caption
    assert documents.data_set == expected.name


def test_texts_of_a_webqa_folder(tmp_path: Path) -> None:
    sample = webqa_sample(txt_negFacts=[webqa_text_fact("s0")])
    documents = Documents(write_webqa(tmp_path, {"a": sample}), split="test", modality="both")
    assert [document.id for document in documents] == ["30000000", "30000001", "s0"]
    write_picture(tmp_path / "pictures" / "a.png")
    (tmp_path / "documents.jsonl").write_text('{"text": "One."}')
    for other in ("pictures", "documents.jsonl"):
        with pytest.raises(ValueError, match="modality='text'"):
            Documents(tmp_path / other, modality="text")


def test_a_file_of_questions_gives_their_documents(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    line = {"id": "q", "question": "Who?", "images": ["a.png"], "captions": ["Someone"]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(line))
    assert [document.caption for document in Documents(tmp_path / "questions.jsonl")] == ["Someone"]


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*missing"):
        Documents(tmp_path / "missing")
    with pytest.raises(DataError, match="holds no documents"):
        Documents(tmp_path)
    (tmp_path / "broken.jsonl").write_text('{"text": "One.", "image": "a.png"}\n{"txt": "Two."}')
    with pytest.raises(
        DataError, match=r"no usable documents: 2 x broken line, as .*broken.jsonl, line 1: "
    ):
        Documents(tmp_path / "broken.jsonl")
