"""`ragvl evaluate` and `ragvl calibrate`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ragvl.cli import options
from ragvl.cli.common import (
    check_models,
    check_settings,
    check_writable,
    command_work,
    parse_threshold,
    template_variables,
)
from ragvl.files import check_writable_folder
from ragvl.messages import shown
from ragvl.output import json_text, print_json, say

if TYPE_CHECKING:
    from ragvl.reranker import Reranker


def evaluate(
    source: options.Source,
    encoder: options.Encoder,
    reranker: options.Reranker,
    out: Annotated[
        Path, typer.Option(help="A folder for report.html, result.json, and what was computed.")
    ],
    generator: Annotated[
        str | None, typer.Option(help="The generator: a hub id or a folder; none to stop before.")
    ] = None,
    split: options.Split = None,
    images: options.Images = None,
    protocol: options.Protocol = None,
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
    template: options.Template = None,
    candidates: options.Candidates = 20,
    top_k: options.TopK = None,
    skip: options.Skip = 0,
    questions: options.Questions = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 32,
    timed: Annotated[int, typer.Option(min=0, help="Questions timed one by one.")] = 20,
    caption_tokens: options.CaptionTokens = None,
    date: options.Date = None,
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    submission: Annotated[
        Path | None,
        typer.Option(help="Also write WebQA's submission file, at the first threshold."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="Another evaluation's result.json: also show how far these differ."),
    ] = None,
    strict: options.Strict = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    progress: options.Progress = True,
    as_json: options.AsJson = False,
) -> None:
    """Retrieve, rerank and answer a data set; write a report with figures, plots and wrong cases.

    Stopped in the middle, it goes on where it was when it is run again.
    """
    with command_work("evaluate"):
        check_writable(submission)
        from ragvl.data.formats import open_questions
        from ragvl.data.webqa import write_submission
        from ragvl.evaluation.comparison import compare as compare_results
        from ragvl.evaluation.evaluate import evaluate as run
        from ragvl.evaluation.models import Models
        from ragvl.evaluation.report import write_report
        from ragvl.evaluation.result import read_evaluation, to_json
        from ragvl.evaluation.settings import EvaluationSettings, distinct_pools
        from ragvl.evaluation.tables import print_figures
        from ragvl.generator import Generator
        from ragvl.reranker import SavedThresholds, resolve_template, resolve_threshold
        from ragvl.retriever import DualEncoder

        other = None if compare is None else read_evaluation(compare)
        check_settings(encoder, reranker, generator, device=device, dtype=dtype, date=date)
        variables = template_variables(chat_template_kwargs)
        check_writable_folder(out)
        if submission is not None and generator is None:
            raise ValueError("--submission holds answers: name what gives them with --generator")
        chosen = [parse_threshold(name) for name in threshold or ()]
        out.mkdir(parents=True, exist_ok=True)
        data_set = open_questions(
            source, split=split, images=images, protocol=protocol, strict=strict
        )
        template = template or data_set.template
        saved = SavedThresholds.of_model(reranker, template)
        names = chosen or ["natural", *(saved.values if saved else ())]
        for name in names:
            resolve_threshold(name, saved)
        resolve_template(template)
        check_models(reranker, generator, encoder=encoder)
        settings = EvaluationSettings(
            pools=distinct_pools(data_set) if pool == "both" else (pool,),
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
                chat_template_kwargs=variables,
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
        compared = None if other is None else compare_results(evaluation.result, other)
        result = replace(evaluation.result, paths=paths, compared=compared)
        evaluation = replace(evaluation, result=result)
        (out / "result.json").write_text(json_text(to_json(result)))
        write_report(evaluation, out / "report.html")
        if submission is not None:
            write_submission(submission, evaluation.submission())
    for line in data_set.problems.lines():
        say(line, err=True)
    if as_json:
        print_json(to_json(result))
        return
    print_figures(result)
    say(f"{out / 'report.html'} has plots and wrong cases")


def calibrate(
    source: options.Source,
    encoder: options.Encoder,
    reranker: options.Reranker,
    split: options.Split = None,
    images: options.Images = None,
    protocol: options.Protocol = None,
    pool: Annotated[Literal["full", "gold"], typer.Option(help="Retrieve from which.")] = "full",
    threshold: Annotated[
        list[str] | None,
        typer.Option(help="Several may be given; adaptive, f1 and precision>=0.9."),
    ] = None,
    template: options.Template = None,
    candidates: options.Candidates = 20,
    top_k: options.TopK = None,
    skip: options.Skip = 0,
    questions: options.Questions = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to save them; in the reranker's folder.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw densities and thresholds (SVG).")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Keeps what was computed.")] = None,
    caption_tokens: options.CaptionTokens = None,
    date: options.Date = None,
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    strict: options.Strict = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    progress: options.Progress = True,
    as_json: options.AsJson = False,
) -> None:
    """Estimate a reranker's thresholds on a dev split, and save them with the model.

    Not on questions that the reranker was trained on: it is surer of those. Exits with 1 where
    nothing could be estimated.
    """
    with command_work("calibrate"):
        check_writable(out, plot)
        from ragvl.checkpoints import model_folder
        from ragvl.data.formats import open_questions
        from ragvl.evaluation.calibrate import calibrate as run
        from ragvl.evaluation.estimation import ESTIMATED, check_names
        from ragvl.evaluation.models import Models
        from ragvl.evaluation.plots import relevance_plot
        from ragvl.evaluation.settings import EvaluationSettings
        from ragvl.reranker import THRESHOLDS_FILE, SavedThresholds, resolve_template
        from ragvl.retriever import DualEncoder

        names = threshold or ESTIMATED
        check_names(names)
        if out is None:
            folder = model_folder(reranker)
            if folder is None:
                raise ValueError(
                    f"{shown(reranker)} is no folder to save thresholds in: say where with --out"
                )
            check_writable_folder(folder)
            out = folder / THRESHOLDS_FILE
        if out.exists():
            SavedThresholds.load(out)  # other templates' stay in it
        if work is not None:
            check_writable_folder(work)
        check_settings(encoder, reranker, device=device, dtype=dtype, date=date)
        variables = template_variables(chat_template_kwargs)
        data_set = open_questions(
            source, split=split, images=images, protocol=protocol, strict=strict
        )
        settings = EvaluationSettings(
            num_candidates=candidates, top_k=top_k, skip=skip, num_questions=questions
        )
        template = template or data_set.template
        resolve_template(template)
        check_models(reranker, encoder=encoder)
        models = Models(
            DualEncoder.from_pretrained(encoder, device=device),
            _load_reranker(
                reranker,
                template,
                device=device,
                dtype=dtype,
                caption_tokens=caption_tokens,
                date=date,
                chat_template_kwargs=variables,
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
            plot.write_text(relevance_plot(recalls.scores(), saved.values), encoding="utf-8")
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


def _load_reranker(path: str, template: str, **load: Any) -> Reranker:
    """With the thresholds that its folder holds; `load` is what else `from_pretrained` takes."""
    from ragvl.reranker import Reranker, SavedThresholds

    thresholds = SavedThresholds.of_model(path, template)
    return Reranker.from_pretrained(path, template=template, thresholds=thresholds, **load)
