"""Modules that one file of tests needs: imported with its first test."""

from __future__ import annotations

from typing import Any

import pytest


class Later:
    """A module that is imported when a name of it is first used; without it a test is skipped.

    Tests are collected in every process, and a file's are run in one.
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest asks for such of all that a file defines
            raise AttributeError(name)
        return getattr(pytest.importorskip(self._module), name)
