"""The programs of examples/ that need no other framework; other folders' tests run the others."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from data_files import write_picture

from ragvl import Document, Reranker
from ragvl.data.formats import open_questions
from ragvl.server.stages import Stages
from ragvl.training.ranking import read_ranking

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.slow
def test_own_pictures_are_ordered_by_relevance(
    demo: Stages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    question = "Which is red?"
    paths = [write_picture(tmp_path / f"{color}.png", color) for color in ("blue", "red", "green")]
    monkeypatch.setattr(sys, "argv", ["own_pictures.py", str(tmp_path), question])
    runpy.run_path(str(EXAMPLES / "own_pictures.py"))
    documents = [Document(path, id=path.name) for path in sorted(paths)]
    ranked = demo.reranker.rank(question, documents, progress=False)
    assert capsys.readouterr().out.splitlines() == [
        f"{place} {one.score:.3f} {one.document.id}" for place, one in enumerate(ranked, 1)
    ]


@pytest.mark.slow
def test_a_reranker_is_trained_on_questions_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = runpy.run_path(str(EXAMPLES / "train_on_your_questions.py"))
    program["write_charts"](tmp_path, {"train": 2, "val": 2})
    program["main"]([str(tmp_path)], [*program["SETTINGS"], "--max_steps=2"])
    trained = tmp_path / "reranker"
    held_out = open_questions(tmp_path, split="val")
    found = program["found_first"](Reranker.from_pretrained(trained), held_out)
    assert f" {found:.0%} after training; {trained}" in capsys.readouterr().out
    samples = read_ranking(tmp_path / "ranking.jsonl")
    gold = {q.id: q.gold for q in open_questions(tmp_path, split="train").questions}
    assert {one.question_id for one in samples} == set(gold)
    for one in samples:
        assert (one.answer == "Yes") == (one.document in gold[one.question_id or ""])


@pytest.mark.slow
def test_found_first_counts_questions_whose_gold_document_is_first(
    demo: Stages, tmp_path: Path
) -> None:
    program = runpy.run_path(str(EXAMPLES / "train_on_your_questions.py"))
    program["write_charts"](tmp_path, {"train": 2, "val": 2})
    held_out = open_questions(tmp_path, split="val")
    hits = []
    for question in held_out.questions:
        documents = [held_out.document(id) for id in (*question.gold, *question.negatives)]
        scores = demo.reranker.score([(question.text, one) for one in documents])
        hits.append(int(scores.argmax()) < len(question.gold))
    assert program["found_first"](demo.reranker, held_out) == sum(hits) / len(hits)


def test_kernels_that_are_compared_give_the_same() -> None:
    names = runpy.run_path(str(EXAMPLES / "compare_kernels.py"))
    marks = {mark.args[0]: mark.args[1] for mark in names["test_speed"].pytestmark}
    assert "cpu" in marks["backend"] or names["DEVICE"] == "cuda"
    for operation in marks["operation"]:
        run = operation()
        exact = run(backend="reference")
        found = run(backend="auto")
        for one, other in zip(_tensors(found), _tensors(exact), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def _tensors(result: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else result


def test_every_example_is_run_by_a_test() -> None:
    tests = Path(__file__).parent
    others = [
        path for name in ("integrations", "distributed") for path in tests.glob(f"{name}/*.py")
    ]
    run = "".join(path.read_text() for path in [*others, Path(__file__)])
    assert [path.name for path in EXAMPLES.glob("*.py") if path.name not in run] == []
