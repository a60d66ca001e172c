"""What a command costs before its work: CPU time of processes that import, print help, rerank.

python benchmarks/bench_startup.py                  # two minutes on two CPU cores
python benchmarks/bench_startup.py --python PYTHON  # of another environment, a plain install's
"""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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


def cpu_seconds(arguments: Sequence[str], python: str = sys.executable) -> float:
    """User and system time of a Python process with one thread, and of those that it started.

    What it compiles it may keep, as an installed package does.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [python, "-P", *arguments], check=True, stdout=subprocess.DEVNULL, env=environment
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def measure(
    rounds: int, names: Sequence[str] | None = None, *, python: str = sys.executable
) -> dict[str, Any]:
    """CPU seconds of each process, in turn, and how often `import torch` fits in, as spreads.

    Args:
        rounds: samples of each.
        names: of `processes`; all by default. `import torch` is always among them.
        python: whose environment is measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "picture.png")
        Image.new("RGB", (96, 96), "red").save(picture)
        every = processes(picture)
        chosen = {name: every[name] for name in every if names is None or name in (TORCH, *names)}
        for arguments in chosen.values():  # so that files are in memory, and bytecode is written
            cpu_seconds(arguments, python)
        samples: dict[str, list[float]] = {name: [] for name in chosen}
        for _, (name, arguments) in itertools.product(range(rounds), chosen.items()):
            samples[name].append(cpu_seconds(arguments, python))
    of_torch = samples[TORCH]
    return {
        name: {
            "seconds": spread(each),
            "of_torch": spread([a / b for a, b in zip(each, of_torch, strict=True)]),
        }
        for name, each in samples.items()
    }


def packages_there(python: str) -> list[str]:
    """Those of `_OF_OTHERS` that are installed in an environment."""
    asked = f"from importlib.util import find_spec as f; print(*filter(f, {_OF_OTHERS}))"
    return subprocess.check_output([python, "-P", "-c", asked], text=True).split()


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
        f"transformers import where they are installed, those that were: {there}.",
    )


def main(
    rounds: Annotated[int, typer.Option(min=2, help="Samples of each process.")] = 5,
    python: Annotated[
        str, typer.Option(help="Of the environment that is measured.", show_default="this one")
    ] = sys.executable,
) -> None:
    """Measure and write benchmarks/results/startup_cpu.json."""
    packages, measured = packages_there(python), measure(rounds, python=python)
    result = {"rounds": rounds, "packages": packages, "processes": measured}
    print(f"wrote {save('startup_cpu', result, torch.device('cpu'))}")


if __name__ == "__main__":
    typer.run(main)
