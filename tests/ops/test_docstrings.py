"""The examples in the operations' docstrings."""

from __future__ import annotations

import doctest
import pkgutil
import sys

import pytest
import torch

import ragvl.ops

OPERATIONS = [
    module.name
    for module in pkgutil.iter_modules(ragvl.ops.__path__)
    if hasattr(ragvl.ops, f"{module.name}_reference")
]


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operations_example(name: str) -> None:
    module = sys.modules[f"ragvl.ops.{name}"]  # the name in ragvl.ops is the function
    results = doctest.testmod(module, extraglobs={"torch": torch})
    assert results.attempted > 0
    assert results.failed == 0
