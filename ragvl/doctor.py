"""What ragvl has on this machine: versions, devices, and each operation's backend."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from ragvl.ops.backends import OPERATIONS, BackendUnavailableError, choose, compiled
from ragvl.ops.int8_linear import slow_products_problem
from ragvl.output import print_table
from ragvl.runtime import is_slow_on_cpu, multiplies_bfloat16

# A purpose and the distributions that serve it, any one of which is enough.
_PACKAGES = {
    "ragvl": ("ragvl",),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "triton": ("triton",),
    "faiss": ("faiss-cpu", "faiss-gpu"),
    "flash-attn": ("flash-attn",),
}


def versions() -> dict[str, str]:
    """The version of Python and of each package that matters, or "not installed"."""
    installed = {"python": platform.python_version()}
    for purpose, names in _PACKAGES.items():
        installed[purpose] = "not installed"
        for name in names:
            try:
                version = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            installed[purpose] = version if name == purpose else f"{version} ({name})"
    return installed


def machine() -> dict[str, str]:
    """The processor and the GPUs, and what the compiled kernels use of them."""
    facts = {
        "cpu": _cpu_name(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
    }
    try:
        kernels = compiled()
    except BackendUnavailableError as error:
        facts["cpu kernels"] = facts["cuda kernels"] = str(error)
    else:
        try:
            facts["cpu kernels"] = kernels.cpu_isa()
        except ValueError as error:  # RAGVL_CPU_ISA names what this CPU lacks
            facts["cpu kernels"] = str(error)
        architectures = kernels.cuda_architectures
        facts["cuda kernels"] = f"for {architectures}" if architectures else "not compiled"
    facts["bfloat16 on the cpu"] = _cpu_bfloat16()
    facts["int8 on the cpu"] = _cpu_int8()
    facts["cuda in torch"] = torch.version.cuda or "none (a CPU build of torch)"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts["gpu"] = ", ".join(gpus) or "none"
    return facts


def examine() -> dict[str, Any]:
    """Versions, the machine, and for each operation and device its backend and why."""
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    backends = [_backend(operation, device) for operation in OPERATIONS for device in devices]
    here = machine() | {"load": _load()}
    return {"versions": versions(), "machine": here, "backends": backends}


def print_findings(findings: dict[str, Any]) -> None:
    """Prints what `examine` returned as two tables."""
    facts = findings["versions"] | findings["machine"]
    print_table(("what", "here"), facts.items(), title="ragvl")
    rows = [tuple(row.values()) for row in findings["backends"]]
    print_table(("operation", "device", "backend", "why"), rows, title="backends")


def _backend(operation: str, device: str) -> dict[str, str]:
    try:
        backend, why = choose(operation, "auto", torch.device(device))
    except (BackendUnavailableError, ValueError) as error:  # what RAGVL_BACKEND names
        backend, why = "refused", str(error)
    return {"operation": operation, "device": device, "backend": backend, "why": why}


def _load() -> str:
    """How many processes wanted a core in the last minute, and what to do about it."""
    if not hasattr(os, "getloadavg"):  # Windows
        return "not known"
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    facts = f"{load:.1f} on {cores} cores"
    if load <= cores or torch.get_num_threads() == 1:
        return facts
    return f"{facts}: the threads wait for each other, and OMP_NUM_THREADS=1 may be faster"


def _cpu_bfloat16() -> str:
    """Whether dtype="bfloat16" is faster here, or only half the memory."""
    if multiplies_bfloat16():
        return 'in hardware: dtype="bfloat16" is faster than float32'
    if not is_slow_on_cpu(torch.bfloat16):
        return "not known"
    return "not in hardware: float32 is faster, many times on some CPUs"


def _cpu_int8() -> str:
    """Whether dtype="int8" can be used here."""
    problem = slow_products_problem()
    return 'in hardware: dtype="int8" is the fastest' if problem is None else problem


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
