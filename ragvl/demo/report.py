"""Shows a few of the demo's questions in the terminal."""

from __future__ import annotations

from ragvl.evaluation.answering import RETRIEVED
from ragvl.evaluation.cases import Case, draw_cases
from ragvl.evaluation.evaluate import Evaluation
from ragvl.evaluation.tables import print_figures
from ragvl.output import print_table, say

_NUM_QUESTIONS = 3
_NUM_CANDIDATES = 5


def print_result(evaluation: Evaluation, *, seed: int = 0) -> None:
    """Prints the tables of figures, then a few questions with their documents and answers.

    Args:
        evaluation: what was measured.
        seed: draws the questions.
    """
    result = evaluation.result
    print_figures(result)
    threshold = result.first_threshold
    for case in draw_cases(evaluation, _NUM_QUESTIONS, seed=seed):
        print_table(
            ("order", "picture", "caption", "relevance", "gold", "kept"),
            _rows(evaluation, case),
            title=f'"{case.question.text}"',
            numbers=("relevance",),
        )
        say(
            f"threshold {result.thresholds[threshold]:.2f}; answer {case.answers[threshold][0]} "
            f"(without reranking: {case.answers[RETRIEVED][0]}; "
            f"right: {' or '.join(case.question.answers)})"
        )
    say(
        f"{result.num_questions} questions, {result.seconds:.0f} seconds. "
        "Look at more: ragvl demo --html demo.html"
    )


def _rows(evaluation: Evaluation, case: Case) -> list[tuple[str, ...]]:
    return [
        (
            f"{order} {rank}",
            candidate.id,
            evaluation.source.document(candidate.id).caption or "",
            f"{candidate.relevance:.3f}",
            "yes" if candidate.id in case.question.gold else "",
            "yes" if order == "reranked" and candidate.id in case.kept else "",
        )
        for order, candidates in (("retrieved", case.retrieved), ("reranked", case.reranked))
        for rank, candidate in enumerate(candidates[:_NUM_CANDIDATES], start=1)
    ]
