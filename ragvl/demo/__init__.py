"""The whole of RagVL in a few minutes on a CPU: `ragvl demo`."""

from __future__ import annotations

from ragvl.demo.report import print_result, write_page
from ragvl.demo.run import DemoResult, run_demo

__all__ = ["DemoResult", "print_result", "run_demo", "write_page"]
