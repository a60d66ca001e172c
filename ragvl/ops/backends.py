"""Which backend an operation runs with, and why: two tables, one question for each backend.

`backend="auto"` takes the first backend of `_PREFERENCE` that the operation has and that is
present; the environment variable `RAGVL_BACKEND` replaces "auto" from outside. A backend that is
named is used or refused, never replaced by another.
"""

from __future__ import annotations

import functools
import importlib
import os
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Literal, get_args

import torch

Backend = Literal["auto", "reference", "cpu", "triton", "cuda"]
"""What an operation runs with; "auto" is the fastest that is present."""

# The backends of each operation: a new operation adds its row.
OPERATIONS: dict[str, tuple[str, ...]] = {
    "relevance_head": ("reference", "cpu", "triton", "cuda"),
    "prefix_attention": ("reference", "cpu", "triton"),
    "prefix_write": ("reference", "cpu", "triton"),
    "diffusion_noise": ("reference", "cpu", "triton", "cuda"),
    "residual_rms_norm": ("reference", "cpu", "triton"),
    "rotary_embedding": ("reference", "cpu", "triton"),
    "visual_weighted_cross_entropy": ("reference", "cpu", "triton"),
    "int8_linear": ("reference", "cpu"),
    "bfloat16_linear": ("reference", "cpu"),
}

# Their "cpu" backend is PyTorch's own products, a part at a time: there is nothing to compile.
CPU_IN_PYTORCH = frozenset({"visual_weighted_cross_entropy"})

# By the kind of device that holds the tensors, fastest first.
_PREFERENCE: dict[str, tuple[str, ...]] = {
    "cpu": ("cpu", "reference"),
    "cuda": ("cuda", "triton", "reference"),
}

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class BackendUnavailableError(RuntimeError):
    """A backend that was named cannot run here; the message says what to do."""


def choose(
    operation: str,
    requested: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> tuple[str, str]:
    """The backend that `operation` runs with on tensors of `device` and `dtype`, and why.

    Args:
        operation: a key of `OPERATIONS`.
        requested: a backend's name, or "auto" for what `RAGVL_BACKEND` names, else the fastest.
        device: where the tensors are.
        dtype: the tensors' dtype; only the reference computes in float64.

    Raises:
        ValueError: no backend has that name.
        BackendUnavailableError: the backend named cannot run here.
    """
    source = "backend"
    if requested == "auto":
        source, requested = "RAGVL_BACKEND", os.environ.get("RAGVL_BACKEND") or "auto"
    if requested not in get_args(Backend):
        raise ValueError(f"{source}={requested!r}: expected one of {', '.join(get_args(Backend))}")
    if requested != "auto":
        problem = _problem(operation, requested, device, dtype)
        if problem:
            raise BackendUnavailableError(
                f"{operation}: {source}={requested!r} cannot run on {device}: {problem}"
            )
        return requested, f"asked for by {source}"

    passed_over: list[str] = []
    for name in _PREFERENCE.get(device.type, ()):
        problem = _problem(operation, name, device, dtype)
        if problem is None:
            return name, "; ".join(passed_over) or "the fastest here"
        passed_over.append(f"no {name}: {problem}")
    return "reference", f"the only one for {device.type} tensors"


def compiled() -> ModuleType:
    """The extension module `ragvl._C`; BackendUnavailableError where it is missing."""
    module, problem = _extension()
    if module is None:
        raise BackendUnavailableError(problem)
    return module


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """What kernels for tensors of `device` are launched in: they run on torch's current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _problem(operation: str, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why backend `name` cannot run `operation` on such tensors, or None where it can."""
    if name not in OPERATIONS[operation]:
        return f"{operation} has only {', '.join(OPERATIONS[operation])}"
    if name == "reference":
        return None
    if dtype not in KERNEL_DTYPES:
        return f"it takes float32, bfloat16 and float16, not {dtype}; use backend='reference'"
    if name == "cpu":
        return _cpu_problem(operation, device)
    if name == "triton":
        return _triton_problem(device)
    return _cuda_problem(device)


def _cpu_problem(operation: str, device: torch.device) -> str | None:
    if device.type != "cpu":
        return "it takes CPU tensors"
    return None if operation in CPU_IN_PYTORCH else _extension()[1]


def _triton_problem(device: torch.device) -> str | None:
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "it takes CUDA tensors (CPU tensors only where TRITON_INTERPRET=1, for tests)"
    return _triton_import_problem()


def _cuda_problem(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "it takes CUDA tensors"
    module, problem = _extension()
    if module is None:
        return problem
    if not module.cuda_architectures:
        return "ragvl was built without CUDA; rebuild it where nvcc is on PATH"
    index = torch.cuda.current_device() if device.index is None else device.index
    return _cuda_device_problem(index)


@functools.cache
def _extension() -> tuple[ModuleType | None, str | None]:
    """`ragvl._C`, or None and why it is missing."""
    try:
        return importlib.import_module("ragvl._C"), None
    except ImportError as error:
        return None, f"ragvl._C did not import ({error}); reinstall with `pip install .`"


@functools.cache
def _triton_import_problem() -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton did not import ({error}); install `ragvl[triton]`"
    return None


@functools.cache
def _cuda_device_problem(index: int) -> str | None:
    """Why our CUDA kernels cannot run on device `index` (old driver, other architecture)."""
    with torch.cuda.device(index):
        problem = compiled().cuda_problem()
    if problem is None:
        return None
    return (
        f"{problem} (ragvl was compiled for architectures {compiled().cuda_architectures}); update "
        "the driver, or rebuild ragvl with -Ccmake.define.CMAKE_CUDA_ARCHITECTURES=native"
    )
