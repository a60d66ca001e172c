"""A whole evaluation against the stages called one by one, broken off, resumed, and on bad data."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import karpathy_image, write_karpathy, write_picture
from tiny_models.published import jina_reranker_m0
from typer.testing import CliRunner

from ragvl.cli import app
from ragvl.cli.groups import EvaluationOptions
from ragvl.data.captions import Captions
from ragvl.data.images import DocumentError, ImageError
from ragvl.data.jsonl import JsonlQuestions
from ragvl.data.picture import Picture
from ragvl.data.problems import DataError
from ragvl.data.query import Query
from ragvl.data.questions import Pool, Question, question_name
from ragvl.data.synthetic import Places, write_world
from ragvl.data.webqa import WebQA
from ragvl.evaluation.answering import Answers
from ragvl.evaluation.answers import webqa_accuracy
from ragvl.evaluation.calibrate import calibrate
from ragvl.evaluation.cases import pick_cases
from ragvl.evaluation.comparison import compare
from ragvl.evaluation.evaluate import Evaluation, evaluate
from ragvl.evaluation.models import Models
from ragvl.evaluation.ranking import Candidate, PairScores, Ranking, wrong_pictures
from ragvl.evaluation.report import write_report
from ragvl.evaluation.result import EstimatedOn, Figure, to_json
from ragvl.evaluation.settings import EvaluationSettings
from ragvl.evaluation.tables import interval, percent, print_figures, signed
from ragvl.reranker import PromptTemplate, Reranker, SavedThresholds, ThresholdError
from ragvl.retriever import Retriever

ASSETS = Path(__file__).parents[2] / "ragvl" / "assets"
SETTINGS = EvaluationSettings(num_candidates=8, num_timed=2, max_new_tokens=8)


@pytest.fixture(scope="module")
def source(places: Path) -> WebQA:
    return WebQA(places, split="test")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What evaluations of the drawn world have computed, for tests that ask for other things."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def evaluation(source: WebQA, models: Models, kept: Path) -> Evaluation:
    return evaluate(source, models, SETTINGS, work=kept, progress=False)


@pytest.mark.slow
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
        measured = evaluation.result.pools[pool]
        accuracy = measured.answers["natural"].measures["accuracy"]
        assert accuracy.value == pytest.approx(np.mean(right))
        assert measured.num_documents == len(source.document_ids(pool))


def test_figures_are_counted_over_all_questions(source: WebQA, evaluation: Evaluation) -> None:
    result = evaluation.result
    full = result.pools["full"]
    hits = total = kept = 0
    for ranking in evaluation.rankings["full"]:
        ids = [c.id for c in ranking.reranked if c.relevance >= 0.5][:2]
        hits += len(set(ids) & set(ranking.question.gold))
        kept += len(ids)
        total += len(ranking.question.gold)
    selection = full.kept["natural"]
    assert selection["precision"].value == pytest.approx(hits / kept)
    assert selection["recall"].value == pytest.approx(hits / total)
    assert selection["f1"].value == pytest.approx(2 * hits / (kept + total))
    assert full.recalls is not None
    assert len(full.recalls.correct) + len(full.recalls.erroneous) == 2 * len(source.questions)
    assert result.categories == Counter(q.category for q in source.questions)
    answers = full.answers["natural"]
    weights = result.categories
    shares = {category: figure.value for category, figure in answers.by_category.items()}
    mean = sum(weights[c] * share for c, share in shares.items()) / sum(weights.values())
    assert mean == pytest.approx(answers.measures["accuracy"].value)
    assert json.loads(json.dumps(to_json(result), allow_nan=False))


class _Counting(Reranker):
    """Counts pairs, and can be broken off."""

    pairs = 0
    stop_at: int | None = None

    def score(self, pairs, **options):  # type: ignore[no-untyped-def,override]
        self.pairs += len(pairs)
        if self.stop_at is not None and self.pairs >= self.stop_at:
            raise KeyboardInterrupt
        return super().score(pairs, **options)


def counting(models: Models) -> Models:
    return replace(models, reranker=_Counting(models.reranker.mllm), generator=None)


@pytest.mark.slow
def test_each_documents_prefix_is_built_once(source: WebQA, models: Models) -> None:
    own = counting(models)
    settings = replace(SETTINGS, num_timed=0)
    evaluated = evaluate(source, own, settings, progress=False)
    assert isinstance(own.reranker, _Counting)
    pairs = {
        (ranking.question.id, c.id)
        for rankings in evaluated.rankings.values()
        for ranking in rankings
        for c in ranking.retrieved
    }
    documents = {id for _, id in pairs}
    assert own.reranker.pairs == len(pairs)
    statistics = own.reranker.prefix_cache.statistics()["device"]
    assert statistics.misses == len(documents)


@pytest.mark.slow
def test_an_evaluation_that_was_broken_off_goes_on(
    source: WebQA, models: Models, evaluation: Evaluation, tmp_path: Path
) -> None:
    broken, whole = counting(models), counting(models)
    assert isinstance(broken.reranker, _Counting) and isinstance(whole.reranker, _Counting)
    broken.reranker.stop_at = 60
    settings = replace(SETTINGS, num_timed=0)
    with pytest.raises(KeyboardInterrupt):
        evaluate(source, broken, settings, work=tmp_path, progress=False)
    evaluated = evaluate(source, whole, settings, work=tmp_path, progress=False)
    for pool in ("full", "gold"):
        assert evaluated.rankings[pool] == evaluation.rankings[pool]  # type: ignore[index]
    assert 0 < whole.reranker.pairs < broken.reranker.pairs + whole.reranker.pairs
    again = counting(models)
    # another threshold, another top_k: nothing new is scored
    changed = replace(settings, thresholds=(0.9,), top_k=1)
    evaluate(source, again, changed, work=tmp_path, progress=False)
    assert isinstance(again.reranker, _Counting)
    assert again.reranker.pairs == 0


@pytest.mark.slow
def test_another_model_or_prompt_never_takes_what_is_there(
    source: WebQA, models: Models, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, num_timed=0, num_questions=4)
    mllm = models.reranker.mllm
    mine = PromptTemplate("mine", "<image>\nIs it about {query}?")
    rerankers = [
        _Counting(mllm),
        _Counting.from_pretrained(ASSETS / "tiny-base"),
        _Counting(mllm, template=mine),
        _Counting(mllm, template=replace(mine, text="<image>\nDoes it show {query}?")),
        _Counting(mllm, template=mine, answers=("No", "Yes")),
    ]
    for reranker in rerankers:
        evaluate(source, Models(models.encoder, reranker), settings, work=tmp_path, progress=False)
    assert len({reranker.pairs for reranker in rerankers}) == 1, "each scored all of them"
    assert rerankers[0].pairs > 0


@pytest.mark.slow
def test_noise_puts_wrong_pictures_before_the_reranker(
    source: WebQA, models: Models, evaluation: Evaluation, kept: Path
) -> None:
    gold = source.document_ids("gold")
    swapped = wrong_pictures(source, 0.5, seed=0)
    assert len(swapped) == round(0.5 * len(gold))
    assert all(id != other for id, other in swapped.items())
    assert sorted(swapped) == sorted(swapped.values())
    assert wrong_pictures(source, 0.5, seed=1) != swapped
    assert wrong_pictures(source, 0, 0) == {}
    assert len(wrong_pictures(source, 0.001, 0)) == 2, "one document alone cannot trade places"
    with pytest.raises(ValueError, match="noise_ratio=2"):
        wrong_pictures(source, 2, 0)
    settings = replace(SETTINGS, noise_ratio=1.0, num_timed=0)
    noisy = evaluate(source, models, settings, work=kept, progress=False)
    moved = wrong_pictures(source, 1.0, 0)
    for before, after in zip(evaluation.rankings["full"], noisy.rankings["full"], strict=True):
        assert [moved.get(c.id, c.id) for c in before.retrieved] == [c.id for c in after.retrieved]
    for question, shown in zip(source.questions, noisy.evidence["full", "gold"], strict=True):
        assert not set(shown) & set(question.gold)
    # the reranker sees what is there, and rejects it
    clean, misled = (e.result.pools["full"] for e in (evaluation, noisy))
    assert misled.retrieved["recall@5"].value < clean.retrieved["recall@5"].value
    for name in ("natural", "gold"):
        right, wrong = (p.answers[name].measures["accuracy"].value for p in (clean, misled))
        assert wrong < right
    # what the report shows as kept is what the generator saw
    for case in pick_cases(noisy, "mixed"):
        number = next(
            n for n, r in enumerate(noisy.rankings["full"]) if r.question.id == case.question.id
        )
        assert case.kept == frozenset(noisy.evidence["full", "natural"][number])


@pytest.mark.slow
def test_thresholds_are_estimated_on_dev_and_applied_to_test(
    places: Path, source: WebQA, models: Models, kept: Path
) -> None:
    dev = WebQA(places, split="val")
    saved, recalls = calibrate(dev, models, progress=False, settings=SETTINGS, work=kept)
    assert len(saved.questions) == len(dev.questions)
    assert len(recalls.relevance) == len(dev.questions)
    assert set(saved.values) | set(saved.refused) == {"adaptive", "f1", "precision>=0.9"}
    assert "f1" in saved.values
    calibrated = replace(models, reranker=Reranker(models.reranker.mllm, thresholds=saved))
    settings = replace(SETTINGS, thresholds=("f1", "natural"), num_timed=0)
    evaluated = evaluate(source, calibrated, settings, work=kept, progress=False)
    assert evaluated.result.thresholds == {"f1": saved.values["f1"], "natural": 0.5}
    assert evaluated.result.estimated_on == EstimatedOn(
        data=dev.name,
        pool="full",
        num_candidates=8,
        top_k=2,
        num_questions=len(dev.questions),
        refused=saved.refused,
        num_documents=len(dev.document_ids()),
    )
    # a promise of precision is about the conditions it was estimated under
    differing = {name: pool.estimated_otherwise for name, pool in evaluated.result.pools.items()}
    assert len(dev.document_ids()) > 2 * len(source.document_ids())
    assert differing == {"full": ["num_documents"], "gold": ["pool", "num_documents"]}
    alike = replace(saved, num_documents=len(source.document_ids()))
    calibrated = replace(models, reranker=Reranker(models.reranker.mllm, thresholds=alike))
    evaluated = evaluate(source, calibrated, settings, work=kept, progress=False)
    differing = {name: pool.estimated_otherwise for name, pool in evaluated.result.pools.items()}
    assert differing == {"full": [], "gold": ["pool", "num_documents"]}
    other = replace(settings, pools=("full",), top_k=1, num_candidates=5)
    evaluated = evaluate(source, calibrated, other, work=kept, progress=False)
    assert evaluated.result.pools["full"].estimated_otherwise == ["num_candidates", "top_k"]
    unknown = replace(models, reranker=Reranker(models.reranker.mllm))
    with pytest.raises(ThresholdError, match="ragvl calibrate"):
        evaluate(source, unknown, settings, progress=False)
    with pytest.raises(ThresholdError, match="none to estimate"):
        calibrate(dev, models, names=["adaptve"], progress=False)


@pytest.mark.slow
def test_no_question_is_judged_by_its_own_threshold(
    places: Path, models: Models, tmp_path: Path, kept: Path
) -> None:
    """Whatever its data set is called, or the folder that it lies in."""
    dev = WebQA(places, split="val")
    saved, _ = calibrate(dev, models, names=["f1"], progress=False, settings=SETTINGS, work=kept)
    calibrated = replace(models, reranker=Reranker(models.reranker.mllm, thresholds=saved))
    settings = replace(SETTINGS, thresholds=("f1",), num_timed=0)
    copied = WebQA(shutil.copytree(places, tmp_path / "copied"), split="val")
    for own in (dev, copied):
        with pytest.raises(ThresholdError, match=f"{len(dev.questions)} questions are asked here"):
            evaluate(own, calibrated, settings, progress=False)
    # one split may serve for both, in two parts
    half = replace(SETTINGS, num_questions=30)
    saved, _ = calibrate(dev, models, names=["f1"], progress=False, settings=half, work=kept)
    assert len(saved.questions) == 30
    parted = replace(models, reranker=Reranker(models.reranker.mllm, thresholds=saved))
    with pytest.raises(ThresholdError, match="of which 1 questions are asked"):
        evaluate(dev, parted, replace(settings, skip=29), progress=False)
    evaluated = evaluate(dev, parted, replace(settings, skip=30), work=kept, progress=False)
    assert evaluated.result.num_questions == len(dev.questions) - 30
    namesake = tmp_path / places.name
    others = WebQA(write_world(namesake, Places(), counts={"val": 4}, seed=5), split="val")
    assert others.name == dev.name
    assert evaluate(others, calibrated, settings, progress=False).result.thresholds


@pytest.fixture
def own(tmp_path: Path, source: WebQA) -> Path:
    """Questions of one's own, each with the documents of a drawn one."""
    folder = tmp_path / "own"
    folder.mkdir()
    lines = []
    for question in source.questions[:6]:
        ids = [*question.gold, *question.negatives[:2]]
        for id in ids:
            source.document(id).load().save(folder / f"{id}.png")
        lines.append(
            {
                "id": question.id,
                "question": question.text,
                "answer": question.answers[0],
                "images": [f"{id}.png" for id in ids],
                "captions": [source.document(id).caption for id in ids],
                "gold": [f"{id}.png" for id in question.gold],
            }
        )
    path = folder / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


