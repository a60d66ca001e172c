"""Compare the backends of `ragvl.ops` on your machine, side by side:

    pytest examples/compare_kernels.py

Each operation runs with every backend that is present, on a GPU where there is one.
`--benchmark-json` keeps the times; `benchmarks/` measures more, against what operations replace.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from ragvl.ops import diffusion_noise, relevance_head, residual_rms_norm
from ragvl.ops.backends import BackendUnavailableError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ("reference", "cpu", "cuda", "triton") if DEVICE == "cuda" else ("reference", "cpu")


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0))


def head() -> Callable[..., Any]:
    """Relevance of 20 prompts of 16 tokens, of a model 896 wide."""
    last = torch.arange(1, 21, device=DEVICE) * 16 - 1
    return partial(relevance_head, normal(320, 896), last, normal(896), normal(2, 896))


def noise() -> Callable[..., Any]:
    """Noise on the 576 visual tokens of four pictures."""
    return partial(diffusion_noise, normal(4, 576, 896), timestep=500, seed=0)


def norm() -> Callable[..., Any]:
    """The sum with the residual, normed, of 1024 tokens."""
    return partial(residual_rms_norm, normal(1024, 896), normal(1024, 896), normal(896))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operation", [head, noise, norm])
def test_speed(
    benchmark: BenchmarkFixture, operation: Callable[[], Callable[..., Any]], backend: str
) -> None:
    run = partial(operation(), backend=backend)
    try:
        run()
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    benchmark.group = operation.__name__

    def measured() -> None:
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(measured)
