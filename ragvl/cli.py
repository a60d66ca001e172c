"""The `ragvl` command."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from ragvl.files import check_writable_folder, expand_user
from ragvl.messages import MAX_ERROR, reason, shown
from ragvl.output import print_json, print_table, say

if TYPE_CHECKING:
    from ragvl.data.problems import Problems
    from ragvl.reranker import Reranker, SavedThresholds

_STDOUT = "-"  # as the name of a file

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
data = typer.Typer(no_args_is_help=True, help="Prepare data.")
train = typer.Typer(no_args_is_help=True, help="Train a reranker or a generator.")
app.add_typer(data, name="data")
app.add_typer(train, name="train")

_Source = Annotated[
    Path,
    typer.Argument(
        help="A data set: a folder of WebQA's or MultimodalQA's files, Karpathy's JSON, lines of "
        "image,caption, or your own questions (.jsonl)."
    ),
]

_Images = Annotated[
    Path | None, typer.Option(help="The pictures' folder, of formats that keep them apart.")
]
_Protocol = Annotated[Literal["1k", "5k"] | None, typer.Option(help="Of Flickr30K and MSCOCO.")]
_Strict = Annotated[bool, typer.Option(help="Stop at the first problem with the data.")]
_CaptionTokens = Annotated[
    int | None, typer.Option(min=1, help="Cut a longer caption to so many tokens; not at all.")
]
_Date = Annotated[
    str | None,
    typer.Option(help="What the chat template takes for today; always 2024-07-26 by default."),
]
_ChatTemplateKwargs = Annotated[
    str | None,
    typer.Option(help="Variables of the reranker's chat template, as JSON: '{\"name\": value}'."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")]
_JsonFile = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="[FILE]",
        help="Print JSON in place of tables; with a file's name, also write it there, and print "
        "tables.",
    ),
]

# Settings are read by jsonargparse, which knows their types and their YAML
_OWN_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.callback()
def ragvl(
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, help="How many pixels a picture may have; 89 million, if not given."),
    ] = None,
) -> None:
    """Fast multimodal reranking with MLLMs (RagVL, arXiv 2407.21439)."""
    if max_pixels is not None:  # of processes that this one starts, too
        os.environ["RAGVL_MAX_PIXELS"] = str(max_pixels)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names in files may be more than it can print
            stream.reconfigure(errors="backslashreplace")


class _JsonMayNameAFile(TyperCommand):
    """A command whose `--json` stands alone or before a file's name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        complete = []
        for place, arg in enumerate(args):
            complete.append(arg)
            follows = args[place + 1] if place + 1 < len(args) else "--"
            if arg == "--json" and follows.startswith("-") and follows != _STDOUT:
                complete.append(_STDOUT)
        return super().parse_args(ctx, complete)


