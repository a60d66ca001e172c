from __future__ import annotations

from pathlib import Path

import pytest

from ragvl.data.synthetic import Places, write_world
from ragvl.data.webqa import WebQA


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WebQA folder with a few questions; do not write into it."""
    folder = tmp_path_factory.mktemp("world")
    return write_world(folder, Places(), counts={"train": 8, "val": 4}, questions_each=2, seed=3)


@pytest.fixture(scope="session")
def questions(small_world: Path) -> WebQA:
    return WebQA(small_world, split="train")
