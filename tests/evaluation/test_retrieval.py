"""Retrieval by pictures, by captions and by both: orders, chance, the ceiling, and the words."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import write_picture
from tiny_encoders import save_text_encoder
from typer.testing import CliRunner

from ragvl.cli import app
from ragvl.data.jsonl import JsonlQuestions
from ragvl.data.webqa import WebQA
from ragvl.evaluation.calibrate import calibrate
from ragvl.evaluation.evaluate import Evaluation, evaluate
from ragvl.evaluation.metrics import chance_figures, ranking_figures
from ragvl.evaluation.models import Models
from ragvl.evaluation.report import write_report
from ragvl.evaluation.result import (
    EstimatedOn,
    EvaluationResult,
    Figure,
    PoolResult,
    from_json,
    to_json,
)
from ragvl.evaluation.settings import EvaluationSettings
from ragvl.evaluation.tables import print_figures, retrieval_remarks
from ragvl.reranker import THRESHOLDS_FILE, Reranker, SavedThresholds, place_prior
from ragvl.retriever import (
    FusedRetriever,
    ReciprocalRank,
    Retriever,
    TextEncoder,
    WeightedSum,
)

ASSETS = Path(__file__).parents[2] / "ragvl" / "assets"
SETTINGS = EvaluationSettings(pools=("full",), num_candidates=4, num_timed=1)


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.from_pretrained(save_text_encoder(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="module")
def both(models: Models, text_encoder: TextEncoder) -> Models:
    return replace(models, generator=None, text_encoder=text_encoder)


@pytest.fixture(scope="module")
def source(places: Path) -> WebQA:
    return WebQA(places, split="test")


@pytest.fixture(scope="module")
def fused(source: WebQA, both: Models) -> Evaluation:
    return evaluate(source, both, SETTINGS, progress=False)


@pytest.mark.slow
def test_orders_are_those_of_the_retrievers(source: WebQA, both: Models, fused: Evaluation) -> None:
    assert both.encoder is not None and both.text_encoder is not None
    retriever = FusedRetriever(
        Retriever(both.encoder), Retriever(both.text_encoder), documents=source.documents()
    )
    for ranking in fused.rankings["full"]:
        text = ranking.question.text
        hits = retriever.retrieve(text, 4)
        assert [(c.id, c.score) for c in ranking.retrieved] == [(hit.id, hit.score) for hit in hits]
        for order, alone in (("picture", retriever.picture), ("caption", retriever.caption)):
            assert list(ranking.alone[order]) == [hit.id for hit in alone.retrieve(text, 4)]
        assert ranking.num_documents == len(retriever)


def test_figures_of_each_order(fused: Evaluation) -> None:
    pool = fused.result.pools["full"]
    rankings = fused.rankings["full"]
    gold = [ranking.question.gold for ranking in rankings]
    assert list(pool.alone) == ["picture", "caption"]
    for order in ("picture", "caption"):
        expected = ranking_figures([ranking.alone[order] for ranking in rankings], gold)
        assert pool.alone[order] == expected
    found = sum(len({c.id for c in r.retrieved} & set(r.question.gold)) for r in rankings)
    total = sum(map(len, gold))
    assert pool.ceiling["recall@20"].value == pytest.approx(found / total)
    assert pool.ceiling["mrr"].value == pytest.approx(
        np.mean([any(c.id in r.question.gold for c in r.retrieved) for r in rankings])
    )
    for name, figure in pool.reranked.items():
        assert figure.value is not None and figure.value <= (pool.ceiling[name].value or 0)
    share = 4 / pool.num_documents
    assert pool.chance["recall@20"].value == pytest.approx(share)
    again = from_json(EvaluationResult, json.loads(json.dumps(to_json(fused.result))))
    assert again.pools == fused.result.pools
    assert again.models.fusion == "rrf" and again.models.text_encoder is not None


@pytest.mark.parametrize("num_candidates", [2, 5])
def test_chance_is_the_mean_over_every_order(num_candidates: int) -> None:
    gold = [{"a"}, {"b", "c"}]
    means: dict[str, list[float]] = {}
    for order in itertools.permutations("abcde"):
        hits = [[id in ids for id in order[:num_candidates]] for ids in gold]
        for k in (1, 2, 4):
            means.setdefault(f"recall@{k}", []).append(sum(sum(row[:k]) for row in hits) / 3)
        means.setdefault("mrr", []).append(
            np.mean([1 / (row.index(True) + 1) if any(row) else 0 for row in hits])
        )
        discounts = 1 / np.log2(np.arange(2, 5))
        gains = [
            discounts[: len(row[:3])][row[:3]].sum() / discounts[: len(ids)].sum()
            for row, ids in zip(hits, gold, strict=True)
        ]
        means.setdefault("ndcg@3", []).append(np.mean(gains))
    chance = chance_figures([5, 5], gold, num_candidates, recall_at=(1, 2, 4), ndcg_at=3)
    for name, values in means.items():
        assert chance[name].value == pytest.approx(np.mean(values)), name
    # A question that nothing was searched for finds nothing
    half = chance_figures([5, 0], [{"a"}, {"b"}], num_candidates)
    assert half["recall@1"].value == pytest.approx(1 / 10)


def _figure(value: float, low: float, high: float) -> Figure:
    return Figure(value, low, high, 100)


def _pool(picture: Figure, caption: Figure, fused: Figure) -> PoolResult:
    chance = {"recall@1": Figure(0.01, None, None, 100), "recall@5": Figure(0.05, None, None, 100)}
    figures = [{"recall@1": figure, "recall@5": figure} for figure in (picture, caption, fused)]
    return PoolResult(
        num_documents=100,
        retrieved=figures[2],
        reranked=figures[2],
        alone={"picture": figures[0], "caption": figures[1]},
        chance=chance,
        ceiling=figures[2],
        answers={},
        estimated_otherwise=[],
    )


def test_what_a_reader_must_know_is_said() -> None:
    good, poor = _figure(0.9, 0.85, 0.95), _figure(0.06, 0.005, 0.1)
    harmed = retrieval_remarks(_pool(poor, good, _figure(0.3, 0.2, 0.4)), 5)
    assert len(harmed) == 3
    assert "30.0 % of the gold documents are among the 5 candidates" in harmed[0]
    assert "picture is no better than chance: recall@5 6.0 (0.5 to 10.0)" in harmed[1]
    assert "random order has 5.0" in harmed[1]
    assert "caption finds more alone than fused" in harmed[2]
    assert len(retrieval_remarks(_pool(good, good, good), 5)) == 1
    unbounded = Figure(0.0, None, None, 1)
    assert len(retrieval_remarks(_pool(unbounded, unbounded, unbounded), 5)) == 1
    elsewhere = EstimatedOn("dev", "full", 5, 2, 60, refused={}, num_documents=2000)
    assert len(retrieval_remarks(_pool(good, good, good), 5, elsewhere)) == 1
    otherwise = {"searched_documents": 100, "estimated_otherwise": ["num_documents"]}
    told = "from dev, where a question was searched among 2,000 documents, and here among 100: "
    assert told in retrieval_remarks(replace(_pool(good, good, good), **otherwise), 5, elsewhere)[0]
    without_gold = PoolResult(num_documents=500, answers={}, **otherwise)
    assert [told in remark for remark in retrieval_remarks(without_gold, 5, elsewhere)] == [True]
    assert (
        retrieval_remarks(PoolResult(num_documents=1, answers={}, estimated_otherwise=[]), 5) == []
    )


def test_console_and_page_show_every_order(
    fused: Evaluation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_figures(fused.result)
    console = capsys.readouterr().out
    write_report(fused, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for order in ("picture", "caption", "fused", "chance", "reranked", "ceiling"):
        assert order in console
        assert f'<td class="name">{order}</td>' in page
    assert "ceiling of what reranking can find" in console and "can find" in page


@pytest.mark.slow
def test_the_weight_is_estimated_saved_and_taken(
    places: Path, both: Models, tmp_path: Path
) -> None:
    """Random words tell nothing, trained pictures do, so the weight goes to the pictures."""
    dev = WebQA(places, split="val")
    few = replace(SETTINGS, num_questions=12, num_candidates=2)
    saved, _ = calibrate(dev, both, settings=few, names=["f1"], weigh=True, progress=False)
    assert saved.fusion is not None and float(saved.fusion) >= 0.5
    weighed = replace(both, fusion=WeightedSum(float(saved.fusion)))
    assert saved.encoder == weighed.retriever_name != both.retriever_name
    reranker = shutil.copytree(ASSETS / "tiny-reranker", tmp_path / "reranker")
    saved.save(reranker / "ragvl_thresholds.json")
    assert both.encoder is not None and both.text_encoder is not None
    encoder, text = both.encoder.origin["path"], both.text_encoder.origin["path"]
    loaded = Models.load(encoder, str(reranker), text_encoder=text, device="cpu")
    assert loaded.fusion == weighed.fusion
    other = TextEncoder.from_pretrained(save_text_encoder(tmp_path / "other", seed=1))
    unlike = replace(loaded, text_encoder=other, fusion=ReciprocalRank())
    assert unlike.by_saved_fusion() is unlike, "it was estimated for another encoder"
    with pytest.raises(ValueError, match="one order only"):
        calibrate(dev, replace(both, text_encoder=None), settings=few, weigh=True, progress=False)


@pytest.mark.slow
def test_the_retrievers_weight_is_estimated_saved_and_taken(
    places: Path, text_encoder: TextEncoder, tmp_path: Path
) -> None:
    """By the commands: estimated, kept by a second `calibrate`, taken by `evaluate`."""
    tiny = shutil.copytree(ASSETS / "tiny-reranker", tmp_path / "reranker")
    (tiny / THRESHOLDS_FILE).unlink()
    both = ["--encoder", str(ASSETS / "tiny-retriever")]
    both += ["--text-encoder", str(text_encoder.origin["path"]), "--reranker", str(tiny)]
    options = [*both, "--template", "caption", "--candidates", "20", "--device", "cpu", "--json"]
    kept = ["--work", str(tmp_path / "work")]  # raw scores, which no weight changes

    def run(command: str, split: str, *others: str, exit_code: int = 0) -> dict[str, Any]:
        arguments = [command, str(places), "--split", split, *options, *others]
        outcome = CliRunner().invoke(app, arguments)
        assert outcome.exit_code == exit_code, outcome.output
        return json.loads(outcome.stdout) if outcome.exit_code == 0 else {"said": outcome.stderr}

    def evaluated(*others: str, split: str = "test", exit_code: int = 0) -> dict[str, Any]:
        out = ["--pool", "full", "--timed", "0", "--out", str(tmp_path / "out")]
        return run("evaluate", split, *out, *others, exit_code=exit_code)

    first = run("calibrate", "val", *kept, "--retriever-weight", "estimate", "--threshold", "f1")
    weight, f1 = first["retriever_weight"], first["values"]["f1"]
    assert weight > 0
    again = run("calibrate", "val", *kept, "--threshold", "adaptive")
    assert again["retriever_weight"] == weight, "as it was estimated before"
    saved = SavedThresholds.load(tiny / THRESHOLDS_FILE, "caption")
    assert saved is not None
    assert saved.values == {"f1": f1} | again["values"], "and what was is still there"

    result = evaluated("--threshold", "f1")
    assert result["models"]["retriever_weight"] == weight
    pool = result["pools"]["full"]
    assert pool["estimated_otherwise"] == ["num_documents"], "val has many more"
    alone = evaluated("--threshold", "f1", "--retriever-weight", "0")
    assert alone["pools"]["full"]["estimated_otherwise"] == ["retriever_weight", "num_documents"]
    assert "reranker_alone" not in alone["pools"]["full"]
    assert "retriever_weight" not in alone["models"]
    assert pool["reranker_alone"] == alone["pools"]["full"]["reranked"]
    own = evaluated("--threshold", "natural", split="val", exit_code=1)["said"]
    assert "retriever_weight: estimated on" in own and "60 questions are asked here" in own
    unweighed = ["--threshold", "natural", "--retriever-weight", "0"]
    assert evaluated(*unweighed, split="val")["estimated_on"] is None

    # Thresholds of half of the questions, with the weight of all 60
    run("calibrate", "val", *kept, "--threshold", "f1", "--questions", "30")
    others = ["--threshold", "natural", "--skip", "30"]
    own = evaluated(*others, split="val", exit_code=1)["said"]
    assert "retriever_weight: estimated before" in own and "on 30 questions that are asked" in own

    few = ["--retriever-weight", "estimate", "--threshold", "f1", "--questions", "10"]
    run("calibrate", "val", *kept, *few, exit_code=1)
    refused = SavedThresholds.load(tiny / THRESHOLDS_FILE, "caption")
    assert refused is not None and refused.retriever_weight == 0
    assert "20 are needed" in refused.refused["retriever_weight"]
    fixed = ["--fusion", "estimate", "--retriever-weight", "1"]
    assert "is of one fusion" in run("calibrate", "val", *fixed, exit_code=1)["said"]


@pytest.mark.slow
def test_the_retrievers_order_counts_in_reranking(
    source: WebQA, both: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(SETTINGS, num_timed=0)
    weighed = replace(both, retriever_weight=2.0)
    evaluation = evaluate(source, weighed, settings, work=tmp_path, progress=False)
    alone = evaluate(source, both, settings, work=tmp_path, progress=False)
    differ = 0
    for one, other in zip(evaluation.rankings["full"], alone.rankings["full"], strict=True):
        assert one.retrieved == other.retrieved
        prior = dict(zip([c.id for c in one.retrieved], place_prior(4, 2.0), strict=True))
        totals = [c.raw + prior[c.id] for c in one.reranked]
        assert totals == sorted(totals, reverse=True)
        differ += one.reranked != other.reranked
    assert differ, "or nothing was shown"
    assert evaluation.result.pools["full"].reranker_alone == alone.result.pools["full"].reranked
    print_figures(evaluation.result)
    console = capsys.readouterr().out
    assert "reranker alone" in console and "counts in reranking, with a weight of 2\n" in console
    write_report(evaluation, tmp_path / "report.html")
    assert "counts with a weight of 2." in (tmp_path / "report.html").read_text()
    again = from_json(EvaluationResult, json.loads(json.dumps(to_json(evaluation.result))))
    assert again.pools == evaluation.result.pools
    assert again.models.retriever_weight == 2.0


def test_a_weight_is_of_one_retriever(both: Models) -> None:
    saved = SavedThresholds.of_model(ASSETS / "tiny-reranker")
    assert saved is not None
    estimated = replace(saved, encoder=both.retriever_name, retriever_weight=3.0)
    known = replace(both, reranker=Reranker(both.reranker.mllm, thresholds=estimated))
    assert known.by_saved_weight().retriever_weight == 3
    assert replace(known, fusion=WeightedSum(0.5)).by_saved_weight().retriever_weight == 0
    assert replace(known, text_encoder=None).by_saved_weight().retriever_weight == 0


@pytest.fixture
def own(tmp_path: Path) -> JsonlQuestions:
    """Three questions: of a captioned picture, of one without caption, of a broken one."""
    lines = []
    for name, caption in (("a", "The red mill"), ("b", ""), ("c", "The blue boat")):
        if name == "c":
            (tmp_path / "c.png").write_bytes(b"broken")
        else:
            write_picture(tmp_path / f"{name}.png")
        document = {"id": name, "image": f"{name}.png"} | ({"caption": caption} if caption else {})
        question = f"What about {caption or name}?"
        lines.append({"id": name, "question": question, "documents": [document], "gold": [name]})
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return JsonlQuestions(tmp_path / "own.jsonl")


def test_documents_that_one_encoder_cannot_read(
    own: JsonlQuestions, both: Models, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(SETTINGS, num_timed=0)
    fused = evaluate(own, both, settings, progress=False)
    assert [q.question.id for q in fused.rankings["full"]] == ["a", "b"], "c is broken, and named"
    assert own.problems.counts["gold picture broken"] == 1
    assert {c.id for c in fused.rankings["full"][1].retrieved} == {"a", "b"}
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        texts = evaluate(own, replace(both, encoder=None), settings, progress=False)
    assert "1 of 3 documents have neither caption nor text" in caplog.text
    asked = {r.question.id: r for r in texts.rankings["full"]}
    assert set(asked) == {"a", "b", "c"}, "a question stays whose document is not found"
    assert "b" not in {c.id for c in asked["b"].retrieved}
    assert texts.result.pools["full"].alone == {}
    assert texts.result.models.encoder is None


def test_something_to_retrieve_by(both: Models) -> None:
    with pytest.raises(ValueError, match="nothing to retrieve by"):
        replace(both, encoder=None, text_encoder=None)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "--encoder for pictures, --text-encoder for captions"),
        (["--encoder", "TINY", "--fusion", "0.5"], "of --encoder and --text-encoder together"),
        (["--encoder", "TINY", "--text-encoder", "TINY", "--fusion", "half"], "no fusion"),
        (["--encoder", "TINY", "--text-encoder", "TINY"], "modules.json"),
        (["--text-encoder", "nowhere/at/all"], "no model folder"),
        (["--encoder", "TINY", "--retriever-weight", "-1"], "expected a number from 0"),
        (["--encoder", "TINY", "--retriever-weight", "estimate"], "expected a number from 0"),
    ],
)
def test_commands_refuse_what_is_no_retriever(
    options: list[str], problem: str, places: Path, tmp_path: Path
) -> None:
    tiny = str(ASSETS / "tiny-retriever")
    command = ["evaluate", str(places), "--reranker", str(ASSETS / "tiny-reranker")]
    command += [
        "--out",
        str(tmp_path / "out"),
        *(tiny if one == "TINY" else one for one in options),
    ]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 1
    assert problem in outcome.stderr
    assert "Traceback" not in outcome.stderr
