"""What the GPU benchmarks share: tests, graphs, clocks, goals."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import typer
from common import BUILD, ROOT, save
from rich.console import Console

from ragvl.profiling.timing import spread

# Python finds the installed ragvl, not the repository's, which has no extension beside it
SAFE_PATH = {**os.environ, "PYTHONSAFEPATH": "1"}


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

    def seen(self) -> dict[str, Any]:
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
            except (IndexError, ValueError):  # a value that this GPU does not tell
                return


def goal(
    of: str,
    what: str,
    found: float,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> dict[str, Any]:
    """One promise and whether it is kept, for the JSON."""
    reached = (at_most is None or found <= at_most) and (at_least is None or found >= at_least)
    return {
        "of": of,
        "what": what,
        "found": found,
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
        known: those that there are.
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
    for found in goals:
        mark = "reached" if found["reached"] else "MISSED"
        console.print(f"{mark}: {found['of']}: {found['what']} {found['found']:.3g}")


def run_tests(folders: Sequence[str], seconds: float) -> dict[str, Any]:
    """Runs the tests that need a GPU, or run on one where it is.

    Returns:
        `tests`, `failures`, `errors` and `skipped`, counted; the names of those that `failed`;
        `seconds`; a `problem`, in words, where they were not all run.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *folders, "-q", "--tb=short"]
        if importlib.util.find_spec("xdist") is not None:  # kernels are compiled by many at once
            command += ["-n", str(min(12, os.cpu_count() or 1)), "--dist", "worksteal"]
        # Where there is no GPU, those that need one are skipped, and the others are CI's
        chosen = ["-k", "cuda or triton or gpu"] if torch.cuda.is_available() else ["-m", "gpu"]
        command += [*chosen, f"--junitxml={report}", "-p", "no:cacheprovider"]
        log = Path(folder) / "log"
        with log.open("w+", encoding="utf-8") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=SAFE_PATH, stdout=output, stderr=subprocess.STDOUT
            )
            problem = _wait_or_interrupt(process, seconds)
        if not report.exists():
            text = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            return {**_NO_TESTS, "problem": f"{problem or 'not begun'}: {text}"}
        suite = next(ET.parse(report).iter("testsuite"))
        counts = {kind: int(suite.get(kind, 0)) for kind in _COUNTED}
        names = [
            f"{case.get('classname')}::{case.get('name')}"
            for case in suite.iter("testcase")
            if case.find("failure") is not None or case.find("error") is not None
        ]
    result = {**counts, "failed": names, "seconds": float(suite.get("time", 0))}
    return result if problem is None else {**result, "problem": problem}


_COUNTED = ("tests", "failures", "errors", "skipped")
_NO_TESTS = {**dict.fromkeys(_COUNTED, 0), "failed": [], "seconds": 0.0}


def _wait_or_interrupt(process: subprocess.Popen[bytes], seconds: float) -> str | None:
    """Interrupts pytest when its time is up: it then reports on the tests that it has run."""
    try:
        process.wait(timeout=seconds)
        return None
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return f"stopped after {seconds:.0f} s"
