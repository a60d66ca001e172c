"""The `ragvl` command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def ragvl() -> None:
    """Fast multimodal reranking with MLLMs (RagVL, arXiv 2407.21439)."""


@app.command()
def demo(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures to this file.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Also write a page of examples to this file.")
    ] = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many questions; all 520.")
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Retrieve, rerank and answer over drawn pictures, with tiny models that come along."""
    from ragvl.demo import print_result, run_demo, write_page

    for path in (json_file, html_file):  # better now than after the work
        if path is not None and not path.absolute().parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.absolute().parent} to write into")
    result = run_demo(num_questions=questions, progress=progress)
    print_result(result, Console())
    if json_file is not None:
        json_file.write_text(json.dumps(result.figures, indent=2) + "\n", encoding="utf-8")
    if html_file is not None:
        write_page(result, html_file)


@app.command()
def rerank(
    query: Annotated[str, typer.Argument(help="The question.")],
    images: Annotated[list[Path], typer.Argument(help="The pictures.")],
    model: Annotated[str, typer.Option(help="A hub id or a folder.")],
    top_k: Annotated[int | None, typer.Option(min=1, help="How many to print; all.")] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Relevance from which a picture is kept.")
    ] = 0.5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, ...")] = "auto",
) -> None:
    """Order pictures by their relevance to a question."""
    from ragvl.fast_rerank import fast_rerank

    try:
        ranked = fast_rerank(
            query,
            images,
            model=model,
            top_k=top_k,
            threshold=threshold,
            device=device,
            dtype=dtype,
        )
    except (ValueError, OSError, ArithmeticError) as error:
        typer.echo(f"ragvl rerank: {error}", err=True)
        sys.exit(1)
    table = Table("picture", "relevance", "kept")
    for result in ranked:
        table.add_row(
            str(images[result.index]), f"{result.score:.4f}", "yes" if result.kept else "no"
        )
    Console().print(table)


@app.command()
def doctor() -> None:
    """Versions, devices, and which backend each operation would use and why."""
    from ragvl.doctor import doctor as examine

    examine()


if __name__ == "__main__":
    app()