@app.command(cls=_JsonMayNameAFile)
def demo(
    json_file: _JsonFile = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Also write a page of examples to this file.")
    ] = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many questions; all 520.")
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Retrieve, rerank and answer over drawn pictures, with tiny models that come along."""
    _check_writable(json_file, html_file)
    with _work("demo"):
        from ragvl.demo import print_result, run_demo
        from ragvl.evaluation.report import write_report

        result = run_demo(num_questions=questions, progress=progress)
    if not _json_is_out(json_file, result.figures):
        print_result(result)
    if html_file is not None:
        write_report(result, html_file, cases="mixed")


@app.command()
def rerank(
    query: Annotated[str, typer.Argument(help="The question.")],
    images: Annotated[list[Path], typer.Argument(help="The pictures.")],
    model: Annotated[str, typer.Option(help="A hub id or a folder.")],
    top_k: Annotated[int | None, typer.Option(min=1, help="How many to print; all.")] = None,
    threshold: Annotated[
        str, typer.Option(help="From what relevance a picture is kept: a number, or a saved name.")
    ] = "natural",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, ...")] = "auto",
    preset: Annotated[str, typer.Option(help="What the checkpoint is asked.")] = "ragvl",
    cache: Annotated[
        Path | None, typer.Option(help="A folder that `ragvl warm` filled, or to fill.")
    ] = None,
    date: _Date = None,
    chat_template_kwargs: _ChatTemplateKwargs = None,
    as_json: _Json = False,
) -> None:
    """Order pictures by their relevance to a question."""
    with _work("rerank"):
        from ragvl.data.document import Document
        from ragvl.prefix_cache import PrefixCache
        from ragvl.reranker import Reranker

        for image in images:
            Document(image).check_file()
        reranker = Reranker.from_pretrained(
            model,
            preset=preset,
            device=device,
            dtype=dtype,
            threshold=_threshold(threshold),
            prefix_cache=None if cache is None else PrefixCache("scratch", folder=cache),
            date=date,
            chat_template_kwargs=_variables(chat_template_kwargs),
        )
        ranked = reranker.rank(query, images, top_k=top_k)
    if as_json:
        results = [
            {
                "picture": str(images[result.index]),
                "index": result.index,
                "relevance": result.score,
                "kept": result.kept,
            }
            for result in ranked
        ]
        print_json({"query": query, "threshold": reranker.threshold, "results": results})
        return
    rows = [
        (images[result.index], f"{result.score:.4f}", "yes" if result.kept else "no")
        for result in ranked
    ]
    print_table(("picture", "relevance", "kept"), rows, numbers=("relevance",))


@app.command()
def warm(
    source: Annotated[
        Path, typer.Argument(help="A folder of pictures, a data set, or a JSONL file.")
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
    split: Annotated[str | None, typer.Option(help="Of a data set.")] = None,
    caption_tokens: _CaptionTokens = None,
    date: _Date = None,
    chat_template_kwargs: _ChatTemplateKwargs = None,
    strict: Annotated[bool, typer.Option(help="Stop at a picture that cannot be used.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, ...")] = "auto",
    as_json: _Json = False,
) -> None:
    """Compute documents' prefixes ahead of the queries, into a cache on disk.

    Stopped in the middle, it goes on where it was when it is run again. A reranker uses the folder
    with prefix_cache=PrefixCache(folder=...). What cannot be used is counted and named; exits with
    1 where that is everything.
    """
    with _work("warm"):
        from ragvl.data.sources import Documents
        from ragvl.prefix_cache import PrefixCache, format_bytes
        from ragvl.reranker import Reranker

        _check_models(model, device=device, dtype=dtype)
        documents = Documents(source, split=split, strict=strict)
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
            caption_tokens=caption_tokens,
            date=date,
            chat_template_kwargs=_variables(chat_template_kwargs),
        )
        report = reranker.warm(documents, on_error="raise" if strict else "skip")
    for line in documents.problems.lines():
        say(line, err=True)
    if documents.passed_over:
        kinds = ", ".join(f"{count} {kind}" for kind, count in documents.passed_over.items())
        say(f"files that are no pictures by their names: {kinds}", err=True)
    skipped = report.skipped + documents.num_unusable
    num_bytes = prefix_cache.statistics()["disk"].bytes
    if as_json:
        figures = {"built": report.built, "known": report.known, "skipped": skipped}
        problems = _problems(documents.problems)
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


@data.command()
def check(
    source: _Source,
    split: Annotated[str | None, typer.Option(help="Which, of a set that has several.")] = None,
    images: _Images = None,
    protocol: _Protocol = None,
    pictures: Annotated[bool, typer.Option(help="Decode every picture as well.")] = False,
    strict: Annotated[bool, typer.Option(help="Exit with 1 if there is a problem.")] = False,
    as_json: _Json = False,
) -> None:
    """Say what is wrong with a data set's files, line by line.

    Your own .jsonl is read line by line, however long it is.
    """
    with _work("data check"):
        from ragvl.data.checking import check_questions

        report = check_questions(
            source, split=split, images=images, protocol=protocol, pictures=pictures
        )
    if as_json:
        figures = {"questions": report.questions, "documents": report.documents}
        print_json({**figures, "problems": _problems(report.problems)})
    else:
        for line in report.problems.lines():
            say(line)
        say(
            f"{report.questions} usable questions, {report.documents} documents, "
            f"{len(report.problems)} problems"
        )
    if not report.questions or (strict and len(report.problems)):
        sys.exit(1)


@data.command()
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
) -> None:
    """Draw a small world: questions in WebQA's files, or captions in Karpathy's.

    A place, or a company, has three pictures. The numbers are even, since each has a twin.
    """
    from ragvl.data.synthetic import SUBJECTS, Split, write_captions, write_world

    counts: dict[Split, int] = {"train": train, "val": val, "test": test}
    with _work("data draw"):
        if not any(counts.values()):
            raise ValueError("nothing to draw: say how many with --train, --val or --test")
        if captions:
            written = write_captions(folder, SUBJECTS[subject], counts=counts, seed=seed)
        else:
            written = write_world(
                folder, SUBJECTS[subject], counts=counts, questions_each=questions, seed=seed
            )
    say(f"{sum(counts.values())} {subject}, three pictures each, in {written}")


@data.command()
def ranking(
    source: _Source,
    encoder: Annotated[str, typer.Option(help="The retriever's model: a hub id or a folder.")],
    out: Annotated[Path, typer.Option(help="The JSONL file to write.")],
    split: Annotated[str | None, typer.Option(help="Whose questions; train.")] = None,
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
    strict: _Strict = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    as_json: _Json = False,
) -> None:
    """Write a reranker's training samples: gold documents are Yes, near misses No."""
    _check_writable(out, index)
    with _work("data ranking"):
        from ragvl.data.formats import open_questions
        from ragvl.retriever import DualEncoder, VectorIndex
        from ragvl.training.ranking import index_documents, ranking_samples, write_ranking

        _check_models(encoder, device=device)
        questions = open_questions(source, split=split, purpose="train", strict=strict)
        dual_encoder = DualEncoder.from_pretrained(encoder, device=device)
        if index is not None and index.is_dir():
            vectors = VectorIndex.load(index)
        else:
            vectors = index_documents(questions, dual_encoder, pool=pool, progress=True)
            if index is not None:
                vectors.save(index)
        samples = ranking_samples(
            questions,
            dual_encoder,
            vectors,
            negatives_per_positive=ratio,
            depth=depth,
            labelled_share=labelled,
            seed=seed,
            progress=True,
        )
        counts = write_ranking(samples, out)
    for line in questions.problems.lines():
        say(line, err=True)
    if as_json:
        figures = {"questions": len(questions.questions), "documents": len(vectors)}
        problems = _problems(questions.problems)
        print_json({**figures, "samples": dict(counts), "file": str(out), "problems": problems})
        return
    say(
        f"{len(questions.questions)} questions, {len(vectors)} documents: "
        f"{counts['Yes']} Yes and {counts['No']} No samples in {out}"
    )


