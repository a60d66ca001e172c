"""Where things of the real world lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

RUNS = Path("runs/real")
SETS = ("named", "blind", "german", "photos", "screens")
Tuned = Literal["describer", "reranker", "generator"]  # models that `ragvl train` tunes
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Layout:
    """Folders below one root."""

    root: Path = RUNS

    @property
    def packages(self) -> Path:
        """What was fetched, under the names that registries give the files."""
        return self.root / "packages"

    @property
    def licences(self) -> Path:
        """What packages say of their licences, a folder a package."""
        return self.root / "licences"

    @property
    def pictures(self) -> Path:
        """Unpacked pictures, a folder a collection."""
        return self.root / "pictures"

    @property
    def sets(self) -> Path:
        """Question sets, a folder each of `SETS`."""
        return self.root / "sets"

    @property
    def calibration(self) -> Path:
        """What weights and thresholds are estimated on, a folder each of `SETS`."""
        return self.root / "calibration"

    @property
    def pairs(self) -> Path:
        """Lines of picture and text to train a dual encoder on."""
        return self.root / "pairs.jsonl"

    @property
    def figures(self) -> Path:
        """How many questions, pictures and pairs there are."""
        return self.root / "sets.json"

    @property
    def weights(self) -> Path:
        """Pretrained weights, converted to Hugging Face folders."""
        return self.root / "weights"

    @property
    def training(self) -> Path:
        """What `ragvl train` writes, a folder a model."""
        return self.root / "training"

    @property
    def models(self) -> Path:
        """Models made of what was trained."""
        return self.root / "models"
