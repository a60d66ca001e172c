"""`ragvl demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ragvl.cli import options
from ragvl.cli.common import (
    check_writable,
    command_work,
    file_of_json,
    hide_loading_bars,
    import_models,
    json_is_out,
)


def demo(
    json_file: options.JsonFile = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Also write a page of examples to this file.")
    ] = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many questions; all 520.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the three questions printed.")] = 0,
    progress: options.Progress = True,
) -> None:
    """Retrieve, rerank and answer over drawn pictures, with tiny models that come along."""
    with command_work("demo"):
        check_writable(file_of_json(json_file), html_file)
        import_models()
        from ragvl.demo import print_result, run_demo
        from ragvl.evaluation.report import write_report
        from ragvl.evaluation.result import to_json

        hide_loading_bars()
        evaluation = run_demo(num_questions=questions, progress=progress)
    if not json_is_out(json_file, to_json(evaluation.result)):
        print_result(evaluation, seed=seed)
    if html_file is not None:
        write_report(evaluation, html_file, cases="mixed")
