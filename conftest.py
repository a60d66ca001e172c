"""What must be settled before any test imports anything."""

from __future__ import annotations

import os
from collections import Counter

# Several processes share the cores (`pytest -n`): what torch reads when it is imported
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import pytest
import torch
from hypothesis import HealthCheck, settings

# How long an example takes says more about the machine than about the code
settings.register_profile("ragvl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ragvl")

# Comparisons with float64 and with a CPU are about float32, which torch's convolutions round off
torch.backends.cudnn.allow_tf32 = False

if not torch.cuda.is_available():
    # Triton decides when it is imported whether to compile kernels or to interpret them on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with many slow tests first, and skips tests marked `gpu` where there is none."""
    # A process runs a file: one of the long ones, begun last, would keep all others waiting
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
