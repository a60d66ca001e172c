"""What runs on a GPU machine needs only what is on one: no registry can be reached from there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Of the project's own dependencies, those that such a machine lacks
_WITHOUT = """
import sys

class Missing:
    names = {"faiss", "jsonargparse", "pydantic", "pydantic_core", "simplemma"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.path.insert(0, sys.argv[1])
"""
_RERANK = """
import torch
from gpu_rerank import _check_model
assert _check_model("tiny", torch.device("cpu"), 2)["same_bits_float32"]
"""
_TRAIN = """
import torch
from gpu_train import measure
options = dict(batch_size=2, num_tokens=96, rounds=2, most=2, seconds=1e9)
assert measure("tiny", torch.device("cpu"), **options)["cases"]
"""


@pytest.mark.parametrize(
    "program", ["import gpu_ops", _RERANK, _TRAIN], ids=["ops", "rerank", "train"]
)
def test_it_runs_without_what_is_missing_there(program: str) -> None:
    command = [sys.executable, "-c", _WITHOUT + program, str(BENCHMARKS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
