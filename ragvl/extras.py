"""Packages that ragvl does without until somebody asks for what needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str, package: str) -> Iterator[None]:
    """Imports of a framework; where it is missing, the error says what to install.

    Args:
        name: ragvl's extra that brings it.
        package: the framework's module.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        top = package.partition(".")[0]
        if (error.name or "").partition(".")[0] != top:
            raise
        message = f'{package} is not installed: pip install "ragvl[{name}]"'
        raise ModuleNotFoundError(message, name=error.name) from error