QUICK = replace(SETTINGS, pools=("full",), num_timed=0)


@pytest.fixture
def mixed(own: Path) -> Path:
    """The same, and beside the pictures texts, of which some are gold, and pages of several."""
    lines = [json.loads(line) for line in own.read_text().splitlines()[:4]]
    for number, line in enumerate(lines):
        line["texts"] = [f"The roof of mill {number} is <b>red</b>.", "Every mill has a roof."]
        parts = [{"image": line["images"][1]}, f"Page {number}", {"image": line["images"][-1]}]
        line["documents"] = [{"id": f"page {number}", "parts": parts}]
    lines[0]["gold"] = lines[0]["texts"][:1]
    lines[1]["gold"].append("page 1")
    own.write_text("\n".join(map(json.dumps, lines)))
    return own


@pytest.mark.slow
def test_a_pool_of_pictures_and_texts_is_handled_as_by_the_stages(
    mixed: Path, models: Models, tmp_path: Path
) -> None:
    source, work = JsonlQuestions(mixed), tmp_path / "work"
    settings = replace(QUICK, num_timed=1)
    evaluated = evaluate(source, models, settings, work=work, progress=False)
    assert not len(source.problems)
    retriever = Retriever(models.encoder, list(source.documents()), progress=False)
    assert models.generator is not None
    for number, question in enumerate(source.questions):
        ranking = evaluated.rankings["full"][number]
        hits = retriever.retrieve(question.text, 8)
        assert [c.id for c in ranking.retrieved] == [hit.id for hit in hits]
        assert {bool(hit.document.pictures) for hit in hits} == {True, False}
        ranked = models.reranker.rank(question.text, [hit.document for hit in hits])
        assert [c.id for c in ranking.reranked] == [r.document.id for r in ranked]
        assert [c.relevance for c in ranking.reranked] == [r.score for r in ranked]
        first = [hit.document for hit in hits[:2]]
        assert {bool(document.pictures) for document in first} == {True, False}
        answer = models.generator.answer(question.text, first, max_new_tokens=8)
        assert evaluated.answers["full", "retrieved"][number] == answer
    again = evaluate(JsonlQuestions(mixed), models, QUICK, work=work, progress=False)
    assert (again.rankings, again.answers) == (evaluated.rankings, evaluated.answers)
    saved, _ = calibrate(source, models, settings=QUICK, work=work, progress=False)
    assert len(saved.questions) == len(source.questions)

    write_report(evaluated, tmp_path / "report.html", cases="mixed")
    page = _Page()
    page.feed((tmp_path / "report.html").read_text())
    assert page.tags["blockquote"] and page.tags["b"] == 0
    assert page.images and all(image.startswith("data:image/png") for image in page.images)
    assert "The roof of mill 0 is &lt;b&gt;red&lt;/b&gt;." in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_questions_about_pictures_are_handled_as_by_the_stages(
    mixed: Path, models: Models, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in mixed.read_text().splitlines()]
    for line, color in zip(lines, ["red", "green", "blue"], strict=False):
        line["question_image"] = f"asked-{color}.png"
        write_picture(mixed.parent / f"asked-{color}.png", color)
    mixed.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match=r"question '.*' has a picture, and a generator"):
        evaluate(JsonlQuestions(mixed), models, QUICK, work=tmp_path / "work", progress=False)
    own, settings = replace(models, generator=None), replace(QUICK, num_timed=1)

    def run(work: Path | None) -> Evaluation:
        return evaluate(JsonlQuestions(mixed), own, settings, work=work, progress=False)

    evaluated = run(tmp_path / "work")
    retriever = Retriever(own.encoder, list(evaluated.source.documents()), progress=False)
    for question, ranking in zip(
        evaluated.source.questions, evaluated.rankings["full"], strict=True
    ):
        query = Query(question.text, question.image)
        hits = retriever.retrieve(query, 8)
        assert [c.id for c in ranking.retrieved] == [hit.id for hit in hits]
        ranked = own.reranker.rank(query, [hit.document for hit in hits])
        assert [c.relevance for c in ranking.reranked] == [r.score for r in ranked]
    write_report(evaluated, tmp_path / "report.html", cases="mixed")
    assert (tmp_path / "report.html").read_text().count('alt="asked about"') == 3

    write_picture(mixed.parent / "asked-red.png", "white")
    changed = run(tmp_path / "work")
    assert changed.rankings == run(None).rankings
    assert changed.rankings["full"][0] != evaluated.rankings["full"][0]
    (mixed.parent / "asked-green.png").write_bytes(b"no picture")
    broken = run(tmp_path / "work")
    assert broken.result.problems == {"question picture broken": 1}
    assert broken.result.num_questions == len(lines) - 1
    limited = replace(own, reranker=Reranker(own.reranker.mllm, template="retrieval"))
    with pytest.raises(ValueError, match="template 'retrieval'"):
        evaluate(JsonlQuestions(mixed), limited, QUICK, progress=False)


