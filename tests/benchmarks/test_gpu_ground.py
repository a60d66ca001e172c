"""What runs on a GPU machine needs only what is on one: no registry can be reached from there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# The project's own dependencies that such a machine lacks
_WITHOUT = """
import sys

class AllBut:
    names = {"faiss", "jsonargparse", "pydantic", "pydantic_core", "simplemma"}

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.names:
            return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(AllBut, sys.meta_path)
sys.path.insert(0, sys.argv[1])
"""
# The scripts, a model, a score and a training step
_PROGRAM = """
import gpu_ops, gpu_rerank, gpu_tests, gpu_train
import torch
from models import build_model
from shapes import SHAPES
from PIL import Image
from ragvl import Document, Reranker
from ragvl.mllm import MLLM
from ragvl.profiling.costs import OVERHEAD_ARMS, step_overhead

mllm = MLLM(*build_model(SHAPES["tiny"]))
document = Document(Image.new("RGB", (64, 64)), caption="A tower.")
assert 0 < Reranker(mllm).score([("How tall?", document)]).item() < 1
arms = {"token": OVERHEAD_ARMS["token"]}
batches = gpu_train._batches(mllm, arms, 1, 96, 0.1)
assert step_overhead(mllm, arms, batches, rounds=2)
"""


@pytest.mark.slow
def test_it_runs_without_what_is_missing_there() -> None:
    command = [sys.executable, "-c", _WITHOUT + _PROGRAM, str(BENCHMARKS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
