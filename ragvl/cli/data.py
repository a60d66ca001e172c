"""`ragvl data`: checks, draws and prepares data sets."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ragvl.cli import options
from ragvl.cli.common import (
    check_ray,
    check_settings,
    check_writable,
    command_work,
    import_models,
    problem_figures,
    spread,
)
from ragvl.cli.groups import RetrieverOptions, takes
from ragvl.files import check_writable_folder
from ragvl.messages import shown
from ragvl.output import print_json, say

if TYPE_CHECKING:
    from ragvl.data.checking import CheckReport
    from ragvl.data.questions import QuestionSet
    from ragvl.retriever import Encoder, Order, View


def check(
    source: options.Source,
    split: Annotated[str | None, typer.Option(help="The only one to look at; all.")] = None,
    images: options.Images = None,
    protocol: options.Protocol = None,
    modality: options.Modality = None,
    pictures: Annotated[bool, typer.Option(help="Decode every picture as well.")] = False,
    strict: Annotated[bool, typer.Option(help="Exit with 1 if there is a problem.")] = False,
    progress: options.Progress = True,
    as_json: options.AsJson = False,
) -> None:
    """Say what is wrong with a data set's files, split by split and line by line.

    A list of documents is looked at, too. Exits with 1 where a split has no usable question.
    """
    with command_work("data check"):
        from ragvl.data.checking import check_splits

        reports = check_splits(
            source,
            split=split,
            images=images,
            protocol=protocol,
            modality=modality,
            pictures=pictures,
            progress=progress,
        )
    if as_json:
        print_json({"splits": [_check_figures(*one) for one in reports.items()]})
    else:
        for one in reports.items():
            _say_check(*one)
    is_useless = not all(report.is_of_use for report in reports.values())
    if is_useless or (strict and any(len(report.problems) for report in reports.values())):
        sys.exit(1)


def _check_figures(split: str | None, report: CheckReport) -> dict[str, Any]:
    figures = {"split": split, "questions": report.questions, "documents": report.documents}
    return {**figures, "problems": problem_figures(report.problems)}


def _say_check(split: str | None, report: CheckReport) -> None:
    for line in report.problems.lines():
        say(line)
    of_split = "" if split is None else f"{shown(split)}: "
    questions = "" if report.questions is None else f"{report.questions} usable questions, "
    say(f"{of_split}{questions}{report.documents} documents, {len(report.problems)} problems")


def draw(
    folder: Annotated[Path, typer.Argument(help="Where to write; made if it is missing.")],
    subject: Annotated[
        Literal["places", "charts"], typer.Option(help="What the pictures are of.")
    ] = "places",
    train: Annotated[int, typer.Option(min=0, help="So many places for training.")] = 0,
    val: Annotated[int, typer.Option(min=0, help="Others for validation.")] = 0,
    test: Annotated[int, typer.Option(min=0, help="Others for testing.")] = 0,
    questions: Annotated[int, typer.Option(min=1, help="About each of them.")] = 1,
    captions: Annotated[
        bool, typer.Option("--captions", help="Captions to find pictures by, not questions.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    as_json: options.AsJson = False,
) -> None:
    """Draw a small world: questions in WebQA's files, or captions in Karpathy's.

    A place, or a company, has three pictures. The numbers are even, since each has a twin.
    """
    with command_work("data draw"):
        from ragvl.data.synthetic import SUBJECTS, Split, write_captions, write_world

        counts: dict[Split, int] = {"train": train, "val": val, "test": test}
        if not any(counts.values()):
            raise ValueError("nothing to draw: say how many with --train, --val or --test")
        if captions:
            written = write_captions(folder, SUBJECTS[subject], counts=counts, seed=seed)
        else:
            written = write_world(
                folder, SUBJECTS[subject], counts=counts, questions_each=questions, seed=seed
            )
    if as_json:
        things = {name: count for name, count in counts.items() if count}
        print_json({"subject": subject, "things": things, "written": str(written)})
    else:
        say(f"{sum(counts.values())} {subject}, three pictures each, in {written}")


@takes(RetrieverOptions)
def ranking(
    chosen: RetrieverOptions,
    source: options.Source,
    out: Annotated[Path, typer.Option(help="The JSONL file to write.")],
    split: Annotated[str | None, typer.Option(help="Whose questions; train.")] = None,
    modality: options.Modality = None,
    ratio: Annotated[float, typer.Option(min=0, help="No samples for each Yes.")] = 1.0,
    depth: Annotated[
        int, typer.Option(min=1, help="No samples come from the retriever's first so many.")
    ] = 20,
    labelled: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of No samples that are the data set's distractors."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    pool: Annotated[
        Literal["full", "gold"],
        typer.Option(help="No samples are any documents, or other questions' gold ones."),
    ] = "full",
    index: Annotated[
        Path | None, typer.Option(help="A folder with the documents' vectors, made if not there.")
    ] = None,
    strict: options.Strict = False,
    device: options.Device = "auto",
    ray: options.Ray = None,
    as_json: options.AsJson = False,
) -> None:
    """Write a reranker's training samples: gold documents are Yes, near misses No.

    With --ray many machines compute the vectors; each reads the data at the same path.
    """
    with command_work("data ranking"):
        check_writable(out)
        check_ray(ray)
        import_models()
        from ragvl.data.formats import open_questions
        from ragvl.retriever import encoding_works
        from ragvl.training.ranking import index_documents, ranking_samples, write_ranking

        chosen.check_given()
        check_settings(chosen.encoder, chosen.text_encoder, device=device)
        if index is not None:
            check_writable_folder(index)
        questions = open_questions(
            options.everywhere(source, ray),
            split=split,
            purpose="train",
            modality=modality,
            strict=strict,
        )
        chosen.check()
        encoders = chosen.load(device=device)
        views = _saved_views(index, encoders, questions)
        if views is None:
            computed_on = next(iter(encoders.values())).device
            with spread(encoding_works(encoders), ray, computed_on) as map_blocks:
                views = index_documents(
                    questions, encoders, pool=pool, map_blocks=map_blocks, progress=True
                )
            if index is not None:
                for order, place in _places(index, encoders).items():
                    views[order].index.save(place)
        samples = ranking_samples(
            questions,
            views,
            fusion=chosen.chosen_fusion(),
            negatives_per_positive=ratio,
            depth=depth,
            labelled_share=labelled,
            seed=seed,
            progress=True,
        )
        counts = write_ranking(samples, out)
    for line in questions.problems.lines():
        say(line, err=True)
    num_documents = len({id for view in views.values() for id in view.index.ids})
    if as_json:
        figures = {"questions": len(questions.questions), "documents": num_documents}
        problems = problem_figures(questions.problems)
        print_json({**figures, "samples": dict(counts), "file": str(out), "problems": problems})
        return
    say(
        f"{len(questions.questions)} questions, {num_documents} documents: "
        f"{counts['Yes']} Yes and {counts['No']} No samples in {out}"
    )


def _places(index: Path, encoders: Mapping[Order, Encoder]) -> dict[Order, Path]:
    """Where vectors are kept: of one encoder in the folder itself, of two in a folder for each."""
    return {order: index if len(encoders) == 1 else index / order for order in encoders}


def _saved_views(
    index: Path | None, encoders: Mapping[Order, Encoder], questions: QuestionSet
) -> dict[Order, View] | None:
    """What an earlier call kept; None if there is nothing, or not of every encoder."""
    from ragvl.retriever import MixedIndex, VectorIndex, View

    if index is None:
        return None
    texts = questions.texts()
    try:
        return {
            order: View(encoders[order], MixedIndex(VectorIndex.load(place), texts))
            for order, place in _places(index, encoders).items()
        }
    except FileNotFoundError:
        return None
