"""Shows what the demo measured: tables in the terminal, or a page to look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import jinja2
from rich import box
from rich.console import Console
from rich.table import Table

from ragvl.demo.run import NUM_CANDIDATES, POOLS, RECALL_AT, Candidate, DemoResult, Example

NUM_ON_PAGE = 12
NUM_IN_TERMINAL = 3
_SHOWN_CANDIDATES = 5


def print_result(result: DemoResult, console: Console) -> None:
    """The table of figures, and a few questions with their pictures and answers."""
    figures = result.figures
    # eighty columns wide, so the heads are short
    columns = {f"recall@{k}": f"R@{k}" for k in (*RECALL_AT, NUM_CANDIDATES)}
    columns |= {"precision": "prec.", "f1": "F1"}
    title = "Recall@k, precision, F1 and right answers, %"
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, collapse_padding=True
    )
    for name in ("pool", "order"):
        table.add_column(name, no_wrap=True)
    for head in [*columns.values(), "answers"]:
        table.add_column(head, justify="right", no_wrap=True)
    for pool in POOLS:
        measured = figures["pools"][pool]
        accuracy = measured["answer_accuracy"]
        for order, key in (("retriever", "without_reranking"), ("reranked", "with_reranking")):
            row = [_percent(measured[order][column]) for column in columns]
            table.add_row(pool, order, *row, _percent(accuracy[key]))
    console.print(table)
    sizes = ", ".join(f"{pool}: {count}" for pool, count in figures["num_documents"].items())
    console.print(f"pictures in the pool: {sizes}\n", highlight=False)

    latency = Table(box=box.SIMPLE)
    latency.add_column("ms per question, median")
    for stage in figures["latency_ms"]:
        latency.add_column(stage, justify="right")
    latency.add_row("", *(f"{value:.1f}" for value in figures["latency_ms"].values()))
    console.print(latency)
    for example in pick_examples(result.examples, NUM_IN_TERMINAL):
        _print_example(example, result.threshold, console)
    console.print(
        f"{figures['num_questions']} questions, {figures['seconds']:.0f} seconds. "
        "Look at more: ragvl demo --html demo.html",
        highlight=False,
    )


def pick_examples(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` questions of mixed categories, right and wrong ones as they come."""
    by_category: dict[str, list[Example]] = {}
    for example in examples:
        by_category.setdefault(example.question.category, []).append(example)
    picked: list[Example] = []
    turn = 0
    while len(picked) < min(count, len(examples)):
        for group in by_category.values():
            picked += group[turn : turn + 1]
        turn += 1
    return picked[:count]


def write_page(result: DemoResult, path: Path) -> None:
    """One self-contained HTML page: a dozen questions, their candidates in both orders."""
    source = (files("ragvl.demo") / "page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["picture"] = _data_url
    environment.filters["percent"] = _percent
    page = environment.from_string(source).render(
        figures=result.figures,
        threshold=result.threshold,
        recall_columns=[f"recall@{k}" for k in (*RECALL_AT, NUM_CANDIDATES)],
        examples=pick_examples(result.examples, NUM_ON_PAGE),
    )
    path.write_text(page, encoding="utf-8")


def _print_example(example: Example, threshold: float, console: Console) -> None:
    table = Table(title=f'"{example.question.text}"', title_justify="left")
    for name in ("order", "picture", "caption"):
        table.add_column(name)
    table.add_column("relevance", justify="right")
    for name in ("gold", "kept"):
        table.add_column(name, justify="center")
    for order, candidates in (("retriever", example.retrieved), ("reranked", example.reranked)):
        for rank, candidate in enumerate(candidates[:_SHOWN_CANDIDATES], start=1):
            table.add_row(
                f"{order} {rank}",
                str(candidate.document.id),
                candidate.document.caption,
                f"{candidate.score:.3f}",
                "yes" if candidate.is_gold else "",
                "yes" if candidate.kept else "",
            )
        table.add_section()
    console.print(table)
    console.print(
        f"threshold {threshold:.2f}; answer [bold]{example.answer}[/bold] "
        f"(without reranking: {example.answer_without_reranking}; "
        f"right: {' or '.join(example.question.answers)})\n",
        highlight=False,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _data_url(candidate: Candidate) -> str:
    buffer = io.BytesIO()
    candidate.document.load().save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
