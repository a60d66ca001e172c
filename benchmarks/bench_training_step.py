"""What each kind of noise costs a generator's training step on the CPU, in time and memory.

What `ragvl overhead` measures, on models with random weights, as a JSON and a table. gpu_train.py
measures steps on a GPU.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from common import save
from models import build_model
from operation import CPU
from rich.console import Console
from rich.table import Table
from shapes import SHAPES
from tables import Result, Results, mib, table

from ragvl.data.synthetic import Places, write_world
from ragvl.data.webqa import WebQA
from ragvl.mllm import MLLM
from ragvl.profiling.costs import training_overhead
from ragvl.training.adapters import LoraSettings

MODELS = ["mid", "mid-internvl"]
# Rank of the adapters, where 0 trains the decoder's weights; gradient checkpointing
SETUPS = ((0, False), (16, False), (16, True))
BATCH_SIZE = 2


def cost_table(results: Results) -> str:
    """Time and memory of a training step by kind of noise, a row for each model and setup."""
    result = results["training_step_cpu"]
    names = dict.fromkeys(name for case in result["cases"] for name in case["arms"])

    def cell(figures: Result) -> str:
        peak = "" if figures["peak_mib"] is None else f", {mib(figures['peak_mib'])}"
        return f"{1 / figures['speedup']['median']:.2f}x{peak}"

    rows = []
    for case in result["cases"]:
        trained = f"adapters of rank {case['rank']}" if case["rank"] else "the decoder"
        trained += ", checkpointing" * case["gradient_checkpointing"]
        rows.append(["CPU", case["model"], trained, *(cell(case["arms"][name]) for name in names)])
    return table(
        ["", "model", "trained", *names],
        rows,
        f"CPU: {result['machine']['device']}, {result['dtype']}, random weights, batches of "
        f"{result['batch_size']}, medians of {result['rounds']} rounds in one run. Time is against "
        f"plain fine-tuning; memory is the peak above model, gradients and optimizer.",
    )


def main(
    models: Annotated[list[str] | None, typer.Option("--model", help="Of shapes.py.")] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Timed steps of each arm.")] = 5,
) -> None:
    """Measure, print a table, and write benchmarks/results/training_step_cpu.json."""
    cases = []
    table = Table(
        "model", "adapters", "checkpointing", "noise", "ms", "times", "tokens", "peak MiB"
    )
    with tempfile.TemporaryDirectory() as folder:
        world = WebQA(
            write_world(Path(folder), Places(), counts={"train": 20}, seed=0), split="train"
        )
        for name in models or MODELS:
            for rank, checkpointing in SETUPS:
                mllm = MLLM(*build_model(SHAPES[name]))
                arms = training_overhead(
                    mllm,
                    world,
                    batch_size=BATCH_SIZE,
                    lora=LoraSettings(rank=rank),
                    gradient_checkpointing=checkpointing,
                    rounds=rounds,
                )
                cases.append(
                    {
                        "model": name,
                        "rank": rank,
                        "gradient_checkpointing": checkpointing,
                        "arms": arms,
                    }
                )
                for arm, figures in arms.items():
                    table.add_row(
                        *(
                            name,
                            str(rank),
                            str(checkpointing),
                            arm,
                            f"{figures['ms']['median']:.0f}",
                        ),
                        *(f"{1 / figures['speedup']['median']:.2f}x", str(figures["tokens"])),
                        "?" if figures["peak_mib"] is None else f"{figures['peak_mib']:.0f}",
                    )
    result = {
        "batch_size": BATCH_SIZE,
        "rounds": rounds,
        "dtype": "float32",
        "cases": cases,
    }
    path = save("training_step_cpu", result, CPU)
    console = Console()
    console.print(table)
    console.print(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
