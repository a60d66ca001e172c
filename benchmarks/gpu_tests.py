"""The tests that a GPU is for, with a deadline: of operations, architectures and real sizes.

    python benchmarks/gpu_tests.py --part ops             # every backend of every operation
    python benchmarks/gpu_tests.py --part sizes           # the reranker at two published sizes
    python benchmarks/gpu_tests.py                        # all of them

Each part writes a JSON of what passed and failed, whose figures docs/performance.md quotes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import ROOT
from gpu import goal, run_parts
from rich.console import Console

from ragvl.runtime import resolve_device

PARTS = {
    "ops": ("tests/ops",),
    "architectures": ("tests/mllm", "tests/reranker", "tests/prefix_cache", "tests/training"),
    "sizes": ("tests/reranker/test_real_sizes.py",),
}
# Python finds the installed ragvl, not the repository's, which has no extension beside it
_SAFE_PATH = {**os.environ, "PYTHONSAFEPATH": "1"}
_COUNTED = ("tests", "failures", "errors", "skipped")
_NO_TESTS = {**dict.fromkeys(_COUNTED, 0), "failed": [], "seconds": 0.0}


def run_tests(paths: Sequence[str], seconds: float, only: str = "") -> dict[str, Any]:
    """Runs the tests that need a GPU, or run on one where it is.

    Returns:
        `tests`, `failures`, `errors` and `skipped`, counted; the names of the `failed` ones;
        `seconds`; a `problem`, in words, where they were not all run.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *paths, "-q", "--tb=short"]
        if importlib.util.find_spec("xdist") is not None:  # kernels are compiled by many at once
            command += ["-n", str(min(12, os.cpu_count() or 1)), "--dist", "worksteal"]
        # Where there is no GPU, the tests that need one are skipped, and the others are CI's
        chosen = ["-m", "gpu"]
        if torch.cuda.is_available():
            chosen = [
                "-k",
                f"(cuda or triton or gpu) and {only}" if only else "cuda or triton or gpu",
            ]
        command += [*chosen, f"--junitxml={report}", "-p", "no:cacheprovider"]
        log = Path(folder) / "log"
        with log.open("w+", encoding="utf-8") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=_SAFE_PATH, stdout=output, stderr=subprocess.STDOUT
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


def goals(part: str, tests: dict[str, Any]) -> list[dict[str, Any]]:
    """That every test was run and none failed."""
    bad = tests["failures"] + tests["errors"] + ("problem" in tests)
    return [goal(f"tests of {part}", "failed, or not run", bad, at_most=0)]


def run(part: str, seconds: float) -> dict[str, Any]:
    """One part's result; a part may be narrowed down to tests of one name, as in sizes:tiny."""
    name, _, only = part.partition(":")
    tests = run_tests(PARTS[name], seconds, only)
    return {"tests": tests, "goals": goals(part, tests)}


def main(
    part: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}; all by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    seconds: Annotated[float, typer.Option(help="For each part.")] = 560,
) -> None:
    """Test; write benchmarks/results/gpu_tests_<part>.json, or on a CPU the same in build."""
    run_parts(
        "gpu_tests",
        part or list(PARTS),
        PARTS,
        lambda name: run(name, seconds),
        _describe,
        resolve_device(device),
    )


def _describe(_: str, result: dict[str, Any], console: Console) -> None:
    console.print_json(json.dumps(result["tests"]))


if __name__ == "__main__":
    typer.run(main)
