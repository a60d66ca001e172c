"""What every benchmark shares: what to measure, and a JSON that says what was, and where."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from ragvl.doctor import machine, versions
from ragvl.ops import BackendUnavailableError
from ragvl.ops.backends import OPERATIONS, choose

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BUILD = ROOT / "build"  # for what no document quotes


def backends_to_measure(operation: str, device: torch.device, dtype: torch.dtype) -> list[str]:
    """The backends of `operation` here, less Triton's interpreter, which is for tests."""
    available = []
    for backend in OPERATIONS[operation]:
        if backend == "triton" and device.type == "cpu":
            continue
        try:
            choose(operation, backend, device, dtype)
        except BackendUnavailableError:
            continue
        available.append(backend)
    return available


def save(
    name: str, result: dict[str, Any], device: torch.device, folder: Path | None = None
) -> Path:
    """Writes `result`, with machine, versions and commit, to <name>.json in benchmarks/results."""
    facts = machine()
    where = facts["gpu"] if device.type == "cuda" else f"{facts['cpu']}, {facts['cores']} cores"
    record = {
        **result,
        "machine": {"device": where, **facts},
        "versions": versions(),
        "commit": _commit(),
    }
    path = (folder or RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def _commit() -> str:
    """The commit measured, "+changes" where the working tree differs; "unknown" outside git.

    Results do not count as changes. Where a tree was copied without its repository, the variable
    RAGVL_COMMIT says what it is.
    """
    if named := os.environ.get("RAGVL_COMMIT"):
        return named
    ours = ("status", "--porcelain", "--", ".", ":!benchmarks/results")

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git(*ours) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