@pytest.mark.slow
def test_a_text_that_has_changed_is_scored_again(
    mixed: Path, models: Models, tmp_path: Path
) -> None:
    own = replace(models, generator=None)
    evaluate(JsonlQuestions(mixed), own, QUICK, work=tmp_path / "work", progress=False)
    mixed.write_text(mixed.read_text().replace("Page ", "Seite "))
    resumed = evaluate(JsonlQuestions(mixed), own, QUICK, work=tmp_path / "work", progress=False)
    fresh = evaluate(JsonlQuestions(mixed), own, QUICK, progress=False)
    assert resumed.rankings == fresh.rankings


def test_documents_that_the_prompt_has_no_place_for_are_refused_before_the_work(
    mixed: Path, models: Models, tmp_path: Path
) -> None:
    own = replace(models, reranker=Reranker(models.reranker.mllm, template="caption"))
    for run in (evaluate, calibrate):
        with pytest.raises(DocumentError, match=r"'caption' is about one picture, and document"):
            run(JsonlQuestions(mixed), own, settings=QUICK, work=tmp_path / "work", progress=False)
    assert not list(tmp_path.glob("work/*"))


@pytest.mark.slow
def test_data_that_have_changed_are_computed_again(
    own: Path, models: Models, tmp_path: Path
) -> None:
    """Question, caption or picture: what was computed is of what it was computed from."""
    work = tmp_path / "work"
    before = evaluate(JsonlQuestions(own), models, QUICK, work=work, progress=False)

    def check(changed: Path) -> Evaluation:
        resumed = evaluate(JsonlQuestions(changed), models, QUICK, work=work, progress=False)
        fresh = evaluate(JsonlQuestions(changed), models, QUICK, progress=False)
        assert resumed.rankings == fresh.rankings
        assert resumed.answers == fresh.answers
        return resumed

    assert check(own).rankings == before.rankings
    lines = [json.loads(line) for line in own.read_text().splitlines()]
    for line in lines:
        line["question"] = "Is it a castle?"
    own.write_text("\n".join(map(json.dumps, lines)))
    reworded = check(own)
    assert reworded.rankings != before.rankings
    for line in lines:
        line["captions"] = ["A picture"] * len(line["images"])
    own.write_text("\n".join(map(json.dumps, lines)))
    captioned = check(own)
    assert captioned.rankings != reworded.rankings
    for picture in own.parent.glob("*.png"):
        write_picture(picture, color="white")
        os.utime(picture, (1, 1))
    assert check(own).rankings != captioned.rankings
    # another file of that name, elsewhere
    twin = shutil.copytree(own.parent, tmp_path / "twin") / "own.jsonl"
    for line in lines:
        line["question"] = "How many windows are there?"
    twin.write_text("\n".join(map(json.dumps, lines)))
    check(twin)


