"""An evaluation as one self-contained page: tables, plots, and cases to look at."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal

import jinja2
from markupsafe import Markup

from ragvl.data.faces import Face, picture_url
from ragvl.evaluation import plots
from ragvl.evaluation.answering import GOLD, RETRIEVED
from ragvl.evaluation.cases import pick_cases
from ragvl.evaluation.evaluate import Evaluation
from ragvl.evaluation.result import EvaluationResult
from ragvl.evaluation.settings import distinct_pools
from ragvl.evaluation.tables import (
    answer_measures,
    found_by_order,
    interval,
    percent,
    retrieval_remarks,
    signed,
)


def write_report(
    evaluation: Evaluation,
    path: Path,
    *,
    cases: Literal["wrong", "mixed"] = "wrong",
) -> None:
    """Writes the page.

    Args:
        evaluation: what was measured.
        path: the HTML file.
        cases: see `pick_cases`.
    """
    source = (files("ragvl.evaluation") / "report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = percent
    environment.filters["interval"] = interval
    environment.filters["signed"] = signed
    environment.filters["measures"] = answer_measures
    environment.filters["by_order"] = found_by_order
    environment.filters["remarks"] = retrieval_remarks
    picked = pick_cases(evaluation, cases)
    wanted = dict.fromkeys(
        id
        for case in picked
        for id in [*(c.id for c in (*case.retrieved, *case.reranked)), *case.gold]
    )
    documents = {str(document.id): document for document in evaluation.source.documents(ids=wanted)}
    page = environment.from_string(source).render(
        result=evaluation.result,
        every_document_is_gold=len(distinct_pools(evaluation.source)) == 1,
        plots=[(title, Markup(plot)) for title, plot in draw_plots(evaluation.result).items()],
        cases=picked,
        which=cases,
        problems=list(evaluation.source.problems.lines()),
        asked={
            case.question.id: [picture_url(picture) for picture in case.question.pictures]
            for case in picked
        },
        faces={id: Face.of(document) for id, document in documents.items()},
    )
    # Half a character, as a broken file name has, must not lose the page
    path.write_text(page, encoding="utf-8", errors="backslashreplace")


def draw_plots(result: EvaluationResult) -> dict[str, str]:
    """SVG by title, of what was measured."""
    first = result.pools[result.first_pool]
    known = {pool: of_pool for pool, of_pool in result.pools.items() if of_pool.reranked}
    drawn: dict[str, str] = {}
    if known:
        drawn["Recall before and after reranking"] = plots.recall_plot(known)
    if first.recalls is not None:
        title = "Relevance of the first documents, and thresholds"
        drawn[title] = plots.relevance_plot(first.recalls, result.thresholds)
    if first.reliability is not None:
        drawn["Reliability of relevance"] = plots.reliability_plot(first.reliability)
    if answer_measures(first):
        selections = [RETRIEVED, result.first_threshold, *([GOLD] if known else [])]
        drawn["Answers by category"] = plots.category_plot(
            first.answers, selections, result.categories
        )
    if result.latency_ms:
        drawn["Time of each stage"] = plots.latency_plot(result.latency_ms)
    return drawn
