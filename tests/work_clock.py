"""Clocks that count work: what a test may compare where a stopwatch depends on the machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from torch import Tensor, nn

from ragvl.profiling import timing


@contextmanager
def work_clock() -> Iterator[None]:
    """While it is open, `time_in_turn` counts multiplications of linear layers, not seconds.

    The figures that a benchmark computes from it are the same on any machine, however busy. A
    second is a multiplication; each look at the clock takes one as well, so that none is zero.
    """
    looks, work = itertools.count(), 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal work
        if isinstance(module, nn.Linear) and inputs:
            work += inputs[0].numel() * module.out_features

    hook = nn.modules.module.register_module_forward_pre_hook(count)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(timing, "perf_counter", lambda: float(work + next(looks)))
            yield
    finally:
        hook.remove()


@dataclass
class HandClock:
    """Stands still until a call says how long it took; in the place of `perf_counter`."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def take(self, seconds: float) -> None:
        self.now += seconds
