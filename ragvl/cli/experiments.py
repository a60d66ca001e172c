"""`ragvl ablate` and `ragvl overhead`: what a setting is worth, and what it costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ragvl.cli import options
from ragvl.cli.common import (
    check_settings,
    check_writable,
    command_work,
    file_of_json,
    hide_loading_bars,
    import_models,
    json_is_out,
)
from ragvl.files import check_writable_folder, write_text
from ragvl.output import json_text, print_json, print_table, say


def ablate(
    config: Annotated[Path, typer.Argument(help="The YAML file; see docs/evaluation.md.")],
    out: Annotated[
        Path, typer.Option(help="A folder for ablation.json, .md and .svg, and each run's result.")
    ],
    as_json: options.AsJson = False,
) -> None:
    """Train and evaluate a grid of settings and seeds: one table, one plot.

    Stopped in the middle, it goes on where it was when it is run again.
    """
    with command_work("ablate"):
        import_models()
        from ragvl.ablation.ablate import ablate as run
        from ragvl.ablation.grid import AblationSettings
        from ragvl.ablation.plots import ablation_plot
        from ragvl.ablation.table import markdown, tables
        from ragvl.evaluation.result import to_json

        check_writable_folder(out)
        hide_loading_bars()
        result = run(AblationSettings.read(config), out / "runs", report=say)
        write_text(out / "ablation.json", json_text(to_json(result)))
        found = tables(result)
        write_text(out / "ablation.md", "\n".join(map(markdown, found)))
        write_text(out / "ablation.svg", ablation_plot(result))
    if as_json:
        print_json(to_json(result))
    else:
        for head, *rows in found:
            print_table(head, rows)
    if failed := result.failed:
        say(f"ragvl ablate: {len(failed)} runs failed; run it again to try them again", err=True)
        sys.exit(1)


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
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json_file: options.JsonFile = None,
) -> None:
    """What reranking adds to a query, and noise to a training step: time and peak memory."""
    with command_work("overhead"):
        check_writable(file_of_json(json_file))
        import_models()
        from ragvl.evaluation.result import to_json
        from ragvl.profiling.overhead import measure_overhead, print_overhead

        check_settings(model, device=device, dtype=dtype)
        hide_loading_bars()
        result = measure_overhead(
            model,
            source,
            split,
            only=only,
            num_candidates=candidates,
            batch_size=batch_size,
            lora_rank=lora_rank,
            gradient_checkpointing=gradient_checkpointing,
            rounds=rounds,
            device=device,
            dtype=dtype,
        )
    if not json_is_out(json_file, to_json(result)):
        print_overhead(result)
