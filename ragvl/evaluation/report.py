"""An evaluation as one self-contained page: tables, plots, and cases to look at."""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import jinja2
from markupsafe import Markup

from ragvl.data.document import Document
from ragvl.data.images import ImageError
from ragvl.data.questions import Pool, Question
from ragvl.evaluation import plots
from ragvl.evaluation.answers import answer_metrics
from ragvl.evaluation.evaluate import RETRIEVED, Evaluation
from ragvl.evaluation.stages import Candidate, Ranking
from ragvl.output import print_table, say

NUM_CASES = 12
_CANDIDATES_SHOWN = 8
_PICTURE_SIDE = 160  # pixels; a page of full-size pictures would be hundreds of megabytes


@dataclass(frozen=True)
class Case:
    """One question's way through the stages.

    Attributes:
        question: the question.
        retrieved: its first candidates in the retriever's order.
        reranked: the same number in the reranker's.
        kept: ids of those kept, from which the generator answers.
        gold: gold documents that are among neither.
        answers: by what they are from, with how right each is; empty without a generator.
    """

    question: Question
    retrieved: Sequence[Candidate]
    reranked: Sequence[Candidate]
    kept: frozenset[str]
    gold: Sequence[str]
    answers: Mapping[str, tuple[str, float | None]]


def pick_cases(
    evaluation: Evaluation, which: Literal["wrong", "mixed"], count: int = NUM_CASES
) -> list[Case]:
    """Questions to look at, of mixed categories, from the first pool at the first threshold.

    Args:
        evaluation: what was measured.
        which: "wrong": answered wrongly or, without answers, without all gold documents kept.
        count: at most so many.
    """
    pool: Pool = evaluation.figures["settings"]["pools"][0]
    threshold = next(iter(evaluation.figures["thresholds"]))
    cases: dict[str, list[Case]] = {}
    for number, ranking in enumerate(evaluation.rankings[pool]):
        case = _case(evaluation, pool, threshold, number, ranking)
        if which == "mixed" or _is_wrong(case, threshold):
            cases.setdefault(ranking.question.category, []).append(case)
    turns = max(map(len, cases.values()), default=0)
    mixed = [group[turn] for turn in range(turns) for group in cases.values() if turn < len(group)]
    return mixed[:count]


