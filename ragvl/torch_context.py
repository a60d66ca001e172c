"""Torch's settings of the calling thread: a caller's do not reach our computations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_CPU = torch.device("cpu")


def default_torch_context(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, run without the autocast, inference mode or default device of its caller.

    A result's bits must not depend on where a call stands, and what outlives the call, such as
    weights and kept prefixes, must be ordinary tensors. Training runs in its own forward pass and
    keeps the autocast that it was given.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            if torch.get_default_device() != _CPU:
                stack.enter_context(_CPU)
            return function(*args, **kwargs)

    return call
