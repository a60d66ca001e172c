"""What a command costs before its work: CPU time of processes that import, print help, rerank.

python benchmarks/bench_startup.py   # two minutes on two CPU cores
"""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import ROOT, save
from PIL import Image
from tables import Results, table, times

from ragvl.profiling.timing import spread

TORCH = "import torch"
# What every model of transformers' needs, whatever it is for
FLOOR = "import transformers.modeling_utils"
QUICK_FLOOR = "the same, as ragvl does it: no garbage collection, ended at once"
HELP = "ragvl --help"
RERANK = "ragvl rerank, one picture, the tiny model"

_OF_OTHERS = (
    "accelerate",
    "scipy",
    "triton",
)  # which transformers and torch import if they are there


def processes(picture: Path) -> dict[str, list[str]]:
    """Arguments of Python by what they stand for."""
    model = ROOT / "ragvl" / "assets" / "tiny-reranker"
    asked = ["rerank", "Is the tower red?", str(picture), "--model", str(model), "--device", "cpu"]
    return {
        "python": ["-c", "pass"],
        TORCH: ["-c", TORCH],
        FLOOR: ["-c", FLOOR],
        QUICK_FLOOR: ["-c", f"import gc, os; gc.disable(); {FLOOR}; os._exit(0)"],
        HELP: ["-m", "ragvl.cli", "--help"],
        RERANK: ["-m", "ragvl.cli", *asked],
    }


def cpu_seconds(arguments: Sequence[str]) -> float:
    """User and system time of a Python process with one thread, and of those that it started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def measure(rounds: int, names: Sequence[str] | None = None) -> dict[str, Any]:
    """CPU seconds of each process, in turn, and how often `import torch` fits in, as spreads.

    Args:
        rounds: samples of each.
        names: of `processes`; all by default. `import torch` is always among them.
    """
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "picture.png")
        Image.new("RGB", (96, 96), "red").save(picture)
        every = processes(picture)
        chosen = {name: every[name] for name in every if names is None or name in (TORCH, *names)}
        for arguments in chosen.values():  # so that files are in memory, and bytecode is written
            cpu_seconds(arguments)
        samples: dict[str, list[float]] = {name: [] for name in chosen}
        for _, (name, arguments) in itertools.product(range(rounds), chosen.items()):
            samples[name].append(cpu_seconds(arguments))
    of_torch = samples[TORCH]
    return {
        name: {
            "seconds": spread(each),
            "of_torch": spread([a / b for a, b in zip(each, of_torch, strict=True)]),
        }
        for name, each in samples.items()
    }


def startup_table(results: Results) -> str:
    """What starting costs, by how often `import torch` could be done instead."""
    result = results["startup_cpu"]
    rows = [
        [f"`{name}`" if name.startswith("import") else name, times(one["of_torch"])]
        for name, one in result["processes"].items()
        if name != TORCH
    ]
    there = ", ".join(result["packages"]) or "none"
    return table(
        ["process", "CPU time against `import torch`"],
        rows,
        f"{result['machine']['device']}: median, lowest and highest of {result['rounds']} rounds "
        f"in one run, with one thread; user and system time. Of the packages that torch and "
        f"transformers import where they are installed, {there} were.",
    )


def main(
    rounds: Annotated[int, typer.Option(min=2, help="Samples of each process.")] = 5,
) -> None:
    """Measure and write benchmarks/results/startup_cpu.json."""
    packages = [name for name in _OF_OTHERS if find_spec(name) is not None]
    result = {"rounds": rounds, "packages": packages, "processes": measure(rounds)}
    print(f"wrote {save('startup_cpu', result, torch.device('cpu'))}")


if __name__ == "__main__":
    typer.run(main)
