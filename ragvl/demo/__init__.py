"""The whole of RagVL in a few minutes on a CPU: `ragvl demo`."""

from __future__ import annotations

from ragvl.demo.report import print_result
from ragvl.demo.run import run_demo

__all__ = ["print_result", "run_demo"]
