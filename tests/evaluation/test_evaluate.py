"""A whole evaluation against the stages called one by one, broken off, resumed, and on bad data."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import karpathy_image, write_karpathy, write_picture
from typer.testing import CliRunner

from ragvl.cli import app
from ragvl.data.captions import Captions
from ragvl.data.jsonl import JsonlQuestions
from ragvl.data.problems import DataError
from ragvl.data.questions import Question
from ragvl.data.synthetic import Places, write_world
from ragvl.data.webqa import WebQA
from ragvl.evaluation.answers import webqa_accuracy
from ragvl.evaluation.evaluate import (
    Evaluation,
    EvaluationSettings,
    calibrate,
    evaluate,
)
from ragvl.evaluation.report import pick_cases, write_report
from ragvl.evaluation.stages import Models, wrong_pictures
from ragvl.reranker import Reranker, SavedThresholds, ThresholdError
from ragvl.retriever import Retriever

ASSETS = Path(__file__).parents[2] / "ragvl" / "assets"
SETTINGS = EvaluationSettings(num_candidates=8, num_timed=2, max_new_tokens=8)


@pytest.fixture(scope="module")
def source(places: Path) -> WebQA:
    return WebQA(places, split="test")


@pytest.fixture(scope="module")
def evaluation(source: WebQA, models: Models) -> Evaluation:
    return evaluate(source, models, SETTINGS, progress=False)


def test_rankings_and_answers_are_those_of_the_stages(
    source: WebQA, models: Models, evaluation: Evaluation
) -> None:
    """The pipeline's own classes, question by question, over both pools."""
    assert models.generator is not None
    for pool in ("full", "gold"):
        retriever = Retriever(models.encoder, list(source.documents(pool)), progress=False)
        right = []
        for number, question in enumerate(source.questions):
            ranking = evaluation.rankings[pool][number]
            hits = retriever.retrieve(question.text, 8)
            assert [c.id for c in ranking.retrieved] == [hit.id for hit in hits]
            ranked = models.reranker.rank(question.text, [hit.document for hit in hits])
            assert [c.id for c in ranking.reranked] == [r.document.id for r in ranked]
            assert [c.relevance for c in ranking.reranked] == [r.score for r in ranked]
            kept = [r.document for r in ranked[:2] if r.kept]
            assert evaluation.evidence[pool, "natural"][number] == tuple(d.id for d in kept)
            answer = models.generator.answer(question.text, kept, max_new_tokens=8)
            assert evaluation.answers[pool, "natural"][number] == answer
            right.append(webqa_accuracy(answer, question.answers, question.category))
        figures = evaluation.figures["pools"][pool]
        assert figures["answers"]["natural"]["accuracy"]["value"] == pytest.approx(np.mean(right))
        assert figures["num_documents"] == len(source.document_ids(pool))


def test_figures_are_counted_over_all_questions(source: WebQA, evaluation: Evaluation) -> None:
    figures = evaluation.figures["pools"]["full"]
    found = total = kept = 0
    for ranking in evaluation.rankings["full"]:
        ids = [c.id for c in ranking.reranked if c.relevance >= 0.5][:2]
        found += len(set(ids) & set(ranking.question.gold))
        kept += len(ids)
        total += len(ranking.question.gold)
    selection = figures["kept"]["natural"]
    assert selection["precision"]["value"] == pytest.approx(found / kept)
    assert selection["recall"]["value"] == pytest.approx(found / total)
    assert selection["f1"]["value"] == pytest.approx(2 * found / (kept + total))
    recalls = figures["recalls"]
    assert len(recalls["correct"]) + len(recalls["erroneous"]) == 2 * len(source.questions)
    assert evaluation.figures["categories"] == Counter(q.category for q in source.questions)
    by_category = figures["answers"]["natural"]["by_category"]
    weights = evaluation.figures["categories"]
    mean = sum(weights[c] * f["value"] for c, f in by_category.items()) / sum(weights.values())
    assert mean == pytest.approx(figures["answers"]["natural"]["accuracy"]["value"])
    assert json.loads(json.dumps(evaluation.figures, allow_nan=False))


