"""`ragvl demo` end to end on a few questions, and what it writes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from ragvl.cli import app
from ragvl.demo import run_demo
from ragvl.evaluation.cases import NUM_CASES, draw_cases
from ragvl.evaluation.evaluate import Evaluation
from ragvl.evaluation.result import to_json

RECALLS = ("recall@1", "recall@2", "recall@5", "recall@10", "recall@20")


class Shown(NamedTuple):
    """What the command printed and wrote, and what it measured."""

    printed: str
    figures: Path
    page: Path
    evaluation: Evaluation


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Of 14 questions."""
    folder = tmp_path_factory.mktemp("demo")
    figures, page = folder / "demo.json", folder / "demo.html"
    measured: list[Evaluation] = []

    def noted(**settings: Any) -> Evaluation:
        measured.append(run_demo(**settings))
        return measured[-1]

    command = ["demo", "--questions", "14", "--no-progress"]
    command += ["--json", str(figures), "--html", str(page)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ragvl.demo.run_demo", noted)
        outcome = CliRunner().invoke(app, command, env={"COLUMNS": "80"})
    assert outcome.exit_code == 0, outcome.output
    return Shown(outcome.output, figures, page, *measured)


@pytest.fixture(scope="module")
def evaluation(shown: Shown) -> Evaluation:
    return shown.evaluation


@pytest.mark.slow
def test_the_figures_have_the_promised_shape_and_add_up(evaluation: Evaluation) -> None:
    figures = json.loads(json.dumps(to_json(evaluation.result)))
    assert set(figures["pools"]) == {"full", "gold"}
    for pool in figures["pools"].values():
        for order in ("retrieved", "reranked"):
            recalls = [pool[order][name]["value"] for name in RECALLS]
            assert recalls == sorted(recalls)
        # both orders hold the same candidates
        assert pool["retrieved"]["recall@20"] == pool["reranked"]["recall@20"]
        thresholds = ["natural", "adaptive", "f1", "precision>=0.8", "precision>=0.9"]
        assert list(figures["thresholds"]) == thresholds
        assert set(pool["answers"]) == {"retrieved", *thresholds, "gold", "none"}
    stages = {"retrieve", "rerank, cold", "rerank, warm", "generate"}
    assert set(figures["latency_ms"]) == stages
    assert figures["pools"]["full"]["num_documents"] == 1560
    assert figures["pools"]["gold"]["num_documents"] < 600


@pytest.mark.slow
def test_reranking_lifts_recall_at_2_by_twenty_points(evaluation: Evaluation) -> None:
    full = evaluation.result.pools["full"]
    assert full.reranked["recall@2"].value - full.retrieved["recall@2"].value >= 0.2


@pytest.mark.slow
def test_the_questions_shown_are_drawn_by_the_seed(evaluation: Evaluation) -> None:
    def ids(seed: int) -> list[str]:
        return [case.question.id for case in draw_cases(evaluation, 3, seed=seed)]

    assert ids(0) == ids(0)
    assert len(set(ids(0))) == 3
    shown = {id for seed in range(40) for id in ids(seed)}
    assert shown == {question.question.id for question in evaluation.rankings["full"]}
    assert len(draw_cases(evaluation, 1000, seed=0)) == 14


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.images: list[str] = []
        self.links: list[str] = []
        self.articles = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.articles += tag == "article"
        if tag == "img":
            self.images.append(values.get("src") or "")
        self.links += [values[key] or "" for key in ("href", "src") if key in values]


@pytest.mark.slow
def test_the_page_is_self_contained_and_shows_a_dozen_questions(shown: Shown) -> None:
    text = shown.page.read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.articles == NUM_CASES == 12
    assert len(page.images) == 12 * 2 * 8
    assert all(image.startswith("data:image/png;base64,") for image in page.images)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import|<script", text)
    assert f"{shown.evaluation.rankings['full'][0].reranked[0].relevance:.3f}" in text


@pytest.mark.slow
def test_the_command_prints_and_writes(shown: Shown) -> None:
    for word in ("R@2", "prec.", "F1", "retrieved", "reranked", "gold", "threshold", "answer"):
        assert word in shown.printed
    figures = json.loads(shown.figures.read_text())
    assert figures == json.loads(json.dumps(to_json(shown.evaluation.result)))
    assert figures["num_questions"] == 14


def test_a_file_that_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(app, ["demo", "--json", str(tmp_path / "no" / "demo.json")])
    assert outcome.exit_code == 1
    assert "there is no folder" in outcome.output
    with pytest.raises(ValueError, match="num_questions=0"):
        run_demo(num_questions=0)
