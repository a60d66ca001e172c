from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_encoders import FAMILIES, save_checkpoint

from ragvl.retriever import DualEncoder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("dual_encoders")
    return {family: save_checkpoint(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="session")
def encoders(checkpoints) -> dict[str, DualEncoder]:
    return {
        family: DualEncoder.from_pretrained(folder, device="cpu")
        for family, folder in checkpoints.items()
    }


@pytest.fixture(scope="session")
def encoder(encoders) -> DualEncoder:
    return encoders["clip"]


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    """Seven of different shapes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20 + 5 * i, 50 - 4 * i, 3), dtype=np.uint8) for i in range(7)]
