"""The benchmark's methods give the same result, so that their times can be compared."""

from __future__ import annotations

import pytest
import torch
from bench_prefix_attention import BASELINE, methods


@pytest.mark.parametrize("model", ["tiny", "tiny-internvl"])  # without and with grouped queries
def test_every_method_gives_the_same_rows(model: str) -> None:
    calls = methods(model, 40, torch.float32, torch.device("cpu"))
    assert {BASELINE, "reference", "cpu"} < calls.keys()
    expected = calls["reference"]()
    errors = {"int8": 0.02, "int4": 0.2}  # what numbers are rounded to in pages
    for name, method in calls.items():
        error = errors.get(name.rpartition(", ")[2], 1e-5)
        torch.testing.assert_close(method(), expected, rtol=0, atol=error)