@train.command("reranker", context_settings=_OWN_FLAGS)
def train_reranker(context: typer.Context) -> None:
    """Yes or No from a question and a picture; --help lists its settings."""
    _train("reranker", context.args)


@train.command("generator", context_settings=_OWN_FLAGS)
def train_generator(context: typer.Context) -> None:
    """Answers from pictures, with noise or without; --help lists its settings."""
    _train("generator", context.args)


@train.command("recipes")
def train_recipes(as_json: _Json = False) -> None:
    """List the recipes that --config takes by name."""
    from ragvl.training.command import recipes

    if as_json:
        print_json(recipes())
    else:
        for name, purpose in recipes().items():
            say(f"{name:36} {purpose}")


def _train(stage: Literal["reranker", "generator"], flags: list[str]) -> None:
    with _one_line_errors(f"train {stage}"):
        from ragvl.training.command import run

        run(stage, flags)


@app.command(cls=_JsonMayNameAFile)
def overhead(
    model: Annotated[str, typer.Argument(help="A hub id or a folder.")],
    source: Annotated[
        Path | None, typer.Option("--data", help="A data set; drawn if not given.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Whose questions; train.")] = None,
    only: Annotated[
        Literal["rerank", "train"] | None, typer.Option(help="One of the two; both.")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Documents a query.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a training step.")] = 4,
    lora_rank: Annotated[int, typer.Option(min=0, help="Of adapters; 0 trains all weights.")] = 16,
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Compute activations again in the backward pass.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=2, help="Timed queries and steps of each kind.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, ...")] = "auto",
    json_file: _JsonFile = None,
) -> None:
    """What reranking adds to a query, and noise to a training step: time and peak memory."""
    _check_writable(json_file)
    with _work("overhead"):
        from ragvl.data.formats import open_questions
        from ragvl.data.synthetic import Places, write_world
        from ragvl.doctor import machine, versions
        from ragvl.evaluation.overhead import reranking_overhead, training_overhead
        from ragvl.mllm import MLLM
        from ragvl.training.adapters import LoraSettings

        _check_models(model, device=device, dtype=dtype)
        figures = {}
        with TemporaryDirectory() as drawn:
            if source is None:
                source, split = write_world(drawn, Places(), counts={"train": 20}, seed=0), "train"
            data_set = open_questions(source, split=split, purpose="train")
            mllm = MLLM.from_pretrained(model, device=device, dtype=dtype)
            if only != "train":
                figures["rerank"] = reranking_overhead(
                    mllm, data_set, num_candidates=candidates, rounds=rounds
                )
            if only != "rerank":  # last, since it changes the weights
                figures["train"] = training_overhead(
                    mllm,
                    data_set,
                    batch_size=batch_size,
                    lora=LoraSettings(rank=lora_rank),
                    gradient_checkpointing=gradient_checkpointing,
                    rounds=rounds,
                )
    measured = {
        "model": model,
        "data": data_set.name,
        "rounds": rounds,
        "num_candidates": candidates,
        "batch_size": batch_size,
    }
    record = {**measured, **figures, "machine": machine(), "versions": versions()}
    if _json_is_out(json_file, record):
        return
    for stage, unit in (("rerank", "ms a query"), ("train", "ms a step")):
        if stage in figures:
            _print_overhead(figures[stage], unit)


