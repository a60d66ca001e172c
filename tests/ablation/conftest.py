from __future__ import annotations

from pathlib import Path

import pytest

from ragvl.data.synthetic import Places, write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn world with a train and a test split; do not write into it."""
    counts = {"train": 8, "test": 4}
    return write_world(tmp_path_factory.mktemp("world"), Places(), counts=counts, seed=3)  # type: ignore[arg-type]
