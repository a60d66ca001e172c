"""`ragvl rerank` and `ragvl warm`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ragvl.cli import options
from ragvl.cli.common import (
    check_cache,
    check_ray,
    command_work,
    import_models,
    parse_threshold,
    problem_figures,
    spread,
)
from ragvl.cli.documents import CacheUse, content, say_captions, say_problems, table_name
from ragvl.cli.groups import RerankerOptions, takes
from ragvl.messages import quoted
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
    documents: Annotated[
        list[str] | None,
        typer.Argument(
            help="Pictures (files, data: URLs), folders of them, patterns such as 'a/*.jpg', JSONL "
            "files with a document a line, data sets."
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text to order with them; may be given again.")
    ] = None,
    captions: options.Captions = None,
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
    compression: options.Compressed = None,
    as_json: options.AsJson = False,
) -> None:
    """Order pictures, texts and documents of both by their relevance to a question."""
    with command_work("rerank"):
        from ragvl.data.caption_file import CaptionFile
        from ragvl.data.document import Document
        from ragvl.data.gathering import Gathered, Gathering
        from ragvl.data.query import Query

        # All that can be seen without a model, before the seconds that loading one takes
        check_cache(cache, compression)
        asked = Query(query or None, query_image, instruction=instruction)
        for picture in asked.pictures:
            picture.check_header()
        if not (documents or text):
            raise ValueError("there is nothing to rank: name pictures, folders, or give --text")
        caption_file = None if captions is None else CaptionFile(captions)
        gathering = Gathering(documents or (), caption_file)
        say_problems(*gathering.sources)
        if caption_file is not None:
            caption_file.check_found()
            say_captions(caption_file)
        every = [
            *gathering.documents,
            *(Gathered(Document(text=one), quoted(one)) for one in text or ()),
        ]
        if not every:
            raise ValueError("there is nothing to rank: none of the documents can be used")

        import_models()
        from ragvl.prefix_cache import PrefixCache
        from ragvl.reranker import checked_request

        limit = parse_threshold(threshold)
        listed = checked_request(asked, [one.document for one in every], top_k, limit)
        reranker = chosen.load(
            template=template,
            threshold=limit,
            prefix_cache=None
            if cache is None
            else PrefixCache("scratch", folder=cache, compression=compression),
        )
        use = None
        if cache is not None:
            use = CacheUse(cache, reranker, [(asked, one) for one in listed])
        ranked = reranker.rank(asked, listed, top_k=top_k)
    if use is not None:
        use.say()
    if as_json:
        results = [
            {
                **content(result.document, every[result.index].name),
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
                **({} if use is None else {"cache": use.figures()}),
                "results": results,
            }
        )
        return
    has_captions = any(result.document.caption for result in ranked)
    rows = [
        (
            table_name(every[result.index].name),
            *([result.document.caption or ""] if has_captions else []),
            f"{result.score:.4f}",
            "yes" if result.kept else "no",
        )
        for result in ranked
    ]
    columns = ("document", *(["caption"] if has_captions else []), "relevance", "kept")
    print_table(columns, rows, numbers=("relevance",), paths=("document",))


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
    compression: options.Compressed = None,
    image_tokens: Annotated[
        float | None,
        typer.Option(help="Share of pictures' tokens to keep; what the model was trained with."),
    ] = None,
    disk: Annotated[str | None, typer.Option(help="The folder's budget, such as 100GiB.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a data set.")] = None,
    modality: options.Modality = None,
    captions: options.Captions = None,
    caption_tokens: options.CaptionTokens = None,
    strict: Annotated[bool, typer.Option(help="Stop at a document that cannot be used.")] = False,
    ray: options.Ray = None,
    as_json: options.AsJson = False,
) -> None:
    """Compute documents' prefixes ahead of the queries, into a cache on disk.

    Where no prefix can be reused, as where the query comes first, pictures' visual tokens. Stopped
    in the middle, it goes on where it was when it is run again. A reranker uses the folder with
    prefix_cache=PrefixCache(folder=...). With --ray many machines work, and share the folder. What
    cannot be used is counted and named; exits with 1 where that is everything.
    """
    with command_work("warm"):
        from ragvl.data.caption_file import CaptionFile
        from ragvl.data.sources import Documents

        check_cache(cache, compression)
        check_ray(ray)
        caption_file = None if captions is None else CaptionFile(captions)
        documents = Documents(
            options.everywhere(source, ray),
            split=split,
            modality=modality,
            captions=caption_file,
            strict=strict,
        )
        listed: Documents | list[Document] = documents
        if caption_file is not None:  # of files' paths, which are few bytes
            listed = list(documents)
            caption_file.check_found()

        import_models()
        from ragvl.prefix_cache import PrefixCache, format_bytes

        chosen.check()
        prefix_cache = PrefixCache(
            "scratch",
            folder=cache,
            disk_bytes=disk,
            keep=keep,
            compression=compression,
            image_tokens=image_tokens,
        )
        reranker = chosen.load(
            template=template, prefix_cache=prefix_cache, caption_tokens=caption_tokens
        )
        if caption_file is not None:
            say_captions(caption_file)
        on_error: Literal["raise", "skip"] = "raise" if strict else "skip"
        if ray is None:
            report = reranker.warm(listed, on_error=on_error)
        else:
            from ragvl.distributed.warm import warm_documents, warming_works

            with spread(warming_works(reranker), ray, reranker.mllm.device) as map_blocks:
                report = warm_documents(reranker, listed, map_blocks, on_error=on_error)
            prefix_cache = PrefixCache("scratch", folder=cache)  # which counts what is there now
    say_problems(documents)
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