def _print_overhead(figures: dict[str, dict[str, Any]], unit: str) -> None:
    first = next(iter(figures))
    what = "reranking" if unit == "ms a query" else "noise"
    columns = (what, unit, f"against {first}", "peak MiB")
    rows = [
        (
            name,
            f"{figure['ms']['median']:.1f}",
            f"{1 / figure['speedup']['median']:.2f}x",
            "?" if figure["peak_mib"] is None else f"{figure['peak_mib']:.0f}",
        )
        for name, figure in figures.items()
    ]
    print_table(columns, rows, numbers=columns[1:])


_Split = Annotated[
    str | None, typer.Option(help="Which; what results are usually told of if not given.")
]
_Encoder = Annotated[str, typer.Option(help="The retriever's model: a hub id or a folder.")]
_Reranker = Annotated[str, typer.Option(help="The reranker: a hub id or a folder.")]
_Template = Annotated[
    str | None, typer.Option(help="The reranker's prompt; by default the data set's.")
]
_Candidates = Annotated[int, typer.Option(min=1, help="How many documents are reranked.")]
_TopK = Annotated[
    int | None,
    typer.Option(min=1, help="How many are kept at most; 1 for MultimodalQA and captions, else 2."),
]
_Questions = Annotated[
    int | None, typer.Option(min=1, help="Only the first so many questions; all.")
]
_Skip = Annotated[int, typer.Option(min=0, help="Leave out so many questions, the first ones.")]


