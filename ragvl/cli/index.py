"""`ragvl index`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ragvl.cli import options
from ragvl.cli.common import check_settings, command_work, hide_loading_bars, problem_figures
from ragvl.output import print_json, say

if TYPE_CHECKING:
    from ragvl.data.document import Document


def index(
    source: Annotated[
        Path, typer.Argument(help="A folder of pictures, a data set, or JSONL: a document a line.")
    ],
    folder: Annotated[
        Path, typer.Argument(help="Where the index goes, in place of an earlier one.")
    ],
    encoder: options.Encoder,
    kind: Annotated[
        Literal["exact", "hnsw", "ivfpq"],
        typer.Option(help="exact; hnsw for millions of documents; ivfpq for the least memory."),
    ] = "exact",
    split: Annotated[str | None, typer.Option(help="The split of a data set.")] = None,
    modality: options.Modality = None,
    strict: Annotated[bool, typer.Option(help="Stop at a document that cannot be used.")] = False,
    device: options.Device = "auto",
    progress: options.Progress = True,
    as_json: options.AsJson = False,
) -> None:
    """Embed documents into an index, in which `ragvl serve --index` searches.

    It keeps texts and the paths of pictures, whose files must stay where they are.
    What cannot be used is counted and named; exits with 1 if nothing can.
    """
    with command_work("index"):
        check_settings(device=device)
        from ragvl.data.sources import Documents
        from ragvl.retriever import DualEncoder, Retriever, check_encoder

        listed = Documents(source, split=split, modality=modality, strict=strict)
        check_encoder(encoder)
        hide_loading_bars()
        documents = [_kept_in_files(document) for document in listed]
        retriever = Retriever(DualEncoder.from_pretrained(encoder, device=device), kind=kind)
        added = retriever.add(documents, on_error="raise" if strict else "skip", progress=progress)
        if added:
            retriever.save(folder)
    for line in listed.problems.lines():
        say(line, err=True)
    skipped = len(documents) - len(added) + listed.num_unusable
    if as_json:
        problems = problem_figures(listed.problems)
        figures = {"documents": len(added), "skipped": skipped, "problems": problems}
        print_json({**figures, "passed_over": dict(listed.passed_over), "index": str(folder)})
    else:
        say(f"{folder} holds {len(added)} documents; {skipped} skipped")
    if not added:
        sys.exit(1)


def _kept_in_files(document: Document) -> Document:
    """The document.

    Raises:
        ValueError: a picture of it is in no file of its own, where the index could find it again.
    """
    if any(picture.path is None for picture in document.pictures):
        raise ValueError(
            f"{document.name}: an index keeps the places of pictures, and this one has no file of "
            "its own: write the pictures to files, and list them in a JSONL file"
        )
    return document