def write_report(
    evaluation: Evaluation,
    path: Path,
    *,
    cases: Literal["wrong", "mixed"] = "wrong",
    paths: Mapping[str, str] | None = None,
) -> None:
    """Writes the page.

    Args:
        evaluation: what was measured.
        path: the HTML file.
        cases: see `pick_cases`.
        paths: what was evaluated, by stage: models' names or folders.
    """
    source = (files("ragvl.evaluation") / "report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = percent
    environment.filters["interval"] = interval
    environment.filters["signed"] = signed
    shown = pick_cases(evaluation, cases)
    wanted = dict.fromkeys(
        id
        for case in shown
        for id in [*(c.id for c in (*case.retrieved, *case.reranked)), *case.gold]
    )
    documents = {str(document.id): document for document in evaluation.source.documents(ids=wanted)}
    page = environment.from_string(source).render(
        figures=evaluation.figures,
        plots=[(title, Markup(plot)) for title, plot in draw_plots(evaluation.figures).items()],
        cases=shown,
        which=cases,
        paths=paths or {},
        problems=list(evaluation.source.problems.lines()),
        captions={id: document.caption or "" for id, document in documents.items()},
        pictures={id: _data_url(document) for id, document in documents.items()},
    )
    # Half a character, as a broken file name has, must not lose the page
    path.write_text(page, encoding="utf-8", errors="backslashreplace")


def draw_plots(figures: Mapping[str, Any]) -> dict[str, str]:
    """SVG by title, of what was measured."""
    pools = {pool: found for pool, found in figures["pools"].items() if "reranked" in found}
    drawn: dict[str, str] = {}
    if pools:
        first = next(iter(pools.values()))
        drawn["Recall before and after reranking"] = plots.recall_plot(pools)
        drawn["Relevance of the first documents, and thresholds"] = plots.relevance_plot(
            **first["recalls"], thresholds=figures["thresholds"]
        )
        if "reliability" in first:
            drawn["Reliability of relevance"] = plots.reliability_plot(**first["reliability"])
    answers = next(iter(figures["pools"].values()))["answers"]
    if any(answers.values()):
        ways = [RETRIEVED, next(iter(figures["thresholds"])), *(["gold"] if pools else [])]
        drawn["Answers by category"] = plots.category_plot(answers, ways, figures["categories"])
    if figures["latency_ms"]:
        drawn["Time of each stage"] = plots.latency_plot(figures["latency_ms"])
    return drawn


def print_figures(figures: Mapping[str, Any]) -> None:
    """Prints tables that fit a terminal of eighty columns, without intervals."""
    heads = {"precision": "prec.", "f1": "F1", "ndcg@10": "nDCG@10", "mrr": "MRR"}
    pools = figures["pools"]
    first = next(iter(pools.values()))
    measures = answer_measures(first)
    if "reranked" in first:
        names = [heads.get(name, name.replace("recall", "R")) for name in first["reranked"]]
        orders = [
            [pool, order, *map(percent, of_pool[order].values())]
            for pool, of_pool in pools.items()
            for order in ("retrieved", "reranked")
            if order in of_pool
        ]
        print_table(["pool", "order", *names], orders, title="Documents found, %", numbers=names)
    if "kept" in first or measures:
        names = ["threshold", "prec.", "recall", "F1", *(f"answers, {m}" for m in measures)]
        kept = [[pool, *row] for pool in pools for row in kept_rows(figures, pools[pool])]
        title = "Documents kept and answers, %"
        print_table(["pool", "kept", *names], kept, title=title, numbers=names)
    sizes = ", ".join(f"{pool}: {f['num_documents']:,}" for pool, f in pools.items())
    say(f"documents in the pool: {sizes}")
    medians = {stage: statistics.median(ms) for stage, ms in figures["latency_ms"].items()}
    if medians:
        text = ", ".join(f"{stage} {median:.1f}" for stage, median in medians.items())
        say(f"ms a question, median: {text}")


def answer_measures(found: Mapping[str, Any]) -> list[str]:
    """Of a pool, the names of the measures of its answers."""
    return [name for name in next(iter(found["answers"].values()), {}) if name != "by_category"]


def kept_rows(figures: Mapping[str, Any], found: Mapping[str, Any]) -> list[list[str]]:
    """Of a pool, a row for each way of choosing documents: name, threshold, figures, answers."""
    measures = answer_measures(found)
    selections = found.get("kept", {})
    rows = []
    for way in dict.fromkeys([*selections, *(found["answers"] if measures else ())]):
        limit = figures["thresholds"].get(way)
        selected = [percent(figure) for figure in selections.get(way, {}).values()]
        answers = [percent(found["answers"][way][name]) for name in measures]
        shown = "" if limit is None else f"{limit:.3f}"
        rows.append([way, shown, *(selected or [""] * 3), *answers])
    return rows


def percent(figure: Mapping[str, Any] | float) -> str:
    """A share in percent; a dash where it would divide by nothing."""
    value = figure["value"] if isinstance(figure, Mapping) else figure
    return "–" if value is None else f"{100 * value:.1f}"


def signed(figure: Mapping[str, Any]) -> str:
    """A difference in points, with its sign."""
    return "–" if figure["value"] is None else f"{100 * figure['value']:+.1f}"


def interval(figure: Mapping[str, Any]) -> str:
    """A figure's interval in percent; empty where there is none."""
    if figure["low"] is None:
        return ""
    return f"{100 * figure['low']:.1f} to {100 * figure['high']:.1f}"


def _case(
    evaluation: Evaluation, pool: Pool, threshold: str, number: int, ranking: Ranking
) -> Case:
    settings = evaluation.figures["settings"]
    kept = ranking.kept(settings["top_k"], evaluation.figures["thresholds"][threshold])
    measure = next(iter(answer_metrics(evaluation.source).values()))
    question = ranking.question
    answers = {
        way: (given[number], measure(given[number], question) if question.answers else None)
        for (of, way), given in evaluation.answers.items()
        if of == pool
    }
    found = {candidate.id for candidate in ranking.retrieved}
    return Case(
        question=question,
        retrieved=ranking.retrieved[:_CANDIDATES_SHOWN],
        reranked=ranking.reranked[:_CANDIDATES_SHOWN],
        kept=frozenset(kept),
        gold=[id for id in question.gold if id not in found],
        answers=answers,
    )


def _is_wrong(case: Case, threshold: str) -> bool:
    _, right = case.answers.get(threshold, ("", None))
    if right is not None:
        return right < 1
    return not case.kept.issuperset(case.question.gold)


def _data_url(document: Document) -> str:
    try:
        picture = document.load()
    except ImageError:
        return ""
    if max(picture.size) > _PICTURE_SIDE:
        picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