@app.command()
def evaluate(
    source: _Source,
    encoder: _Encoder,
    reranker: _Reranker,
    out: Annotated[
        Path, typer.Option(help="A folder for report.html, result.json, and what was computed.")
    ],
    generator: Annotated[
        str | None, typer.Option(help="The generator: a hub id or a folder; none to stop before.")
    ] = None,
    split: _Split = None,
    images: _Images = None,
    protocol: _Protocol = None,
    pool: Annotated[
        Literal["full", "gold", "both"],
        typer.Option(help="Retrieve from every document, from gold ones only, or report both."),
    ] = "both",
    noise_ratio: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of gold documents swapped before reranking."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of what is swapped.")] = 0,
    threshold: Annotated[
        list[str] | None,
        typer.Option(help="Several may be given; natural and all that the model has saved."),
    ] = None,
    template: _Template = None,
    candidates: _Candidates = 20,
    top_k: _TopK = None,
    skip: _Skip = 0,
    questions: _Questions = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 32,
    timed: Annotated[int, typer.Option(min=0, help="Questions timed one by one.")] = 20,
    caption_tokens: _CaptionTokens = None,
    date: _Date = None,
    chat_template_kwargs: _ChatTemplateKwargs = None,
    submission: Annotated[
        Path | None,
        typer.Option(help="Also write WebQA's submission file, at the first threshold."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="Another evaluation's result.json: also show how far these differ."),
    ] = None,
    strict: _Strict = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, ...")] = "auto",
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
    as_json: _Json = False,
) -> None:
    """Retrieve, rerank and answer a data set; write a report with figures, plots and wrong cases.

    Stopped in the middle, it goes on where it was when it is run again.
    """
    _check_writable(submission)
    with _work("evaluate"):
        from ragvl.data.formats import open_questions
        from ragvl.data.questions import POOLS
        from ragvl.data.webqa import write_submission
        from ragvl.evaluation.evaluate import EvaluationSettings, Models
        from ragvl.evaluation.evaluate import evaluate as run
        from ragvl.evaluation.figures import compare_figures
        from ragvl.evaluation.report import print_figures, write_report
        from ragvl.evaluation.results import read_evaluation
        from ragvl.generator import Generator
        from ragvl.reranker import resolve_threshold
        from ragvl.retriever import DualEncoder

        other = None if compare is None else read_evaluation(compare)
        _check_models(encoder, reranker, generator, device=device, dtype=dtype)
        check_writable_folder(out)
        chosen = [_threshold(name) for name in threshold or ()]
        out.mkdir(parents=True, exist_ok=True)
        data_set = open_questions(
            source, split=split, images=images, protocol=protocol, strict=strict
        )
        template = template or data_set.template
        saved = _saved_thresholds(reranker, template)
        names = chosen or ["natural", *(saved.values if saved else ())]
        for name in names:
            resolve_threshold(name, saved)
        pools = POOLS if pool == "both" else (pool,)
        if pool == "both" and set(data_set.document_ids()) == set(data_set.document_ids("gold")):
            pools = ("full",)  # as of captions: the two are one
        settings = EvaluationSettings(
            pools=pools,
            num_candidates=candidates,
            top_k=top_k,
            thresholds=names,
            noise_ratio=noise_ratio,
            seed=seed,
            skip=skip,
            num_questions=questions,
            num_timed=timed,
            max_new_tokens=max_new_tokens,
        )
        models = Models(
            DualEncoder.from_pretrained(encoder, device=device),
            _load_reranker(
                reranker,
                template,
                device=device,
                dtype=dtype,
                caption_tokens=caption_tokens,
                date=date,
                chat_template_kwargs=_variables(chat_template_kwargs),
            ),
            Generator.from_pretrained(
                generator, device=device, dtype=dtype, caption_tokens=caption_tokens, date=date
            )
            if generator
            else None,
        )
        evaluation = run(data_set, models, settings, work=out / "work", progress=progress)
        paths = {"data": str(source), "encoder": encoder, "reranker": reranker}
        if generator:
            paths["generator"] = generator
        evaluation.figures["paths"] = paths
        if other is not None:
            evaluation.figures["compared"] = compare_figures(evaluation.figures, other)
        (out / "result.json").write_text(json.dumps(evaluation.figures, indent=2) + "\n")
        write_report(evaluation, out / "report.html", paths=paths)
        if submission is not None:
            write_submission(submission, evaluation.submission())
    for line in data_set.problems.lines():
        say(line, err=True)
    if as_json:
        print_json(evaluation.figures)
        return
    print_figures(evaluation.figures)
    say(f"{out / 'report.html'} has plots and wrong cases")


