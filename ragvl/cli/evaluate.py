"""`ragvl evaluate` and `ragvl calibrate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ragvl.cli import options
from ragvl.cli.common import (
    check_ray,
    check_writable,
    command_work,
    import_models,
    parse_threshold,
    spread,
)
from ragvl.cli.groups import EvaluationOptions, takes
from ragvl.files import check_writable_folder, write_text
from ragvl.messages import shown
from ragvl.output import json_text, print_json, say

if TYPE_CHECKING:
    from ragvl.data.questions import Question

_ESTIMATE = "estimate"  # in the place of a fusion's name, or of a weight


@takes(EvaluationOptions)
def evaluate(
    chosen: EvaluationOptions,
    out: Annotated[
        Path, typer.Option(help="A folder for report.html, result.json, and what was computed.")
    ],
    generator: Annotated[
        str | None, typer.Option(help="The generator: a hub id or a folder; none to stop before.")
    ] = None,
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
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 32,
    timed: Annotated[int, typer.Option(min=0, help="Questions timed one by one.")] = 20,
    submission: Annotated[
        Path | None,
        typer.Option(help="Also write WebQA's submission file, at the first threshold."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="Another evaluation's result.json: also show how far these differ."),
    ] = None,
    ray: options.Ray = None,
    as_json: options.AsJson = False,
) -> None:
    """Retrieve, rerank and answer a data set; write a report with figures, plots and wrong cases.

    Stopped in the middle, it goes on where it was when it is run again. With --ray many machines
    compute vectors, relevance and answers; each reads the data and the models at the same paths.
    """
    with command_work("evaluate"):
        check_writable(submission)
        check_ray(ray)
        import_models()
        from ragvl.data.webqa import write_submission
        from ragvl.evaluation.comparison import compare as compare_results
        from ragvl.evaluation.evaluate import evaluate as run
        from ragvl.evaluation.report import write_report
        from ragvl.evaluation.result import read_evaluation, to_json
        from ragvl.evaluation.settings import distinct_pools
        from ragvl.evaluation.tables import print_figures
        from ragvl.evaluation.works import evaluation_works
        from ragvl.reranker import SavedThresholds, resolve_threshold

        other = None if compare is None else read_evaluation(compare)
        chosen.check(generator)
        check_writable_folder(out)
        if submission is not None and generator is None:
            raise ValueError("--submission holds answers: name what gives them with --generator")
        names = [parse_threshold(name) for name in threshold or ()]
        out.mkdir(parents=True, exist_ok=True)
        data_set = chosen.everywhere(ray).open_questions()
        template = chosen.prompt(data_set)
        saved = SavedThresholds.of_model(chosen.reranker, template.name, **chosen.location)
        names = names or ["natural", *(saved.values if saved else ())]
        for name in names:
            resolve_threshold(name, saved)
        pools = distinct_pools(data_set) if pool == "both" else (pool,)
        settings = chosen.settings(
            pools=pools,
            thresholds=names,
            noise_ratio=noise_ratio,
            seed=seed,
            num_timed=timed,
            max_new_tokens=max_new_tokens,
        )
        models = chosen.load_models(template, generator)
        works = evaluation_works(models, max_new_tokens=max_new_tokens)
        with spread(works, ray, models.reranker.mllm.device) as map_blocks:
            evaluation = run(
                data_set,
                models,
                settings,
                work=out / "work",
                map_blocks=map_blocks,
                progress=chosen.progress,
            )
        paths = {
            "data": str(chosen.source),
            **({"encoder": chosen.encoder} if chosen.encoder else {}),
            **({"text encoder": chosen.text_encoder} if chosen.text_encoder else {}),
            "reranker": chosen.reranker,
            **chosen.location,
            **({"generator": generator} if generator else {}),
        }
        compared = None if other is None else compare_results(evaluation.result, other)
        result = replace(evaluation.result, paths=paths, compared=compared)
        write_text(out / "result.json", json_text(to_json(result)))
        write_report(replace(evaluation, result=result), out / "report.html")
        if submission is not None:
            write_submission(submission, evaluation.submission())
    for line in data_set.problems.lines():
        say(line, err=True)
    if as_json:
        print_json(to_json(result))
        return
    print_figures(result)
    if pool == "both" and len(pools) == 1:
        say("every document is gold to some question: the gold pool is the full one")
    say(f"{out / 'report.html'} has plots and wrong cases")


@takes(EvaluationOptions)
def calibrate(
    chosen: EvaluationOptions,
    pool: Annotated[Literal["full", "gold"], typer.Option(help="Retrieve from which.")] = "full",
    threshold: Annotated[
        list[str] | None,
        typer.Option(help="Several may be given; adaptive, f1 and precision>=0.9."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to save them; in the reranker's folder.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw densities and thresholds (SVG).")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Keeps what was computed.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Estimate a reranker's thresholds on a dev split, and save them with the model.

    With --fusion estimate first the share of the pictures' order by which two
    encoders find most, and with --retriever-weight estimate how much the
    retriever's order counts in reranking. Both are saved too, and
    `ragvl evaluate`, `search`, `ask` and `serve` take them. Not on questions that
    the reranker was trained on: it is surer of those. Exits with 1 where nothing
    could be estimated.
    """
    with command_work("calibrate"):
        check_writable(out, plot)
        import_models()
        from ragvl.evaluation.calibrate import calibrate as run
        from ragvl.evaluation.estimation import ESTIMATED, check_names
        from ragvl.evaluation.plots import relevance_plot
        from ragvl.reranker import RETRIEVER_WEIGHT, SavedThresholds, thresholds_file

        names = threshold or ESTIMATED
        check_names(names)
        weigh = chosen.fusion == _ESTIMATE
        if weigh:
            chosen = replace(chosen, fusion=None)
            if None in (chosen.encoder, chosen.text_encoder):
                raise ValueError("--fusion is of --encoder and --text-encoder together")
        weigh_retriever = chosen.retriever_weight == _ESTIMATE
        if weigh_retriever:
            chosen = replace(chosen, retriever_weight="0")
        elif weigh and chosen.retriever_weight is not None:
            raise ValueError(
                "--retriever-weight is of one fusion: have it estimated with --fusion estimate"
            )
        if out is None:
            out = thresholds_file(chosen.reranker, **chosen.location)
            if out is None:
                raise ValueError(
                    f"{shown(chosen.adapters or chosen.reranker)} is no folder to save thresholds "
                    "in: say where with --out"
                )
            check_writable_folder(out.parent)
        if out.exists():
            SavedThresholds.load(out)  # other templates' stay in it
        if work is not None:
            check_writable_folder(work)
        chosen.check()
        data_set = chosen.open_questions()
        template = chosen.prompt(data_set)
        settings = chosen.settings()
        num_learned = _warn_of_learned(settings.select(data_set.questions), chosen)
        saved, recalls = run(
            data_set,
            chosen.load_models(template),
            names=names,
            pool=pool,
            settings=settings,
            weigh=weigh,
            weigh_retriever=weigh_retriever,
            work=work,
            progress=chosen.progress,
        )
        saved.save(out)
        if plot is not None:
            plot.write_text(relevance_plot(recalls.scores(), saved.values), encoding="utf-8")
    if as_json:
        figures = {"values": saved.values, "refused": saved.refused, "data": saved.data}
        fusion = {} if saved.fusion is None else {"fusion": saved.fusion}
        order = {**fusion, "retriever_weight": saved.retriever_weight}
        counts = {
            "questions": len(saved.questions),
            "trained_on": num_learned,
            "documents": saved.num_documents,
        }
        print_json({**figures, **order, **counts, "file": str(out)})
    else:
        if saved.fusion is not None:
            say(f"fusion: {saved.fusion}" + (" of the pictures' order" if weigh else ""))
        if RETRIEVER_WEIGHT not in saved.refused:
            say(f"retriever's weight: {saved.retriever_weight:.4g}")
        for name, value in saved.values.items():
            say(f"{name}: {value:.4f}")
        for name, reason in saved.refused.items():
            say(f"{name}: none; {reason}")
        among = f", searched among {saved.num_documents:,} documents"
        say(f"from {len(saved.questions)} questions of {saved.data}{among}; saved in {out}")
    if not (saved.values or weigh or (weigh_retriever and RETRIEVER_WEIGHT not in saved.refused)):
        sys.exit(1)


def _warn_of_learned(questions: Sequence[Question], chosen: EvaluationOptions) -> int:
    """How many questions the reranker was trained on, so far as its folder says so."""
    from ragvl.data.questions import question_name
    from ragvl.reranker import thresholds_file
    from ragvl.training.run_record import learned_questions

    beside = thresholds_file(chosen.reranker, **chosen.location)
    learned = frozenset() if beside is None else learned_questions(beside.parent)
    count = sum(question_name(one.id, one.text) in learned for one in questions)
    if count:
        say(
            f"the reranker was trained on {count} of these {len(questions)} questions, of which it "
            "is surer than of others: thresholds from them may not suit others; calibrate on "
            "another --split",
            err=True,
        )
    return count
