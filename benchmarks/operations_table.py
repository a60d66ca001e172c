"""The documents' table of operations, from `ragvl.ops`."""

from __future__ import annotations

from importlib import import_module

from tables import Results, table

from ragvl.ops.backends import CPU_IN_PYTORCH, OPERATIONS

_BACKENDS = {"reference": "reference", "cpu": "C++", "triton": "Triton", "cuda": "CUDA"}


def operations(_: Results) -> str:
    """A row for each operation, a column for each backend."""
    rows = [
        [f"[`{name}`]({name}.md)", _what(name), *(_cell(name, backend) for backend in _BACKENDS)]
        for name in OPERATIONS
    ]
    return table(["operation", "what it does", *_BACKENDS.values()], rows)


def _what(operation: str) -> str:
    """As the first line of its module says."""
    doc = import_module(f"ragvl.ops.{operation}").__doc__ or ""
    return doc.partition("\n")[0].partition(": ")[2].rstrip(".")


def _cell(operation: str, backend: str) -> str:
    if backend not in OPERATIONS[operation]:
        return ""
    return "PyTorch" if backend == "cpu" and operation in CPU_IN_PYTORCH else "yes"
