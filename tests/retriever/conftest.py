from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_encoders import FAMILIES, save_checkpoint, save_text_encoder

from ragvl.retriever import DualEncoder, TextEncoder


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


@pytest.fixture(scope="session")
def text_checkpoint(tmp_path_factory) -> Path:
    return save_text_encoder(tmp_path_factory.mktemp("text_encoder"))


@pytest.fixture(scope="session")
def text_encoder(text_checkpoint) -> TextEncoder:
    return TextEncoder.from_pretrained(text_checkpoint, device="cpu")
