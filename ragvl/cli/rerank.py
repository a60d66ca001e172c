"""`ragvl rerank` and `ragvl warm`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ragvl.cli import options
from ragvl.cli.common import (
    command_work,
    parse_threshold,
    problem_figures,
)
from ragvl.cli.groups import RerankerOptions, takes
from ragvl.messages import quoted, shown
from ragvl.output import print_json, print_table, say

if TYPE_CHECKING:
    from ragvl.data.document import Document
    from ragvl.data.sources import Documents


@takes(RerankerOptions)
def rerank(
    chosen: RerankerOptions,
    query: Annotated[
        str, typer.Argument(help="The question; '' where --query-image is all there is.")
    ],
    images: Annotated[
        list[str] | None, typer.Argument(help="Pictures: files, or data: URLs.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text to order with them; may be given again.")
    ] = None,
    documents: Annotated[
        Path | None,
        typer.Option(help="Others: a JSONL file, a folder of pictures, or a data set."),
    ] = None,
    query_image: Annotated[
        str | None, typer.Option(help="The question's picture: a file, or a data: URL.")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="What is judged, for a prompt that has a place for it.")
    ] = None,
    template: Annotated[str | None, typer.Option(help="A prompt other than the preset's.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="How many to print; all.")] = None,
    threshold: Annotated[
        str, typer.Option(help="From what relevance a document is kept: a number, or a saved name.")
    ] = "natural",
    cache: Annotated[
        Path | None, typer.Option(help="A folder that `ragvl warm` filled, or to fill.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Order pictures, texts and documents of both by their relevance to a question."""
    with command_work("rerank"):
        from ragvl.data.document import Document
        from ragvl.data.query import Query
        from ragvl.data.sources import Documents
        from ragvl.prefix_cache import PrefixCache
        from ragvl.reranker import checked_request

        limit = parse_threshold(threshold)
        if not (images or text or documents):
            raise ValueError("there is nothing to rank: give pictures, --text or --documents")
        asked = Query(query or None, query_image, instruction=instruction)
        given = [*(images or ()), *(Document(text=one) for one in text or ())]
        listed = () if documents is None else Documents(documents)
        every = checked_request(asked, [*given, *listed], top_k, limit)
        reranker = chosen.load(
            template=template,
            threshold=limit,
            prefix_cache=None if cache is None else PrefixCache("scratch", folder=cache),
        )
        ranked = reranker.rank(asked, every, top_k=top_k)
    if isinstance(listed, Documents):
        _say_problems(listed)
    names = dict(enumerate(images or ()))  # as they were given
    if as_json:
        results = [
            {
                **_content(result.document, names.get(result.index)),
                "index": result.index,
                "relevance": result.score,
                "raw": result.raw,
                "kept": result.kept,
            }
            for result in ranked
        ]
        print_json(
            {
                "query": query,
                **({} if query_image is None else {"query_picture": query_image}),
                "threshold": reranker.threshold,
                "results": results,
            }
        )
        return
    rows = [
        (
            _shown_document(result.document, names.get(result.index)),
            f"{result.score:.4f}",
            "yes" if result.kept else "no",
        )
        for result in ranked
    ]
    print_table(("document", "relevance", "kept"), rows, numbers=("relevance",))


def _content(document: Document, given: str | None) -> dict[str, Any]:
    """What a document is, as JSON has it; `given` is how a picture was named."""
    name = {} if document.id is None else {"id": document.id}
    if document.image is not None:
        return {**name, "picture": document.path if given is None else given}
    if document.text is not None:
        return {**name, "text": document.text}
    parts = [
        {"text": part} if isinstance(part, str) else {"picture": part.path}
        for part in document.parts
    ]
    return {**name, "parts": parts}


def _shown_document(document: Document, given: str | None) -> str:
    """A path in full; of a data: URL, and of a text, the beginning and the end."""
    if given is not None:
        return shown(given) if given[:5].lower() == "data:" else given
    if document.id is not None:
        return document.id
    return "; ".join(
        quoted(part) if isinstance(part, str) else part.path or "a picture"
        for part in document.parts
    )


def _say_problems(documents: Documents) -> None:
    for line in documents.problems.lines():
        say(line, err=True)
    if documents.passed_over:
        kinds = ", ".join(f"{count} {kind}" for kind, count in documents.passed_over.items())
        say(f"files that are no pictures by their names: {kinds}", err=True)


@takes(RerankerOptions)
def warm(
    chosen: RerankerOptions,
    source: Annotated[
        Path, typer.Argument(help="A folder of pictures, a data set, or JSONL: a document a line.")
    ],
    cache: Annotated[Path, typer.Option(help="The cache's folder.")],
    template: Annotated[str | None, typer.Option(help="A prompt other than the preset's.")] = None,
    keep: Annotated[
        Literal["auto", "kv", "features"],
        typer.Option(help="kv, features, or auto: what measures faster to load."),
    ] = "auto",
    compression: Annotated[
        Literal["int8"] | None,
        typer.Option(help="int8 for keys and values; exact without."),
    ] = None,
    disk: Annotated[str | None, typer.Option(help="The folder's budget, such as 100GiB.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a data set.")] = None,
    modality: options.Modality = None,
    caption_tokens: options.CaptionTokens = None,
    strict: Annotated[bool, typer.Option(help="Stop at a document that cannot be used.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Compute documents' prefixes ahead of the queries, into a cache on disk.

    Where no prefix can be reused, as where the query comes first, pictures' visual tokens. Stopped
    in the middle, it goes on where it was when it is run again. A reranker uses the folder with
    prefix_cache=PrefixCache(folder=...). What cannot be used is counted and named; exits with 1
    where that is everything.
    """
    with command_work("warm"):
        from ragvl.data.sources import Documents
        from ragvl.prefix_cache import PrefixCache, format_bytes

        chosen.check()
        documents = Documents(source, split=split, modality=modality, strict=strict)
        prefix_cache = PrefixCache(
            "scratch", folder=cache, disk_bytes=disk, keep=keep, compression=compression
        )
        reranker = chosen.load(
            template=template, prefix_cache=prefix_cache, caption_tokens=caption_tokens
        )
        report = reranker.warm(documents, on_error="raise" if strict else "skip")
    _say_problems(documents)
    skipped = report.skipped + documents.num_unusable
    num_bytes = prefix_cache.statistics()["disk"].bytes
    if as_json:
        figures = {"built": report.built, "known": report.known, "skipped": skipped}
        problems = problem_figures(documents.problems)
        passed_over = dict(documents.passed_over)
        held = {"cache": str(cache), "bytes": num_bytes}
        print_json({**figures, "problems": problems, "passed_over": passed_over, **held})
    else:
        say(
            f"{report.built} built, {report.known} there already, {skipped} skipped; "
            f"{cache} holds {format_bytes(num_bytes)}"
        )
    if not report.built + report.known:
        sys.exit(1)
