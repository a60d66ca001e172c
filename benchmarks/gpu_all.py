"""The GPU's benchmarks in one call with a deadline, the most important first.

    make bench-gpu                            # eight minutes; what is missing afterwards: once more
    make bench-gpu MINUTES=5 BUNDLE=out.tar   # a tar of the results, made anew after each part
    make bench-gpu AGAIN=gpu_ops              # also what has been measured before
    python benchmarks/gpu_all.py --device cpu # the same parts at a small size, to see that they run

Each part is a process with a limit of its own. It writes its JSON as soon as it has it, and a part
that fails or hangs does not keep the others from running. A part whose JSON is there is not run
again. Nothing but Python, typer and make is needed to start: the first part builds the extension.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO

import typer

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
BUILD = ROOT / "build"
SUMMARY = "gpu_all"
_LOG_LINES = 30  # of a part that failed, in the summary
# Where CUDA kernels do not compile, Triton's are still of interest
_BUILD = "make gpu-build || { make gpu-build CUDA=OFF; exit 1; }"
_TO_FINISH = 15.0  # seconds between the limit that a part is given and the one that ends it


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: of its JSON, without the ending; of the build, which writes none, "build".
        command: what to run, `{seconds}` being the time that it may plan with.
        seconds: it is ended after so many.
        least: it is not begun with fewer seconds left.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    least: float = 40


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Attributes:
        name: the part's.
        result: "done", "failed", "ended at its limit", "measured before" or "no time left".
        seconds: how long it ran.
        log: its last lines, unless it is done.
    """

    name: str
    result: str
    seconds: float = 0.0
    log: str = ""


def parts(*, on_gpu: bool) -> tuple[Part, ...]:
    """What there is to run, the most important first; on a CPU at a small size."""

    def script(name: str, part: str | None, seconds: float) -> Part:
        stem = name if part is None else f"{name}_{part.replace(':', '_')}"
        options = ["--device", "cuda" if on_gpu else "cpu", "--seconds", "{seconds}"]
        options += [] if part is None else ["--part", part]
        options += ["--brief"] if name == "gpu_rerank" else []
        return Part(stem, (sys.executable, str(BENCHMARKS / f"{name}.py"), *options), seconds)

    if not on_gpu:
        return (
            script("gpu_tests", "ops", 400),
            script("gpu_rerank", "tiny", 200),
            script("gpu_ops", None, 200),
            script("gpu_rerank", "layers", 200),
            script("gpu_rerank", "tiers", 200),
            script("gpu_train", "tiny", 200),
        )
    return (
        Part("build", ("sh", "-c", _BUILD), 150, least=0),
        script("gpu_tests", "ops", 150),
        script("gpu_tests", "sizes:internvl2-1b", 90),
        script("gpu_rerank", "internvl2-1b:256", 120),
        script("gpu_ops", None, 120),
        script("gpu_rerank", "qwen2.5-vl-3b:256", 120),
        script("gpu_rerank", "internvl2-2b:256", 120),
        script("gpu_rerank", "layers", 120),
        script("gpu_rerank", "tiers", 90),
        script("gpu_train", "internvl2-1b", 120),
        script("gpu_tests", "architectures", 120),
    )


def run_in_order(
    chosen: Sequence[Part],
    results: Path,
    *,
    seconds: float,
    again: Sequence[str] = (),
    bundle: Path | None = None,
) -> list[Outcome]:
    """Runs parts until the deadline; whatever happens to one, the next is begun.

    Args:
        chosen: in this order.
        results: the folder that parts write their JSON into.
        seconds: for all of them.
        again: names of parts that are run although their JSON is there.
        bundle: a tar of the results and logs so far, written anew after each part.
    """
    deadline = time.monotonic() + seconds
    logs = BUILD / "gpu-logs"
    logs.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for part in chosen:
        file = results / f"{part.name}.json"
        left = deadline - time.monotonic()
        if file.exists() and part.name not in again:
            outcomes.append(Outcome(part.name, "measured before"))
        elif left < part.least:
            outcomes.append(Outcome(part.name, "no time left"))
        else:
            with (logs / f"{part.name}.log").open("w+", encoding="utf-8") as log:
                outcomes.append(_run(part, min(part.seconds, left), log))
        outcome = outcomes[-1]
        print(f"--- {part.name}: {outcome.result} after {outcome.seconds:.0f} s", flush=True)
        _write_summary(results / f"{SUMMARY}.json", outcomes)
        if bundle is not None:
            files = [results / f"{name}.json" for name in (SUMMARY, *(p.name for p in chosen))]
            _pack(bundle, [*files, *(logs / f"{p.name}.log" for p in chosen)])
    return outcomes


def _run(part: Part, seconds: float, log: TextIO) -> Outcome:
    """Runs one part, its output in `log`; it and what it started is gone afterwards."""
    planned = str(max(5.0, seconds - _TO_FINISH))
    started = time.monotonic()
    process = subprocess.Popen(
        [word.replace("{seconds}", planned) for word in part.command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(BUILD / "gpu"), "PYTHONUNBUFFERED": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        result = "done" if process.wait(timeout=seconds) == 0 else "failed"
    except subprocess.TimeoutExpired:
        result = "ended at its limit"
    finally:
        _end_group(process)
    log.flush()
    log.seek(0)
    lines = log.read().splitlines()
    shown = "" if result == "done" else "\n".join(lines[-_LOG_LINES:])
    print("\n".join(lines[-_LOG_LINES:]), flush=True)
    return Outcome(part.name, result, time.monotonic() - started, shown)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends whatever of the part still runs: a session of its own is a process group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _write_summary(path: Path, outcomes: Sequence[Outcome]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"parts": [vars(outcome) for outcome in outcomes]}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _pack(bundle: Path, files: Sequence[Path]) -> None:
    draft = bundle.with_name(f".{bundle.name}.draft")
    with tarfile.open(draft, "w") as tar:
        for file in files:
            if file.exists():
                tar.add(file, arcname=file.name)
    draft.replace(bundle)


def _has_gpu() -> bool:
    """Known from the driver, since torch may take seconds to say so."""
    program = shutil.which("nvidia-smi")
    return (
        program is not None and subprocess.run([program, "-L"], capture_output=True).returncode == 0
    )


def main(
    minutes: Annotated[float, typer.Option(help="For all parts together.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    again: Annotated[list[str] | None, typer.Option(help="A part to measure once more.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="A tar of the results to carry away.")] = None,
) -> None:
    """Build, test, check, time, train; write benchmarks/results/gpu_*.json, on a CPU in build."""
    on_gpu = _has_gpu() if device == "auto" else device == "cuda"
    chosen = parts(on_gpu=on_gpu)
    names = [part.name for part in chosen]
    if unknown := sorted(set(again or ()) - set(names)):
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; known: {', '.join(names)}")
    results = BENCHMARKS / "results" if on_gpu else BUILD
    outcomes = run_in_order(chosen, results, seconds=60 * minutes, again=again or (), bundle=bundle)
    width = max(map(len, names))
    for outcome in outcomes:
        print(f"{outcome.name:<{width}}  {outcome.result:<18}  {outcome.seconds:4.0f} s")
    if any(outcome.result in ("failed", "ended at its limit") for outcome in outcomes):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