class _Counting(Reranker):
    """Counts pairs and documents, and can be broken off."""

    pairs = 0
    documents = 0
    stop_at: int | None = None

    def score(self, pairs, **options):  # type: ignore[no-untyped-def,override]
        self.pairs += len(pairs)
        self.documents += len({id(document) for _, document in pairs})
        if self.stop_at is not None and self.pairs >= self.stop_at:
            raise KeyboardInterrupt
        return super().score(pairs, **options)


def counting(models: Models) -> Models:
    return replace(models, reranker=_Counting(models.reranker.mllm), generator=None)


def test_each_documents_prefix_is_built_once(source: WebQA, models: Models) -> None:
    own = counting(models)
    settings = replace(SETTINGS, num_timed=0)
    found = evaluate(source, own, settings, progress=False)
    assert isinstance(own.reranker, _Counting)
    pairs = {
        (ranking.question.id, c.id)
        for rankings in found.rankings.values()
        for ranking in rankings
        for c in ranking.retrieved
    }
    documents = {id for _, id in pairs}
    assert own.reranker.pairs == len(pairs)
    assert own.reranker.documents == len(documents)
    statistics = own.reranker.prefix_cache.statistics()["device"]
    assert statistics.misses == len(documents)


def test_an_evaluation_that_was_broken_off_goes_on(
    source: WebQA, models: Models, evaluation: Evaluation, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("ragvl.evaluation.stages._DOCUMENTS_AT_ONCE", 16)
    broken, whole = counting(models), counting(models)
    assert isinstance(broken.reranker, _Counting) and isinstance(whole.reranker, _Counting)
    broken.reranker.stop_at = 60
    settings = replace(SETTINGS, num_timed=0)
    with pytest.raises(KeyboardInterrupt):
        evaluate(source, broken, settings, work=tmp_path, progress=False)
    found = evaluate(source, whole, settings, work=tmp_path, progress=False)
    for pool in ("full", "gold"):
        assert found.rankings[pool] == evaluation.rankings[pool]  # type: ignore[index]
    assert 0 < whole.reranker.pairs < broken.reranker.pairs + whole.reranker.pairs
    again = counting(models)
    # another threshold, another top_k: nothing new is scored
    changed = replace(settings, thresholds=(0.9,), top_k=1)
    evaluate(source, again, changed, work=tmp_path, progress=False)
    assert isinstance(again.reranker, _Counting)
    assert again.reranker.pairs == 0


def test_another_model_never_takes_what_is_there(
    source: WebQA, models: Models, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, num_timed=0, num_questions=4)
    own = counting(models)
    evaluate(source, own, settings, work=tmp_path, progress=False)
    changed = counting(replace(models, reranker=Reranker.from_pretrained(ASSETS / "tiny-base")))
    evaluate(source, changed, settings, work=tmp_path, progress=False)
    assert isinstance(own.reranker, _Counting) and isinstance(changed.reranker, _Counting)
    assert changed.reranker.pairs == own.reranker.pairs > 0


def test_noise_puts_wrong_pictures_before_the_generator(
    source: WebQA, models: Models, evaluation: Evaluation
) -> None:
    gold = source.document_ids("gold")
    swapped = wrong_pictures(source, 0.5, seed=0)
    assert len(swapped) == round(0.5 * len(gold))
    assert all(id != other for id, other in swapped.items())
    assert sorted(swapped) == sorted(swapped.values())
    assert wrong_pictures(source, 0, 0) == {}
    with pytest.raises(ValueError, match="noise_ratio=2"):
        wrong_pictures(source, 2, 0)
    settings = replace(SETTINGS, noise_ratio=1.0, num_timed=0)
    noisy = evaluate(source, models, settings, progress=False)
    for question, shown in zip(source.questions, noisy.evidence["full", "gold"], strict=True):
        assert not set(shown) & set(question.gold) or len(question.gold) > 1
    # what is retrieved and kept is as before; only the generator is misled
    assert noisy.rankings == evaluation.rankings
    clean, misled = (
        e.figures["pools"]["full"]["answers"]["gold"]["accuracy"]["value"]
        for e in (evaluation, noisy)
    )
    assert misled < clean


def test_thresholds_are_estimated_on_dev_and_applied_to_test(
    places: Path, source: WebQA, models: Models
) -> None:
    dev = WebQA(places, split="val")
    saved, recalls = calibrate(dev, models, progress=False, settings=SETTINGS)
    assert saved.num_questions == len(dev.questions)
    assert len(recalls.relevance) == len(dev.questions)
    assert set(saved.values) | set(saved.refused) == {"adaptive", "f1", "precision>=0.9"}
    assert "f1" in saved.values
    calibrated = replace(models, reranker=Reranker(models.reranker.mllm, thresholds=saved))
    settings = replace(SETTINGS, thresholds=("f1", "natural"), num_timed=0)
    found = evaluate(source, calibrated, settings, progress=False)
    assert found.figures["thresholds"] == {"f1": saved.values["f1"], "natural": 0.5}
    num_dev = len(dev.questions)
    assert found.figures["estimated_on"] == {"data": dev.name, "num_questions": num_dev}
    with pytest.raises(ThresholdError, match=r"estimated on places.*, val.*another split"):
        evaluate(dev, calibrated, settings, progress=False)
    with pytest.raises(ThresholdError, match="ragvl calibrate"):
        evaluate(source, models, settings, progress=False)


def test_documents_that_cannot_be_read_are_counted_and_left_out(
    models: Models, tmp_path: Path
) -> None:
    folder = write_world(tmp_path / "world", Places(), counts={"test": 8}, seed=2)
    source = WebQA(folder, split="test")
    lost = source.questions[0].gold[0]
    row = (folder / "imgs.tsv").read_bytes()
    start = row.index(lost.encode() + b"\t") + len(lost) + 1
    (folder / "imgs.tsv").write_bytes(row[:start] + b"AAAA" + row[start + 4 :])
    found = evaluate(source, models, replace(SETTINGS, num_timed=0), progress=False)
    assert found.figures["problems"] == {"broken picture": 1}
    assert all(
        c.id != lost and not math.isnan(c.relevance)
        for ranking in found.rankings["full"]
        for c in ranking.retrieved
    )
    assert lost not in found.evidence["full", "gold"][0]
    with pytest.raises(DataError, match="broken picture"):
        strict = WebQA(folder, split="test", strict=True)
        evaluate(strict, models, replace(SETTINGS, num_timed=0), progress=False)


def test_captions_are_searched_for_by_the_same_command(
    source: WebQA, models: Models, tmp_path: Path
) -> None:
    images = []
    for document in list(source.documents())[:12]:
        document.load().save(tmp_path / f"{document.id}.png")
        images.append(karpathy_image(f"{document.id}.png", f"A place, {document.caption}"))
    captions = Captions(write_karpathy(tmp_path / "dataset_drawn.json", images))
    reranker = Reranker(models.reranker.mllm, template="retrieval")
    own = replace(models, reranker=reranker, generator=None)
    found = evaluate(captions, own, replace(SETTINGS, pools=("full",)), progress=False)
    assert found.figures["settings"]["top_k"] == 1
    pool = found.figures["pools"]["full"]
    assert pool["answers"] == {}
    assert set(pool["reranked"]) >= {"recall@1", "recall@5", "recall@10"}
    ranking = found.rankings["full"][0]
    assert "Is the image relevant to the caption?" in reranker.prompt(
        "x", captions.document(ranking.retrieved[0].id)
    )
    write_report(found, tmp_path / "report.html")
    assert "Recall before and after" in (tmp_path / "report.html").read_text()


def test_questions_without_gold_or_answers_still_run(models: Models, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / name)
    line = {"id": "q", "question": "What color is it?", "images": ["a.png", "b.png"]}
    (tmp_path / "own.jsonl").write_text(json.dumps(line))
    found = evaluate(
        JsonlQuestions(tmp_path / "own.jsonl"),
        models,
        replace(SETTINGS, pools=("full",), num_timed=1),
        progress=False,
    )
    assert "reranked" not in found.figures["pools"]["full"]
    assert len(found.answers["full", "natural"]) == 1
    assert next(iter(found.submission()))[0] == "q"
    write_report(found, tmp_path / "report.html")


def test_bad_settings_are_refused() -> None:
    for wrong in ({"top_k": 0}, {"num_candidates": 0}, {"noise_ratio": 1.5}, {"pools": ()}):
        with pytest.raises(ValueError, match=r"at least|share"):
            EvaluationSettings(**wrong)  # type: ignore[arg-type]


def test_calibration_needs_gold(models: Models, tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    line = {"id": "q", "question": "What color is it?", "images": ["a.png"]}
    (tmp_path / "own.jsonl").write_text(json.dumps(line))
    with pytest.raises(ValueError, match="no question of own has a gold document"):
        calibrate(JsonlQuestions(tmp_path / "own.jsonl"), models, progress=False)


# --- report and commands ------------------------------------------------------------------------


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")


def test_the_report_shows_what_went_wrong(evaluation: Evaluation, tmp_path: Path) -> None:
    cases = pick_cases(evaluation, "wrong")
    answers = evaluation.answers["full", "natural"]
    wrong = {
        q.id
        for q, a in zip(evaluation.source.questions, answers, strict=True)
        if webqa_accuracy(a, q.answers, q.category) < 1
    }
    assert {case.question.id for case in cases} <= wrong
    assert len(cases) == min(12, len(wrong))
    evil = replace(evaluation.source.questions[0], text="<script>alert(1)</script>")
    assert isinstance(evil, Question)
    rankings = {
        pool: [replace(r, question=evil if n == 0 else r.question) for n, r in enumerate(ranked)]
        for pool, ranked in evaluation.rankings.items()
    }
    path = tmp_path / "report.html"
    write_report(replace(evaluation, rankings=rankings), path, cases="mixed")
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.tags["article"] == 12
    assert page.tags["svg"] == 5  # recall, relevance, reliability, categories, latency
    assert page.tags["script"] == 0
    assert all(image.startswith("data:image/png;base64,") for image in page.images)
    assert "&lt;script&gt;" in path.read_text(encoding="utf-8")


def test_the_commands_calibrate_then_evaluate(places: Path, tmp_path: Path) -> None:
    model = tmp_path / "reranker"
    model.mkdir()
    for file in (ASSETS / "tiny-reranker").iterdir():
        (model / file.name).symlink_to(file)
    base = ["--encoder", str(ASSETS / "tiny-retriever"), "--reranker", str(model), "--no-progress"]
    base += ["--device", "cpu", "--candidates", "8", "--questions", "40"]
    plot = tmp_path / "relevance.svg"
    outcome = CliRunner().invoke(
        app, ["calibrate", str(places), "--split", "val", *base, "--plot", str(plot)]
    )
    assert outcome.exit_code == 0, outcome.output
    assert "f1: 0." in outcome.output
    assert plot.read_text().startswith("<?xml")
    assert "f1" in SavedThresholds.load(model / "ragvl_thresholds.json").values
    command = ["evaluate", str(places), "--split", "test", *base, "--out", str(tmp_path / "out")]
    command += ["--generator", str(ASSETS / "tiny-generator"), "--max-new-tokens", "8"]
    command += ["--submission", str(tmp_path / "submission.json"), "--timed", "1"]
    outcome = CliRunner().invoke(app, command, env={"COLUMNS": "100"})
    assert outcome.exit_code == 0, outcome.output
    assert "R@1" in outcome.output
    figures = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {"natural", "f1"} <= set(figures["thresholds"])
    report = (tmp_path / "out" / "report.html").read_text()
    assert report.count("data:image/") > 20
    assert "Thresholds were estimated on 40 questions" in report
    submission = json.loads((tmp_path / "submission.json").read_text())
    assert len(submission) == figures["num_questions"]
    assert all(set(entry) == {"sources", "answer"} for entry in submission.values())


def test_command_errors_are_one_line(places: Path, tmp_path: Path) -> None:
    command = ["evaluate", str(places), "--encoder", "e", "--reranker", "r", "--out", str(tmp_path)]
    outcome = CliRunner().invoke(app, [*command, "--split", "nowhere"])
    assert outcome.exit_code == 1
    assert "nowhere has no usable question" in outcome.output
    command = ["calibrate", str(places), "--encoder", "e", "--reranker", "hub/name"]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 1
    assert "--out" in outcome.output
    assert torch.is_grad_enabled()
