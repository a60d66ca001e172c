"""Your own questions in a JSONL file, and what `ragvl data check` says of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from data_files import write_picture
from hypothesis import given, settings
from hypothesis import strategies as st

from ragvl.data.checking import check_questions
from ragvl.data.jsonl import JsonlQuestions, text_id
from ragvl.data.problems import DataError


def line(id: object = "q0", **changes: object) -> dict[str, Any]:
    return {
        "id": id,
        "question": "What color is the roof?",
        "answer": "red",
        "images": ["a.png", "b.png"],
        "captions": ["Harbour", None],
        "gold": ["b.png"],
        **changes,
    }


def write(path: Path, lines: list[object]) -> Path:
    path.write_text(
        "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), "utf-8"
    )
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "deep/c.png"):
        write_picture(tmp_path / name)
    return tmp_path / "questions.jsonl"


def test_reads_questions_documents_and_gold(file: Path) -> None:
    other = {
        "id": "q1",
        "question": " Which? ",
        "answer": ["one", "1"],
        "images": ["deep/c.png", "a.png"],
        "captions": ["Säule", "Harbour"],
        "gold": ["deep/c.png", "a.png"],
        "category": "choose",
    }
    unknown = {"id": "q2", "question": "Who?", "images": ["a.png"]}
    del (plain := line())["captions"]
    dataset = JsonlQuestions(write(file, [line(), other, unknown]))
    assert dataset.gold == {"q0": ("b.png",), "q1": ("deep/c.png", "a.png"), "q2": ()}
    first, second, third = dataset.questions
    assert (first.answers, first.negatives, first.category) == (("red",), ("a.png",), "any")
    assert (second.text, second.answers, second.category) == ("Which?", ("one", "1"), "choose")
    assert (third.answers, third.negatives) == ((), ())
    assert dataset.document_ids() == ["a.png", "b.png", "deep/c.png"]
    assert dataset.document_ids("gold") == ["b.png", "deep/c.png", "a.png"]
    assert [d.caption for d in dataset.documents()] == ["Harbour", None, "Säule"]
    assert {d.load().size for d in dataset.documents()} == {(8, 8)}
    assert JsonlQuestions(write(file, [plain])).document("a.png").caption is None


MIXED = {
    "id": "q1",
    "question": "Who built the mill?",
    "images": ["a.png"],
    "texts": ["Anna Brandt built it in 1871.", "http://mills.example//brandt"],
    "documents": [
        {"id": "page 7", "parts": [{"image": "./b.png"}, "Deed", {"text": "of sale"}]},
        {"id": "plan", "image": "deep/c.png", "caption": "Ground floor"},
        {"id": "note", "text": "The mill burnt down."},
    ],
    "gold": ["Anna Brandt built it in 1871.", "page 7", "./a.png", "http://mills.example//brandt"],
}


def test_reads_texts_and_documents_of_several_parts(file: Path) -> None:
    dataset = JsonlQuestions(write(file, [line(), MIXED]))
    built, address = map(text_id, MIXED["texts"])
    assert dataset.gold["q1"] == (built, "page 7", "a.png", address)
    assert dataset.questions[1].negatives == ("plan", "note")
    ids = ["a.png", "b.png", built, address, "page 7", "plan", "note"]
    assert dataset.document_ids() == ids
    assert dataset.document_ids("gold") == ["b.png", built, "page 7", "a.png", address]
    documents = {str(document.id): document for document in dataset.documents()}
    assert list(documents) == ids
    assert documents[built].text == "Anna Brandt built it in 1871."
    assert documents["page 7"].parts[1:] == ("Deed", "of sale")
    assert [picture.load().size for picture in documents["page 7"].pictures] == [(8, 8)]
    assert documents["plan"].caption == "Ground floor"
    assert [d.id for d in dataset.other_documents()] == [built, address, "page 7", "note"]
    assert list(dataset.decodable(documents.values())) == list(documents.values())
    assert not len(dataset.problems)


def test_a_text_is_one_document_wherever_it_stands(file: Path) -> None:
    texts = [{"id": f"q{n}", "question": "Who?", "texts": [" One. ", f"{n}"]} for n in range(3)]
    dataset = JsonlQuestions(write(file, texts))
    assert [d.text for d in dataset.documents()] == ["One.", "0", "1", "2"]
    assert not len(dataset.problems)


def test_an_id_is_one_documents(file: Path) -> None:
    def other(id: str, name: str, **document: object) -> dict[str, Any]:
        return line(id, images=[], captions=None, documents=[{"id": name, **document}], gold=[name])

    lines = [
        other("q0", "d.png", text="Red."),
        other("q1", "d.png", text="Red."),
        other("q2", "d.png", text="Blue."),
        line("q3"),
        other("q4", "a.png", text="Blue."),
        line("q5", images=["d.png", "a.png"], gold=["a.png"]),
    ]
    write_picture(file.parent / "d.png")
    dataset = JsonlQuestions(write(file, lines))
    assert list(dataset.gold) == ["q0", "q1", "q3"]
    assert dataset.document("d.png").text == "Red."
    assert dataset.problems.counts == {"two documents of one id": 3}
    assert "line 3: 'd.png'" in dataset.problems.messages["two documents of one id"][0]


LISTED = [
    {"id": "roof", "image": "a.png", "caption": "The roof"},
    {"id": "mill", "image": "deep/c.png", "split": "test"},
    {"id": "deed", "text": "Deed of sale", "split": "test"},
    {"id": "till", "image": "b.png", "split": "train"},
]


@pytest.fixture
def split(file: Path) -> Path:
    """The test split of a folder that lists its documents."""
    write(file.parent / "documents.jsonl", LISTED)
    return file.parent / "test.jsonl"


def test_questions_name_documents_of_a_list(split: Path) -> None:
    lines = [
        {"id": "q0", "question": "Which?", "answers": ["red", "rot"], "gold": ["roof", "deed"]},
        {"id": "q1", "question": "Which?", "gold": ["b.png"], "images": ["b.png", "./deep/c.png"]},
        {"id": "q2", "question": "Which?", "gold": ["mill"], "distractors": ["roof", "roof"]},
        {"id": "q3", "question": "Which?"},
        {"id": "q4", "question": "Which?", "distractors": ["deed"]},
    ]
    dataset = JsonlQuestions(write(split, lines))
    assert dataset.document_ids() == ["roof", "mill", "deed", "b.png", "deep/c.png"]
    assert dataset.document_ids("gold") == ["roof", "deed", "b.png", "mill"]
    assert list(dataset.gold.values()) == [("roof", "deed"), ("b.png",), ("mill",), (), ()]
    negatives = [question.negatives for question in dataset.questions]
    assert negatives == [(), ("deep/c.png",), ("roof",), (), ("deed",)]
    assert dataset.questions[0].answers == ("red", "rot")
    roof, mill, deed, *_ = dataset.documents()
    assert (roof.id, roof.caption, roof.path) == ("roof", "The roof", str(split.parent / "a.png"))
    assert (mill.id, mill.caption, deed.text) == ("mill", None, "Deed of sale")
    assert [document.id for document in dataset.other_documents()] == ["deed"]
    assert dataset.problems.counts == {"named twice": 1}
    assert check_questions(split.parent, split="test").documents == 5
    train = JsonlQuestions(write(split.with_name("train.jsonl"), lines[3:4]))
    assert train.document_ids() == ["roof", "till"]


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        ({"gold": ["hall"]}, "gold not among documents", "'hall' is none .* nor in documents.json"),
        ({"gold": ["till"]}, "gold not among documents", "'till' is a document of the split 'tra"),
        ({"distractors": ["hall"]}, "distractor not among documents", "'hall' is none of"),
        ({"gold": ["roof"], "distractors": ["roof"]}, "broken line", "both gold and a distractor"),
        ({"images": ["roof"]}, "two documents of one id", "'roof' was"),
        ({"documents": [{"id": "roof", "text": "T"}]}, "two documents of one id", "'roof' was"),
        ({"documents": [{"id": "d", "text": "T", "split": "test"}]}, "broken line", "split"),
    ],
)
def test_what_a_line_names_wrongly_is_named(
    split: Path, bad: dict[str, Any], kind: str, words: str
) -> None:
    good = {"id": "q0", "question": "Which?", "gold": ["roof"]}
    dataset = JsonlQuestions(write(split, [good, {"id": "x", "question": "Which?", **bad}]))
    assert dataset.problems.counts[kind] == 1
    assert re.search(rf"line 2: .*{words}", dataset.problems.messages[kind][0])
    assert dataset.document_ids() == ["roof", "mill", "deed"]


def test_what_is_wrong_with_a_list_is_named(split: Path) -> None:
    bad = [
        {"image": "b.png"},
        {"id": "roof", "text": "Again"},
        {"id": "lost", "image": "z.png"},
        {"id": "lost too", "image": "z.png", "split": "train"},
        "{",
    ]
    write(split.with_name("documents.jsonl"), [*LISTED, *bad])
    lines = [{"id": gold, "question": "Which?", "gold": [gold]} for gold in ("roof", "lost")]
    for id in ("lost", "roof"):
        lines.append({"id": f"{id} last", "question": "Which?", "distractors": [id]})
    dataset = JsonlQuestions(write(split, lines))
    assert [question.id for question in dataset.questions] == ["roof", "lost last", "roof last"]
    assert [question.negatives for question in dataset.questions] == [(), (), ("roof",)]
    assert dataset.document_ids() == ["roof", "mill", "deed"]
    counts = {"broken line": 2, "duplicate id": 1, "missing picture": 1, "gold picture missing": 1}
    assert dataset.problems.counts == counts
    assert "line 5: id: Field required" in dataset.problems.messages["broken line"][0]
    assert "line 7: " in dataset.problems.messages["missing picture"][0]


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        ("{", "broken line", "line 2"),
        ("[1]", "broken line", "line 2"),
        ({"id": "x"}, "broken line", "question: Field required"),
        (line("x", images="a.png"), "broken line", "2 captions for 1 images"),
        (line("x", images=1), "broken line", "images.0"),
        (line(1.5), "broken line", "id"),
        (line(True), "broken line", "id"),
        (line("x", gold=[True]), "broken line", "gold.0"),
        (line("x", gold=[2]), "broken line", "there is no document 2, counted from 0"),
        (line("x", gold=-1), "broken line", "there is no document -1"),
        (line("x", distractors=[1]), "broken line", "'b.png' is both gold and a distractor"),
        (line("x", gold=0, texts=["Red."]), "broken line", "an image or a text"),
        (
            {"id": "x", "query": "Who?", "docs": ["a.png"]},
            "broken line",
            'question: Field required; unknown keys: query, docs; expected a line such as {"id":',
        ),
        (
            line("x") | {f"k{n}": 0 for n in range(7)},
            "broken line",
            "line 2: unknown keys: k0, k1, k2, k3, k4 and 2 more; expected",
        ),
        (line("x", question="  "), "broken line", "question"),
        (line("x", imagse=[]), "broken line", "imagse"),
        (line("x", captions=["one"]), "broken line", "1 captions for 2 images"),
        (line("x", images=["a.png", "a.png"]), "broken line", "names one twice"),
        (line(), "duplicate id", "'q0'"),
        (line("x", gold=["z.png"]), "gold not among documents", "'z.png'"),
        (line("x", images=[], captions=[], gold=[]), "broken line", "at least one of images"),
        (line("x", images=["a.png", "./a.png"]), "broken line", "names one twice"),
        (line("\ud800"), "broken line", "hex escape"),
        (line("x", texts=["One.", " One. "]), "broken line", "texts names one twice"),
        (line("x", texts=[" "]), "broken line", "texts"),
        (line("x", texts=["a.png"]), "broken line", "another one's name"),
        (line("x", texts=["Red."], gold=["Blue."]), "gold not among documents", "'Blue.'"),
        (line("x", documents=[{"text": "Red."}]), "broken line", "id: Field required"),
        (line("x", documents=[{"id": "d"}]), "broken line", "one of image, text and parts"),
        (
            line("x", documents=[{"id": "d", "text": "Red.", "image": "a.png"}]),
            "broken line",
            "one of image, text and parts",
        ),
        (
            line("x", documents=[{"id": "d", "text": "Red.", "caption": "Roof"}]),
            "broken line",
            "a caption belongs to an image",
        ),
        (line("x", documents=[{"id": "d", "parts": []}]), "broken line", "at least 1 item"),
        (line("x", documents=[{"id": "d", "parts": [""]}]), "broken line", "at least 1 character"),
        (
            line("x", documents=[{"id": "d", "parts": [{"video": "a.mp4"}]}]),
            "broken line",
            "video",
        ),
        (line("x", documents=[{"id": "d", "parts": [{}]}]), "broken line", "an image or a text"),
        (
            line("x", documents=[{"id": "a.png", "text": "Red."}]),
            "broken line",
            "another one's name",
        ),
    ],
)
def test_a_bad_line_is_left_out_counted_and_named(
    file: Path, bad: object, kind: str, words: str
) -> None:
    write(file, [line(), bad])
    dataset = JsonlQuestions(file)
    assert list(dataset.gold) == ["q0"]
    report = check_questions(file)
    for problems in (dataset.problems, report.problems):
        assert problems.counts == {kind: 1}
        assert "line 2" in problems.messages[kind][0]
        assert words in problems.messages[kind][0]
    assert report.questions == 1
    with pytest.raises(DataError, match=kind):
        JsonlQuestions(file, strict=True)


def test_lesser_problems_do_not_cost_the_line(file: Path) -> None:
    lines = [
        line(),
        line("q1", images=["a.png", "b.png", "lost.png"], captions=["Harbour", None, "Gone"]),
        line("q2", captions=["Another harbour", None]),
    ]
    write(file, lines)
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    dataset = JsonlQuestions(file)
    assert len(dataset.questions) == 3
    assert dataset.questions[1].negatives == ("a.png",)
    assert dataset.document_ids() == ["a.png", "b.png"]
    assert dataset.document("a.png").caption == "Harbour"
    assert dataset.problems.counts == {"missing picture": 1, "two captions": 1}


def test_a_question_may_be_about_a_picture(file: Path) -> None:
    lines = [line(), line("q1", question_image="deep/c.png"), line("q2", question_image="z.png")]
    dataset = JsonlQuestions(write(file, lines))
    plain, pictured = dataset.questions
    assert (plain.pictures, plain.query.text) == ((), plain.text)
    assert pictured.query.text == pictured.text
    assert [picture.path for picture in pictured.pictures] == [str(file.parent / "deep/c.png")]
    assert dataset.problems.counts == {"missing picture": 1, "question picture missing": 1}
    assert dataset.document_ids() == ["a.png", "b.png"]
    before = plain.content, pictured.content
    assert before[0] != before[1]
    write_picture(file.parent / "deep/c.png", "blue")
    assert (plain.content, pictured.content != before[1]) == (before[0], True)
    (file.parent / "deep/c.png").write_bytes(b"no picture")
    report = check_questions(file, pictures=True)
    assert report.problems.counts["question picture broken"] == 1
    assert "'q1'" in report.problems.messages["question picture broken"][0]


def test_a_document_that_lacks_a_picture_is_left_out(file: Path) -> None:
    documents = [
        {"id": "whole", "parts": ["Red.", {"image": "b.png"}]},
        {"id": "lost", "parts": ["Red.", {"image": "z.png"}]},
    ]
    lines = [line(f"{gold}", documents=documents, gold=[gold]) for gold in ("whole", "lost")]
    dataset = JsonlQuestions(write(file, lines))
    assert list(dataset.gold) == ["whole"]
    assert dataset.document_ids() == ["a.png", "b.png", "whole"]
    assert dataset.problems.counts == {"missing picture": 1, "gold picture missing": 1}
    assert "line 2: 'lost'" in dataset.problems.messages["gold picture missing"][0]


def test_ids_may_be_numbers_and_lists_of_one_may_stand_without_brackets(file: Path) -> None:
    lines = [
        line(1, images="a.png", captions="Harbour", gold="a.png"),
        line(2, gold=[1, 0]),
        {"id": 3, "question": "Who?", "texts": "Anna Brandt built it.", "gold": 0},
        line(4, documents=[{"id": 8, "text": "Red."}, {"id": 1, "text": "Blue."}], gold=[1]),
    ]
    dataset = JsonlQuestions(write(file, lines))
    assert dataset.gold == {
        "1": ("a.png",),
        "2": ("b.png", "a.png"),
        "3": (text_id("Anna Brandt built it."),),
        "4": ("1",),  # where documents have ids, a number is one
    }
    assert dataset.document("1").text == "Blue."
    assert dataset.document("a.png").caption == "Harbour"
    assert not len(dataset.problems)


@pytest.mark.parametrize(
    "url", ["https://example.org//a.png", "file:///a.png", "data:image/png;base64,iVBORw0KGgo="]
)
def test_a_url_is_called_one(file: Path, url: str) -> None:
    lines = [line(images=["a.png", url], captions=None, gold=["a.png"])]
    problems = JsonlQuestions(write(file, lines)).problems
    assert problems.counts == {"missing picture": 1}
    assert (
        f"line 1: {url} is a URL, and pictures are files" in problems.messages["missing picture"][0]
    )


def test_encodings(file: Path) -> None:
    good = json.dumps(line())
    bad = json.dumps(line("q1", question="Dach"), ensure_ascii=False).replace("Dach", "D\xe4cher")
    file.write_bytes(b"\xef\xbb\xbf" + good.encode() + b"\n" + bad.encode("latin1"))
    dataset = JsonlQuestions(file)
    assert list(dataset.gold) == ["q0"]
    assert dataset.problems.counts == {"wrong encoding": 1}


def test_a_file_without_questions_is_refused(file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"questions\.jsonl"):
        JsonlQuestions(file)
    with pytest.raises(DataError, match="no usable question; 1 x broken line"):
        JsonlQuestions(write(file, ["nonsense"]))
    assert check_questions(file).questions == 0


def test_pictures_are_opened_where_that_is_asked_for(file: Path) -> None:
    (file.parent / "a.png").write_bytes(b"no picture")
    write(file, [line(), line("q1")])
    assert not len(check_questions(file).problems)
    report = check_questions(file, pictures=True)
    assert report.problems.counts == {"broken picture": 1}  # once, though two lines name it
    assert (report.questions, report.documents) == (2, 2)
    (message,) = report.problems.messages["broken picture"]
    assert message.count("a.png") == 1


def test_a_question_whose_gold_picture_cannot_be_decoded_is_of_no_use(file: Path) -> None:
    (file.parent / "b.png").write_bytes(b"<svg/>")
    write(file, [line(), line("q1", gold=["a.png"]), line("q2", gold=["a.png", "b.png"])])
    assert check_questions(file).questions == 3
    report = check_questions(file, pictures=True)
    assert (report.questions, report.problems.counts["gold picture broken"]) == (1, 2)
    assert report.problems.messages["gold picture broken"][0] == "question 'q0': document 'b.png'"


def test_each_question_without_its_gold_picture_is_counted_and_named(file: Path) -> None:
    lost = [line(f"q{n}", images=["a.png", "z.png"], gold=["z.png"]) for n in range(30)]
    write(file, [*lost, line("ok")])
    dataset, report = JsonlQuestions(file), check_questions(file)
    for problems in (dataset.problems, report.problems):
        assert problems.counts == {"missing picture": 1, "gold picture missing": 30}
        assert "line 1: " in problems.messages["missing picture"][0]
        assert "line 4: 'z.png'" in problems.messages["gold picture missing"][3]
    assert dataset.document_ids() == ["a.png", "b.png"]
    assert (report.questions, report.documents) == (1, 2)
    with pytest.raises(DataError, match="missing picture"):
        JsonlQuestions(file, strict=True)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"answer": ""}, "empty answer"),
        ({"answer": []}, "empty answer"),
        ({"answer": [" "]}, "empty answer"),
        ({"gold": ["b.png", "b.png"]}, "named twice"),
        ({"gold": ["b.png", "./b.png"]}, "named twice"),
    ],
)
def test_gaps_and_repetitions_are_noted_and_cost_no_question(
    file: Path, changes: dict[str, Any], kind: str
) -> None:
    dataset = JsonlQuestions(write(file, [line(**changes)]))
    assert dataset.problems.counts == check_questions(file).problems.counts == {kind: 1}
    assert "line 1" in dataset.problems.messages[kind][0]
    (question,) = dataset.questions
    assert question.gold == ("b.png",)
    assert question.answers == (() if kind == "empty answer" else ("red",))
    with pytest.raises(DataError, match=kind):
        JsonlQuestions(file, strict=True)


def test_a_picture_is_one_document_however_its_path_is_written(file: Path) -> None:
    one = line("one", images=["a.png", " b.png "], gold=[" b.png "])
    two = line("two", images=["./a.png", ".//b.png"], gold=["b.png"])
    away = str(file.parent / "deep" / ".." / "a.png")
    three = line("three", images=[away, "b.png"], captions=None)
    dataset = JsonlQuestions(write(file, [one, two, three]))
    assert dataset.document_ids() == ["a.png", "b.png", away]
    assert set(dataset.gold.values()) == {("b.png",)}
    assert dataset.document(away).load().size == (8, 8)
    assert not len(dataset.problems)


def test_the_first_caption_of_a_usable_line_is_kept(file: Path) -> None:
    lines = [
        line("lost", images=["a.png", "z.png"], captions=["Of a lost line", None], gold=["z.png"]),
        line("none", captions=[None, " "]),
        line("first", captions=["Harbour", None]),
        line("empty", captions=["", None]),
        line("other", captions=["Museum", None]),
    ]
    dataset = JsonlQuestions(write(file, lines))
    assert dataset.document("a.png").caption == "Harbour"
    for problems in (dataset.problems, check_questions(file).problems):
        assert problems.counts["two captions"] == 1
        assert "line 5" in problems.messages["two captions"][0]


def test_names_that_no_file_can_have_are_missing_pictures(file: Path) -> None:
    names = ["n" * 300, "a\0.png", "../" * 2000 + "a.png", "b.png"]
    dataset = JsonlQuestions(write(file, [line(images=names, captions=None)]))
    assert dataset.document_ids() == ["b.png"]
    assert dataset.problems.counts == {"missing picture": 3}


def test_a_line_may_name_many_images(file: Path) -> None:
    names = [f"{n}.png" for n in range(40_000)]
    write(file, [line("q0", images=[*names, "b.png"], captions=None)] * 2)
    report = check_questions(file)
    assert (report.questions, report.documents) == (1, 1)
    assert report.problems.counts == {"missing picture": 40_000, "duplicate id": 1}


def test_a_documents_key_changes_with_its_caption_and_its_file(file: Path) -> None:
    dataset = JsonlQuestions(write(file, [line()]))
    keys = [dataset.document_name(id) for id in ("a.png", "b.png")]
    write_picture(file.parent / "b.png", "blue")
    edited = JsonlQuestions(write(file, [line(captions=["Edited", None])]))
    assert {edited.document_name(id) for id in ("a.png", "b.png")}.isdisjoint(keys)
    assert edited.document_name("a.png") == edited.document_name("a.png")


def test_a_documents_key_changes_with_each_of_its_parts(file: Path) -> None:
    def keys(**page: object) -> dict[str, str]:
        edited = {**MIXED, "documents": [{**MIXED["documents"][0], **page}]}
        dataset = JsonlQuestions(write(file, [{**edited, "gold": []}]))
        return {id: dataset.document_name(id) for id in dataset.document_ids()}

    before = keys()
    assert len(set(before.values())) == len(before)
    assert keys() == before
    pictures = [{"image": "a.png"}, {"image": "b.png"}]
    for parts in (["Deed"], pictures, pictures[::-1], [*pictures, "Deed"], ["Deed", *pictures]):
        assert keys(parts=parts)["page 7"] not in before.values()
        before |= {str(parts): keys(parts=parts)["page 7"]}
    last = keys(parts=pictures)["page 7"]
    write_picture(file.parent / "b.png", "blue")
    assert keys(parts=pictures)["page 7"] != last


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_no_bytes_make_it_stop(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "questions.jsonl"
    path.write_bytes(b"\n".join(lines))
    report = check_questions(path)
    assert report.questions == 0
    for message in report.problems.messages.get("broken line", []):
        assert str(path) in message
