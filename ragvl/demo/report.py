"""Shows a few of the demo's questions in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ragvl.evaluation.evaluate import RETRIEVED, Evaluation
from ragvl.evaluation.report import pick_cases, print_figures

_NUM_QUESTIONS = 3
_NUM_CANDIDATES = 5


def print_result(evaluation: Evaluation, console: Console) -> None:
    """The tables of figures, then a few questions with their documents and answers."""
    print_figures(evaluation.figures, console)
    threshold, limit = next(iter(evaluation.figures["thresholds"].items()))
    for case in pick_cases(evaluation, "mixed", _NUM_QUESTIONS):
        table = Table(title=f'\n"{case.question.text}"', title_justify="left")
        for name in ("order", "picture", "caption"):
            table.add_column(name)
        table.add_column("relevance", justify="right")
        for name in ("gold", "kept"):
            table.add_column(name, justify="center")
        for order, candidates in (("retrieved", case.retrieved), ("reranked", case.reranked)):
            for rank, candidate in enumerate(candidates[:_NUM_CANDIDATES], start=1):
                table.add_row(
                    f"{order} {rank}",
                    candidate.id,
                    evaluation.source.document(candidate.id).caption,
                    f"{candidate.relevance:.3f}",
                    "yes" if candidate.id in case.question.gold else "",
                    "yes" if order == "reranked" and candidate.id in case.kept else "",
                )
            table.add_section()
        console.print(table)
        console.print(
            f"threshold {limit:.2f}; answer [bold]{case.answers[threshold][0]}[/bold] "
            f"(without reranking: {case.answers[RETRIEVED][0]}; "
            f"right: {' or '.join(case.question.answers)})",
            highlight=False,
        )
    figures = evaluation.figures
    console.print(
        f"\n{figures['num_questions']} questions, {figures['seconds']:.0f} seconds. "
        "Look at more: ragvl demo --html demo.html",
        highlight=False,
    )
