"""`ragvl demo` end to end on a few questions, and what it writes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ragvl.cli import app
from ragvl.demo import DemoResult, run_demo
from ragvl.demo.report import NUM_ON_PAGE, write_page

RECALLS = ("recall@1", "recall@2", "recall@5", "recall@10", "recall@20")


@pytest.fixture(scope="module")
def result() -> DemoResult:
    return run_demo(num_questions=24, progress=False)


def test_the_figures_have_the_promised_shape_and_add_up(result: DemoResult) -> None:
    figures = json.loads(json.dumps(result.figures))
    assert set(figures["pools"]) == {"full", "gold"}
    for pool in figures["pools"].values():
        for order in ("retriever", "reranked"):
            recalls = [pool[order][name] for name in RECALLS]
            assert recalls == sorted(recalls)
            assert 0 <= pool[order]["precision"] <= 1
            assert 0 <= pool[order]["f1"] <= 1
        # both orders hold the same candidates
        assert pool["retriever"]["recall@20"] == pool["reranked"]["recall@20"]
        assert set(pool["answer_accuracy"]) == {"without_reranking", "with_reranking"}
    assert set(figures["latency_ms"]) == {"retrieve", "rerank", "generate"}
    assert figures["num_documents"]["full"] >= 1500
    assert figures["num_documents"]["gold"] < figures["num_documents"]["full"]


def test_reranking_lifts_recall_at_2_by_twenty_points(result: DemoResult) -> None:
    full = result.figures["pools"]["full"]
    assert full["reranked"]["recall@2"] - full["retriever"]["recall@2"] >= 0.2


def test_both_orders_of_an_example_hold_the_same_candidates(result: DemoResult) -> None:
    for example in result.examples:
        retrieved = {c.document.id: c.score for c in example.retrieved}
        reranked = {c.document.id: c.score for c in example.reranked}
        assert retrieved == reranked
        scores = [c.score for c in example.reranked]
        assert scores == sorted(scores, reverse=True)
        assert all(
            c.kept == (i < 2 and c.score >= result.threshold)
            for i, c in enumerate(example.reranked)
        )


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


def test_the_page_is_self_contained_and_shows_a_dozen_questions(
    result: DemoResult, tmp_path: Path
) -> None:
    path = tmp_path / "demo.html"
    write_page(result, path)
    text = path.read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.articles == NUM_ON_PAGE == 12
    assert len(page.images) == 12 * 2 * 20
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"url\(|@import|<script", text)
    assert f"{result.examples[0].reranked[0].score:.3f}" in text


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    files = [tmp_path / "demo.json", tmp_path / "demo.html"]
    command = [
        "demo",
        "--questions",
        "4",
        "--no-progress",
        "--json",
        str(files[0]),
        "--html",
        str(files[1]),
    ]
    outcome = CliRunner().invoke(app, command, env={"COLUMNS": "80"})
    assert outcome.exit_code == 0, outcome.output
    for word in ("R@2", "prec.", "F1", "retriever", "reranked", "gold", "threshold", "answer"):
        assert word in outcome.output
    assert json.loads(files[0].read_text())["num_questions"] == 4
    assert files[1].stat().st_size > 10_000


def test_a_file_that_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(app, ["demo", "--json", str(tmp_path / "no" / "demo.json")])
    assert outcome.exit_code == 2
    assert "there is no folder" in outcome.output
    with pytest.raises(ValueError, match="num_questions=0"):
        run_demo(num_questions=0)