@pytest.mark.slow
def test_a_broken_gold_picture_leaves_its_question_out_every_time(
    own: Path, models: Models, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in own.read_text().splitlines()]
    lost = own.parent / lines[0]["gold"][0]
    lost.write_bytes(b"no picture")
    asking = sum(lost.name in line["gold"] for line in lines)
    problems = {"broken picture": 1, "gold picture broken": asking}
    for _ in range(2):  # the second time from what was kept
        source = JsonlQuestions(own)
        evaluated = evaluate(source, models, QUICK, work=tmp_path / "work", progress=False)
        assert evaluated.result.num_questions == len(lines) - asking
        assert evaluated.result.problems == problems
        images = {name for line in lines for name in line["images"]}
        assert evaluated.result.pools["full"].num_documents == len(images) - 1
        with pytest.raises(DataError, match="broken picture"):
            evaluate(
                JsonlQuestions(own, strict=True),
                models,
                QUICK,
                work=tmp_path / "work",
                progress=False,
            )
    assert any(repr(lines[0]["id"]) in line for line in source.problems.lines())
    for picture in own.parent.glob("*.png"):
        picture.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="no question whose gold documents can all be read"):
        evaluate(JsonlQuestions(own), models, QUICK, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        ("embed", "broken picture"),
        ("rerank", "pair that cannot be scored"),
        ("answer", "question that cannot be answered"),
    ],
)
def test_a_picture_that_could_not_be_opened_once_is_tried_again(
    stage: str,
    problem: str,
    own: Path,
    models: Models,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = replace(models, reranker=Reranker(models.reranker.mllm, prefix_cache=None))
    lost = json.loads(own.read_text().splitlines()[0])["gold"][0]
    now = ["embed"]

    def failing(read: Any) -> Any:
        def fails(picture: Picture, *args: Any, **named: Any) -> Any:
            if picture.path == str(own.parent / lost) and now[-1] == stage:
                raise ImageError(f"{picture.name}: the disk is asleep")
            return read(picture, *args, **named)

        return fails

    def noted(name: str, compute: Any) -> Any:
        return lambda *args, **named: (now.append(name), compute(*args, **named))

    def run() -> Evaluation:
        return evaluate(JsonlQuestions(own), models, QUICK, work=tmp_path / "work", progress=False)

    with monkeypatch.context() as patch:
        for name in ("load", "decoded"):
            patch.setattr(Picture, name, failing(getattr(Picture, name)))
        patch.setattr(PairScores, "compute", noted("rerank", PairScores.compute))
        patch.setattr(Answers, "compute", noted("answer", Answers.compute))
        assert problem in run().result.problems
    again = run()
    expected = evaluate(JsonlQuestions(own), models, QUICK, progress=False)
    assert again.result.problems == {}
    assert again.rankings == nearly(expected.rankings)
    assert again.answers == expected.answers


def nearly(rankings: dict[Pool, list[Ranking]]) -> dict[Pool, list[Ranking]]:
    """What equals these, but for a vector's last bits: they depend on its batch."""
    return {
        pool: [
            replace(
                ranking,
                retrieved=[
                    replace(one, score=pytest.approx(one.score, abs=1e-6))
                    for one in ranking.retrieved
                ],
            )
            for ranking in ranked
        ]
        for pool, ranked in rankings.items()
    }


@pytest.mark.slow
def test_damaged_work_is_done_again(
    own: Path, models: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = evaluate(JsonlQuestions(own), models, QUICK, work=tmp_path / "work", progress=False)
    files = sorted((tmp_path / "work").iterdir())
    assert [path.name.partition("-")[0] for path in files] == ["answers", "scores", "vectors"]
    for path in files:
        path.write_bytes(path.read_bytes()[:-40] + b"\n" + bytes(39))
    again = evaluate(JsonlQuestions(own), models, QUICK, work=tmp_path / "work", progress=False)
    assert again.rankings == expected.rankings
    assert again.answers == expected.answers
    assert all(any(path.name in message for message in caplog.messages) for path in files)


@pytest.mark.slow
def test_a_prompt_that_is_too_long_is_counted_and_named(
    own: Path, models: Models, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in own.read_text().splitlines()]
    lines[2]["question"] += " really?" * 3000
    own.write_text("\n".join(map(json.dumps, lines)))
    for _ in range(2):
        source = JsonlQuestions(own)
        evaluated = evaluate(source, models, QUICK, work=tmp_path / "work", progress=False)
        candidates = len(evaluated.rankings["full"][2].retrieved)
        assert all(math.isnan(c.relevance) for c in evaluated.rankings["full"][2].retrieved)
        assert evaluated.result.problems == {
            "pair that cannot be scored": candidates,
            "question that cannot be answered": 1,
        }
        named = "\n".join(source.problems.lines())
        assert named.count(repr(lines[2]["id"])) == candidates + 1
        answers = evaluated.answers["full", "gold"]
        assert answers[2] == "" and all(answers[:2] + answers[3:])
    assert json.dumps(to_json(evaluated.result), allow_nan=False)
    with pytest.raises(DataError, match="cannot be scored"):
        evaluate(JsonlQuestions(own, strict=True), models, QUICK, progress=False)


def test_figures_are_compared_with_another_evaluations(
    evaluation: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    full = evaluation.result.pools["full"]
    there = Figure(0.25, 0.1, 0.4, 24)
    changed = replace(full, reranked=full.reranked | {"recall@1": there})
    other = replace(evaluation.result, data="elsewhere", pools={"full": changed})
    comparison = compare(evaluation.result, other)
    assert comparison.data == "elsewhere"
    assert set(comparison.pools) == {"full"}
    row = comparison.pools["full"]["recall@1, reranked"]
    here = full.reranked["recall@1"]
    assert (row.here, row.there) == (here, there)
    assert row.change.value == pytest.approx(here.value - 0.25)
    assert row.change.low < row.change.value < row.change.high
    same = comparison.pools["full"]["accuracy of answers from natural"].change
    assert same.value == 0 and same.low < 0 < same.high
    print_figures(replace(evaluation.result, compared=comparison))
    lines = capsys.readouterr().out.splitlines()
    assert "Against elsewhere (24 questions), %" in lines
    assert f"full\trecall@1, reranked\t{percent(here)}\t25.0\t{signed(row.change)}\t" in "\n".join(
        lines
    )
    gain = full.gain["recall@1"]
    moves = f"{signed(gain)} (95 % interval {interval(gain, '+')}) points"
    assert f"full pool: reranking moves recall@1 by {moves}" in lines


@pytest.mark.slow
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
    evaluated = evaluate(captions, own, replace(SETTINGS, pools=("full",)), progress=False)
    assert evaluated.result.settings.top_k == 1
    pool = evaluated.result.pools["full"]
    assert pool.answers == {}
    assert set(pool.reranked) >= {"recall@1", "recall@5", "recall@10"}
    ranking = evaluated.rankings["full"][0]
    assert "Is the image relevant to the caption?" in reranker.prompt(
        "x", captions.document(ranking.retrieved[0].id)
    )
    write_report(evaluated, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Recall before and after" in page
    assert "the gold pool is the same" in page


def test_questions_without_gold_or_answers_still_run(models: Models, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / name)
    line = {"id": "q", "question": "What color is it?", "images": ["a.png", "b.png"]}
    (tmp_path / "own.jsonl").write_text(json.dumps(line))
    evaluated = evaluate(
        JsonlQuestions(tmp_path / "own.jsonl"),
        models,
        replace(SETTINGS, pools=("full",), num_timed=1),
        progress=False,
    )
    assert "reranked" not in to_json(evaluated.result)["pools"]["full"]
    assert len(evaluated.answers["full", "natural"]) == 1
    assert next(iter(evaluated.submission()))[0] == "q"
    write_report(evaluated, tmp_path / "report.html")


@pytest.mark.slow
def test_answers_are_shown_where_no_gold_is_known(
    own: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) | {"gold": []} for line in own.read_text().splitlines()]
    own.write_text("\n".join(map(json.dumps, lines)))
    evaluated = evaluate(JsonlQuestions(own), models, QUICK, progress=False)
    accuracy = evaluated.result.pools["full"].answers["natural"].measures["accuracy"].value
    page = own.with_suffix(".html")
    write_report(evaluated, page)
    assert "answers: accuracy" in page.read_text()
    print_figures(evaluated.result)
    assert f"{100 * accuracy:.1f}" in capsys.readouterr().out


def test_probabilities_near_one_do_not_tie() -> None:
    raw = (40.0, 90.0, math.nan, 90.0, 60.0)
    candidates = [Candidate(str(i), 0.5, x if math.isnan(x) else 1.0, x) for i, x in enumerate(raw)]
    ranking = Ranking(Question("q", "Red?", (), "any", (), ()), candidates)
    assert [c.id for c in ranking.reranked] == ["1", "3", "4", "0", "2"]


def test_a_submission_needs_answers(own: Path, models: Models) -> None:
    lines = [json.loads(line) | {"answer": []} for line in own.read_text().splitlines()]
    own.write_text("\n".join(map(json.dumps, lines)))
    evaluated = evaluate(JsonlQuestions(own), models, QUICK, progress=False)
    with pytest.raises(ValueError, match="questions with known answers"):
        next(iter(evaluated.submission()))


def test_bad_settings_are_refused() -> None:
    for wrong in ({"top_k": 0}, {"num_candidates": 0}, {"noise_ratio": 1.5}, {"pools": ()}):
        with pytest.raises(ValueError, match=r"at least|share"):
            EvaluationSettings(**wrong)  # type: ignore[arg-type]


def test_calibration_needs_gold(models: Models, tmp_path: Path) -> None:
    line = {"id": "q", "question": "What color is it?", "images": ["a.png"]}
    folder = tmp_path / "mine"
    folder.mkdir()
    write_picture(folder / "a.png")
    (folder / "own.jsonl").write_text(json.dumps(line))
    with pytest.raises(ValueError, match="no question of mine, own has a gold document"):
        calibrate(JsonlQuestions(folder / "own.jsonl"), models, progress=False)


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


@pytest.mark.slow
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
    evil = replace(evil, text=f"{evil.text} \ud800", category="$\\x$ <script>\x1b[31m")
    rankings = {
        pool: [replace(r, question=evil if n == 0 else r.question) for n, r in enumerate(ranked)]
        for pool, ranked in evaluation.rankings.items()
    }
    path = tmp_path / "report.html"
    result = deepcopy(evaluation.result)
    result.thresholds["_$a$ <script>"] = 0.5
    for pool in result.pools.values():
        for figures in pool.answers.values():
            shares = figures.by_category
            shares[evil.category] = shares.pop(next(iter(shares)))
        pool.answers["_$a$ <script>"] = pool.answers["natural"]
        pool.kept["_$a$ <script>"] = pool.kept["natural"]
    result = replace(result, data="$\\x$ <script>")
    changed = replace(evaluation, rankings=rankings, result=result)
    write_report(changed, path, cases="mixed")
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.tags["article"] == 12
    assert page.tags["svg"] == 5  # recall, relevance, reliability, categories, latency
    assert page.tags["script"] == 0
    assert all(image.startswith("data:image/png;base64,") for image in page.images)
    text = path.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\ud800" in text
    assert r"$\x$ &lt;script&gt;\x1b[31m (" in text, "the category's label in the plot"
    assert " _$a$ &lt;script&gt; (0.50)" in text, "the threshold's in the legend"


@pytest.mark.slow
def test_the_commands_calibrate_then_evaluate(places: Path, tmp_path: Path) -> None:
    model = tmp_path / "models" / "reranker"
    model.mkdir(parents=True)
    for file in (ASSETS / "tiny-reranker").iterdir():
        (model / file.name).symlink_to(file)
    base = ["--encoder", str(ASSETS / "tiny-retriever"), "--reranker", str(model.parent)]
    base += [
        "--subfolder",
        "reranker",
        "--no-progress",
        "--device",
        "cpu",
        "--candidates",
        "8",
        "--questions",
        "40",
    ]
    plot = tmp_path / "relevance.svg"
    learned = [question_name(one.id, one.text) for one in WebQA(places).questions[38:]]
    (model / "ragvl_run.json").write_text(json.dumps({"questions": learned}))
    outcome = CliRunner().invoke(
        app, ["calibrate", str(places), "--split", "val", *base, "--plot", str(plot), "--json"]
    )
    assert outcome.exit_code == 0, outcome.output
    printed = json.loads(outcome.stdout)
    assert (printed["questions"], printed["trained_on"]) == (40, 2)
    assert printed["documents"] == len(WebQA(places, split="val").document_ids())
    assert "was trained on 2 of these 40 questions" in outcome.stderr
    assert plot.read_text().startswith("<?xml")
    saved = SavedThresholds.load(model / "ragvl_thresholds.json")
    assert saved is not None and "f1" in saved.values
    assert (printed["values"], printed["refused"]) == (saved.values, saved.refused)
    command = ["evaluate", str(places), "--split", "test", *base, "--out", str(tmp_path / "out")]
    command += ["--generator", str(ASSETS / "tiny-generator"), "--max-new-tokens", "8"]
    command += ["--submission", str(tmp_path / "submission.json"), "--timed", "1"]
    demo = Path(__file__).parents[2] / "benchmarks" / "results" / "demo.json"
    command += ["--compare", str(demo)]
    outcome = CliRunner().invoke(app, [*command, "--json"])
    assert outcome.exit_code == 0, outcome.output
    figures = json.loads((tmp_path / "out" / "result.json").read_text())
    assert json.loads(outcome.stdout) == figures
    assert {"natural", "f1"} <= set(figures["thresholds"])
    report = (tmp_path / "out" / "report.html").read_text()
    assert report.count("data:image/") > 20
    assert "Estimates are from 40 questions" in report
    assert "Against drawn places, test (520 questions)" in report
    assert f"reranker {model.parent}, subfolder reranker" in report
    assert figures["compared"]["pools"]["full"]["f1, kept by natural"]["change"]["low"] < 0.2
    submission = json.loads((tmp_path / "submission.json").read_text())
    assert len(submission) == figures["num_questions"]
    assert all(set(entry) == {"sources", "answer"} for entry in submission.values())


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, "jina-reranker-m0"),  # by its files
        ({"reranker": str(ASSETS / "tiny-reranker")}, "auto"),  # the data set's
        ({"preset": "monoqwen2-vl", "reranker": str(ASSETS / "tiny-base")}, "monoqwen2-vl"),
        ({"template": "document"}, "document"),
    ],
)
def test_a_checkpoint_is_evaluated_by_the_prompts_that_it_was_trained_on(
    places: Path, tmp_path: Path, chosen: dict[str, Any], expected: str
) -> None:
    encoder, reranker = str(ASSETS / "tiny-retriever"), str(jina_reranker_m0(tmp_path))
    options = EvaluationOptions(
        **{"source": places, "encoder": encoder, "reranker": reranker, "device": "cpu", **chosen}
    )
    template = options.prompt(options.open_questions())
    assert options.load_models(template).reranker.template_name == expected


def test_command_errors_are_one_line(places: Path, tmp_path: Path) -> None:
    encoder, reranker = (str(ASSETS / f"tiny-{name}") for name in ("retriever", "reranker"))
    command = ["evaluate", str(places), "--encoder", encoder, "--reranker", reranker]
    outcome = CliRunner().invoke(app, [*command, "--out", str(tmp_path), "--split", "nowhere"])
    assert outcome.exit_code == 1
    assert "nowhere has no usable question" in outcome.output
    command = ["calibrate", str(places), "--encoder", encoder, "--reranker", "hub/name"]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 1
    assert "--out" in outcome.output
    assert torch.is_grad_enabled()


def test_compare_with_other_json_is_one_line_before_any_work(places: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"arms": {}}')
    command = ["evaluate", str(places), "--encoder", "e", "--reranker", "r", "--out", str(tmp_path)]
    outcome = CliRunner().invoke(app, [*command, "--compare", str(other)], env={"COLUMNS": "999"})
    assert outcome.exit_code == 1
    assert len(outcome.output.splitlines()) == 1
    assert "other.json is not a result.json of `ragvl evaluate`: data" in outcome.output
