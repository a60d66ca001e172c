from __future__ import annotations

from pathlib import Path

import pytest

from ragvl.data.synthetic import Places, write_world
from ragvl.evaluation.models import Models
from ragvl.generator import Generator
from ragvl.reranker import Reranker
from ragvl.retriever import DualEncoder

ASSETS = Path(__file__).parents[2] / "ragvl" / "assets"


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn world with a dev and a test split; do not write into it."""
    folder = tmp_path_factory.mktemp("places")
    return write_world(folder, Places(), counts={"val": 60, "test": 24}, seed=11)


@pytest.fixture(scope="session")
def models() -> Models:
    """The demo's tiny models."""
    return Models(
        DualEncoder.from_pretrained(ASSETS / "tiny-retriever", device="cpu"),
        Reranker.from_pretrained(ASSETS / "tiny-reranker", device="cpu"),
        Generator.from_pretrained(ASSETS / "tiny-generator", device="cpu"),
    )
