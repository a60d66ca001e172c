"""A few pictures that the tests are about."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_files import write_picture

COLORS = ("red", "green", "blue", "white", "black", "orange", "purple", "gray")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of one color each; do not write into their folder."""
    folder = tmp_path_factory.mktemp("pictures")
    return [write_picture(folder / f"{color}.png", color) for color in COLORS]
