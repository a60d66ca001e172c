"""The `ragvl` command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

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
    preset: Annotated[str, typer.Option(help="What the checkpoint is asked.")] = "ragvl",
    cache: Annotated[
        Path | None, typer.Option(help="A folder that `ragvl warm` filled, or to fill.")
    ] = None,
) -> None:
    """Order pictures by their relevance to a question."""
    from ragvl.prefix_cache import PrefixCache
    from ragvl.reranker import Reranker

    try:
        reranker = Reranker.from_pretrained(
            model,
            preset=preset,
            device=device,
            dtype=dtype,
            prefix_cache=None if cache is None else PrefixCache("scratch", folder=cache),
        )
        ranked = reranker.rank(query, images, top_k=top_k, threshold=threshold)
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
def warm(
    source: Annotated[
        Path, typer.Argument(help="A folder of pictures, a WebQA folder, or a JSONL file.")
    ],
    model: Annotated[str, typer.Option(help="A hub id or a folder.")],
    cache: Annotated[Path, typer.Option(help="The cache's folder.")],
    preset: Annotated[str, typer.Option(help="What the checkpoint is asked.")] = "ragvl",
    template: Annotated[str | None, typer.Option(help="A prompt other than the preset's.")] = None,
    keep: Annotated[
        Literal["auto", "kv", "features"],
        typer.Option(help="kv, features, or auto: what measures faster to load."),
    ] = "auto",
    compression: Annotated[
        Literal["int8", "fp8"] | None,
        typer.Option(help="int8 or fp8 for keys and values; exact without."),
    ] = None,
    disk: Annotated[str | None, typer.Option(help="The folder's budget, such as 100GiB.")] = None,
    split: Annotated[str, typer.Option(help="Of a WebQA folder.")] = "val",
    strict: Annotated[bool, typer.Option(help="Stop at a picture that cannot be used.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, ...")] = "auto",
) -> None:
    """Compute documents' prefixes ahead of the queries, into a cache on disk.

    Stopped in the middle, it goes on where it was when it is run again. A reranker uses the folder
    with prefix_cache=PrefixCache(folder=...).
    """
    from ragvl.data.sources import Documents
    from ragvl.prefix_cache import PrefixCache, format_bytes
    from ragvl.reranker import Reranker

    try:
        documents = Documents(source, split=split)
        prefix_cache = PrefixCache(
            "scratch", folder=cache, disk_bytes=disk, keep=keep, compression=compression
        )
        reranker = Reranker.from_pretrained(
            model,
            preset=preset,
            template=template,
            device=device,
            dtype=dtype,
            prefix_cache=prefix_cache,
        )
        report = reranker.warm(documents, on_error="raise" if strict else "skip")
    except (ValueError, OSError, ArithmeticError) as error:
        typer.echo(f"ragvl warm: {error}", err=True)
        sys.exit(1)
    typer.echo(
        f"{report.built} built, {report.known} there already, {report.skipped} skipped; "
        f"{cache} holds {format_bytes(prefix_cache.statistics()['disk'].bytes)}"
    )


@app.command()
def doctor() -> None:
    """Versions, devices, and which backend each operation would use and why."""
    from ragvl.doctor import doctor as examine

    examine()


if __name__ == "__main__":
    app()
