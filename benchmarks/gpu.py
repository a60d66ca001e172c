"""What the GPU benchmarks share: graphs, clocks, goals, parts."""

from __future__ import annotations

import gc
import shutil
import subprocess
import threading
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Any

import torch
import typer
from common import BUILD, save
from rich.console import Console

from ragvl.profiling.timing import spread


def captured(calls: Sequence[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """A CUDA graph that makes all of the calls, one after the other."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:  # libraries and Triton set themselves up
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def free_memory(device: torch.device) -> None:
    """Gives back what models that are gone have held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Clocks:
    """Asks nvidia-smi for the GPU's clocks now and then while a `with` block runs.

    Seldom, since each time it wakes the driver, which a call of milliseconds would feel.
    """

    _QUERY = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")

    def __init__(self, device: torch.device) -> None:
        self._program = shutil.which("nvidia-smi") if device.type == "cuda" else None
        self._samples: list[list[float]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Clocks:
        if self._program is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._program is not None:
            self._thread.join()

    def spreads(self) -> dict[str, Any]:
        """Spreads of MHz, watts and degrees; empty where there were fewer than two samples."""
        if len(self._samples) < 2:
            return {}
        return {
            name: spread(list(values))
            for name, values in zip(self._QUERY, zip(*self._samples, strict=True), strict=True)
        }

    def _watch(self) -> None:
        command = [str(self._program), f"--query-gpu={','.join(self._QUERY)}"]
        command.append("--format=csv,noheader,nounits")
        while not self._done.wait(5):
            run = subprocess.run(command, capture_output=True, text=True)
            try:
                self._samples.append([float(x) for x in run.stdout.splitlines()[0].split(",")])
            except (IndexError, ValueError):  # a value that this GPU does not report
                return


def goal(
    of: str,
    what: str,
    value: float,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> dict[str, Any]:
    """One promise and whether it is kept, for the JSON."""
    reached = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    return {
        "of": of,
        "what": what,
        "value": value,
        "at_most": at_most,
        "at_least": at_least,
        "reached": reached,
    }


def run_parts(
    benchmark: str,
    parts: Sequence[str],
    known: Collection[str],
    run: Callable[[str], dict[str, Any]],
    describe: Callable[[str, dict[str, Any], Console], None],
    device: torch.device,
) -> None:
    """Runs parts one after the other; writes each one's result and prints what it says.

    Args:
        benchmark: its name; results are <benchmark>_<part>.json, on a CPU in build.
        parts: which; one may be narrowed down, as in internvl2-2b:576.
        known: which there are.
        run: gives a part's result, with its `goals`.
        describe: prints a part's result besides those.
        device: where.

    Raises:
        typer.BadParameter: a part is not known.
    """
    if unknown := [part for part in parts if part.partition(":")[0] not in known]:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    console = Console(width=160)
    for part in parts:
        result = run(part)
        folder = None if device.type == "cuda" else BUILD
        path = save(f"{benchmark}_{part.replace(':', '_')}", result, device, folder=folder)
        describe(part, result, console)
        print_goals(result["goals"], console)
        console.print(f"wrote {path}")


def print_goals(goals: Sequence[dict[str, Any]], console: Console) -> None:
    """A line for each."""
    for each in goals:
        mark = "reached" if each["reached"] else "MISSED"
        console.print(f"{mark}: {each['of']}: {each['what']} {each['value']:.3g}")