@app.command()
def calibrate(
    source: _Source,
    encoder: _Encoder,
    reranker: _Reranker,
    split: _Split = None,
    images: _Images = None,
    protocol: _Protocol = None,
    pool: Annotated[Literal["full", "gold"], typer.Option(help="Retrieve from which.")] = "full",
    threshold: Annotated[
        list[str] | None,
        typer.Option(help="Several may be given; adaptive, f1 and precision>=0.9."),
    ] = None,
    template: _Template = None,
    candidates: _Candidates = 20,
    top_k: _TopK = None,
    skip: _Skip = 0,
    questions: _Questions = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to save them; in the reranker's folder.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw densities and thresholds (SVG).")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Keeps what was computed.")] = None,
    caption_tokens: _CaptionTokens = None,
    date: _Date = None,
    chat_template_kwargs: _ChatTemplateKwargs = None,
    strict: _Strict = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, ...")] = "auto",
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
    as_json: _Json = False,
) -> None:
    """Estimate a reranker's thresholds on a dev split, and save them with the model.

    Not on questions that the reranker was trained on: it is surer of those. Exits with 1 where
    nothing could be estimated.
    """
    _check_writable(out, plot)
    with _work("calibrate"):
        from ragvl.checkpoints import model_folder
        from ragvl.data.formats import open_questions
        from ragvl.evaluation.calibration import ESTIMATED, check_names
        from ragvl.evaluation.evaluate import EvaluationSettings, Models
        from ragvl.evaluation.evaluate import calibrate as run
        from ragvl.evaluation.plots import relevance_plot
        from ragvl.reranker import THRESHOLDS_FILE
        from ragvl.retriever import DualEncoder

        names = threshold or ESTIMATED
        check_names(names)
        if out is None:
            folder = model_folder(reranker)
            if folder is None:
                raise ValueError(
                    f"{shown(reranker)} is no folder to save thresholds in: say where with --out"
                )
            out = folder / THRESHOLDS_FILE
        _check_models(encoder, reranker, device=device, dtype=dtype)
        data_set = open_questions(
            source, split=split, images=images, protocol=protocol, strict=strict
        )
        settings = EvaluationSettings(
            num_candidates=candidates, top_k=top_k, skip=skip, num_questions=questions
        )
        models = Models(
            DualEncoder.from_pretrained(encoder, device=device),
            _load_reranker(
                reranker,
                template or data_set.template,
                device=device,
                dtype=dtype,
                caption_tokens=caption_tokens,
                date=date,
                chat_template_kwargs=_variables(chat_template_kwargs),
            ),
        )
        saved, recalls = run(
            data_set,
            models,
            names=names,
            pool=pool,
            settings=settings,
            work=work,
            progress=progress,
        )
        saved.save(out)
        if plot is not None:
            correct, erroneous = recalls.by_kind()
            plot.write_text(relevance_plot(correct, erroneous, saved.values), encoding="utf-8")
    if as_json:
        figures = {"values": saved.values, "refused": saved.refused, "data": saved.data}
        print_json({**figures, "questions": len(saved.questions), "file": str(out)})
    else:
        for name, value in saved.values.items():
            say(f"{name}: {value:.4f}")
        for name, reason in saved.refused.items():
            say(f"{name}: none; {reason}")
        say(f"from {len(saved.questions)} questions of {saved.data}; saved in {out}")
    if not saved.values:
        sys.exit(1)


@app.command()
def ablate(
    config: Annotated[Path, typer.Argument(help="The YAML file; see docs/evaluation.md.")],
    out: Annotated[
        Path, typer.Option(help="A folder for ablation.json, .md and .svg, and each run's result.")
    ],
    as_json: _Json = False,
) -> None:
    """Train and evaluate a grid of settings and seeds: one table, one plot.

    Stopped in the middle, it goes on where it was when it is run again.
    """
    with _work("ablate"):
        from ragvl.evaluation.ablation import AblationSettings, markdown, table
        from ragvl.evaluation.ablation import ablate as run
        from ragvl.evaluation.plots import ablation_plot

        check_writable_folder(out)
        result = run(AblationSettings.read(config), out / "runs", report=say)
        (out / "ablation.json").write_text(json.dumps(result, indent=2) + "\n")
        head, *rows = table(result)
        (out / "ablation.md").write_text(markdown([head, *rows]), encoding="utf-8")
        (out / "ablation.svg").write_text(ablation_plot(result), encoding="utf-8")
    if as_json:
        print_json(result)
    else:
        print_table(head, rows)
    if failed := result["failed"]:
        say(f"ragvl ablate: {len(failed)} runs failed; run it again to try them again", err=True)
        sys.exit(1)


