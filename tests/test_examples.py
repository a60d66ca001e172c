"""The programs of examples/ that need no other framework; tests/integrations runs the others."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from data_files import write_picture

from ragvl import Document
from ragvl.server.stages import Stages

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


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
    run = "".join(
        path.read_text() for path in [*(tests / "integrations").glob("test_*.py"), Path(__file__)]
    )
    assert [path.name for path in EXAMPLES.glob("*.py") if path.name not in run] == []
