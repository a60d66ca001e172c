"""`ragvl index`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ragvl.cli import options
from ragvl.cli.common import check_settings, command_work, import_models, problem_figures
from ragvl.cli.documents import kept_in_files, say_captions, say_problems
from ragvl.cli.groups import RetrieverOptions, takes
from ragvl.files import check_writable_folder
from ragvl.output import print_json, say


@takes(RetrieverOptions)
def index(
    chosen: RetrieverOptions,
    source: Annotated[
        Path, typer.Argument(help="A folder of pictures, a data set, or JSONL: a document a line.")
    ],
    place: Annotated[
        str | None,
        typer.Argument(
            help="Where the index goes, in place of an earlier one: a folder, a file .db of Milvus "
            "Lite, or a Milvus server's address. A folder named after the source, with .index, if "
            "not given."
        ),
    ] = None,
    kind: Annotated[
        Literal["exact", "hnsw", "ivfpq"],
        typer.Option(help="exact; hnsw for millions of documents; ivfpq for the least memory."),
    ] = "exact",
    split: Annotated[str | None, typer.Option(help="The split of a data set.")] = None,
    modality: options.Modality = None,
    captions: options.Captions = None,
    strict: Annotated[bool, typer.Option(help="Stop at a document that cannot be used.")] = False,
    device: options.Device = "auto",
    progress: options.Progress = True,
    as_json: options.AsJson = False,
) -> None:
    """Embed documents into an index, for `ragvl search`, `ragvl ask` and `ragvl serve --index`.

    By their pictures with --encoder, by captions and texts with --text-encoder, or by both. It
    keeps texts and the paths of pictures, whose files must stay where they are, and remembers the
    encoders. What cannot be used is counted and named; exits with 1 if nothing can.
    """
    with command_work("index"):
        from ragvl.data.caption_file import CaptionFile
        from ragvl.data.sources import Documents

        caption_file = None if captions is None else CaptionFile(captions)
        listed = Documents(
            source, split=split, modality=modality, captions=caption_file, strict=strict
        )
        place = str(_named_after(source)) if place is None else place
        import_models()
        from ragvl.retriever import MilvusAddress

        chosen.check_place(place, kind)
        if MilvusAddress.find(place) is None:
            check_writable_folder(Path(place))
        check_settings(device=device)
        chosen.check()
        documents = [kept_in_files(document) for document in listed]
        if caption_file is not None:
            caption_file.check_found()
        with chosen.new_retriever(place, kind=kind, device=device) as retriever:
            say_problems(listed)
            if caption_file is not None:
                say_captions(caption_file)
            on_error: Literal["raise", "skip"] = "raise" if strict else "skip"
            added = retriever.add(documents, on_error=on_error, progress=progress)
            if added:
                retriever.save(place)
    skipped = len(documents) - len(added) + listed.num_unusable
    if as_json:
        problems = problem_figures(listed.problems)
        figures = {"documents": len(added), "skipped": skipped, "problems": problems}
        print_json({**figures, "passed_over": dict(listed.passed_over), "index": place})
    elif added:
        say(f"{place} holds {len(added)} documents; {skipped} skipped")
    else:
        say(f"none of {skipped} documents can be used: no index was written")
    if not added:
        sys.exit(1)


def _named_after(source: Path) -> Path:
    """The folder, in the current one, of an index of `source`."""
    name = source.resolve().name.removesuffix(".gz").removesuffix(".jsonl")
    return Path(f"{name}.index")