def _load_reranker(path: str, template: str, **load: Any) -> Reranker:
    """With the thresholds that its folder holds; `load` is what else `from_pretrained` takes."""
    from ragvl.reranker import Reranker

    thresholds = _saved_thresholds(path, template)
    return Reranker.from_pretrained(path, template=template, thresholds=thresholds, **load)


def _variables(text: str | None) -> dict[str, Any] | None:
    """Variables of a chat template, from JSON.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        values = None if text is None else json.loads(text)
    except ValueError as error:
        raise ValueError(f"--chat-template-kwargs is no JSON: {reason(error)}") from None
    if values is not None and not isinstance(values, dict):
        raise ValueError('--chat-template-kwargs must be a JSON object: {"name": value}')
    return values


def _saved_thresholds(path: str, template: str) -> SavedThresholds | None:
    from ragvl.reranker import THRESHOLDS_FILE, SavedThresholds

    file = Path(expand_user(path)) / THRESHOLDS_FILE
    return SavedThresholds.load(file, template) if file.is_file() else None


def _threshold(text: str) -> str | float:
    """A name, or a number where it is one.

    Raises:
        ValueError: a number that can be no threshold.
    """
    from ragvl.reranker import check_threshold

    try:
        number = float(text)
    except ValueError:
        return text
    check_threshold(number)
    return number


def _problems(problems: Problems) -> dict[str, Any]:
    return {
        kind: {"count": count, "first": problems.messages[kind]}
        for kind, count in problems.counts.items()
    }


def _json_is_out(file: str | None, figures: object) -> bool:
    """Writes JSON where `--json` says; whether that is standard output, in place of tables."""
    if file == _STDOUT:
        print_json(figures)
    elif file is not None:
        Path(file).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return file == _STDOUT


def _check_writable(*paths: str | Path | None) -> None:
    """Better now than after the work."""
    for path in paths:
        if path is None:
            continue
        if not (folder := Path(path).absolute().parent).is_dir():
            raise typer.BadParameter(f"there is no folder {shown(folder)} to write into")
        if not os.access(path if os.path.exists(path) else folder, os.W_OK):
            raise typer.BadParameter(f"{shown(path)} cannot be written")


def _check_models(*paths: str | None, device: str = "auto", dtype: str = "auto") -> None:
    """All models of a command, before the first is loaded."""
    from ragvl.checkpoints import find_checkpoint
    from ragvl.runtime import resolve_device, resolve_dtype

    resolve_dtype(dtype, resolve_device(device))
    for path in paths:
        if path is not None:
            find_checkpoint(path)


@contextmanager
def _work(command: str) -> Iterator[None]:
    """What comes before the result: prints go to standard error, and errors are one line."""
    with redirect_stdout(sys.stderr), _one_line_errors(command):
        yield


@contextmanager
def _one_line_errors(command: str) -> Iterator[None]:
    """Ends the program with what is wrong where a person can act on it."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = "pip install 'ragvl[cpu,train,eval]'"
        say(f"ragvl {command}: {error.name} is not installed: {extra}", err=True)
        sys.exit(1)
    except (ValueError, OSError, ArithmeticError, ImportError) as error:
        say(f"ragvl {command}: {reason(error, MAX_ERROR)}", err=True)
        sys.exit(1)


@app.command()
def doctor(as_json: _Json = False) -> None:
    """Versions, devices, and which backend each operation would use and why."""
    from ragvl.doctor import examine, print_findings

    findings = examine()
    if as_json:
        print_json(findings)
    else:
        print_findings(findings)


if __name__ == "__main__":
    app()
