"""Your own questions in a JSONL file, and what `ragvl data check` says of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from data_files import write_picture
from hypothesis import given, settings
from hypothesis import strategies as st

from ragvl.data.checking import check_questions
from ragvl.data.jsonl import JsonlQuestions
from ragvl.data.problems import DataError
from ragvl.evaluation.measure import peak_mib

NUM_LINES = 100_000


def line(id: str = "q0", **changes: object) -> dict[str, Any]:
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


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        ("{", "broken line", "line 2"),
        ("[1]", "broken line", "line 2"),
        ({"id": "x"}, "broken line", "question: Field required"),
        (line("x", images="a.png"), "broken line", "images"),
        (line("x", question="  "), "broken line", "question"),
        (line("x", imagse=[]), "broken line", "imagse"),
        (line("x", captions=["one"]), "broken line", "1 captions for 2 images"),
        (line("x", images=["a.png", "a.png"]), "broken line", "names one twice"),
        (line(), "duplicate id", "'q0'"),
        (line("x", gold=["z.png"]), "gold not among images", "'z.png'"),
        (line("x", images=["a.png", "z.png"], gold=["z.png"]), "missing picture", "z.png"),
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
    assert dataset.problems.counts == {
        "CRLF line end": 3,
        "missing picture": 1,
        "two captions": 1,
    }


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
    assert report.documents == 2


def test_many_lines_are_checked_fast_and_in_constant_memory(file: Path) -> None:
    import torch

    cpu = torch.device("cpu")
    record = json.dumps(line("ID", images=["a.png", "b.png", "IMAGE"], captions=None))
    with file.open("w") as out:
        for number in range(NUM_LINES):
            out.write(
                record.replace("ID", f"q{number}", 1).replace("IMAGE", f"{number}.png") + "\n"
            )
    small = file.with_name("small.jsonl")
    with file.open() as lines, small.open("w") as out:
        out.writelines(next(lines) for _ in range(NUM_LINES // 10))
    check_questions(small)  # what is loaded once is loaded
    of_small = peak_mib(lambda: check_questions(small), cpu)
    started = time.perf_counter()
    of_all = peak_mib(lambda: check_questions(file), cpu)
    assert time.perf_counter() - started < 30
    report = check_questions(small)
    assert report.questions == NUM_LINES // 10
    assert report.problems.counts == {"missing picture": NUM_LINES // 10}
    assert of_small is not None and of_all is not None
    assert of_all < of_small + 12  # MiB: the table's cache, and no more for ten times the lines


@settings(max_examples=60, deadline=None)
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
