"""compute-sanitizer has nothing to say about the CUDA kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.gpu
@pytest.mark.skipif(not shutil.which("compute-sanitizer"), reason="needs compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_no_access_is_out_of_bounds_or_races(tool: str) -> None:
    program = Path(__file__).with_name("sanitized_kernels.py")
    done = subprocess.run(
        ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, program],
        # Torch's blocks of memory hold many tensors: an overrun within one would not be seen
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "SUMMARY: 0" in done.stdout
