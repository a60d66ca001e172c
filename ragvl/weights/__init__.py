"""Names for a model's weights, every byte of them, and whether they may have changed since."""

from __future__ import annotations

from ragvl.weights.model_state import model_tensors
from ragvl.weights.names import UnnamedWeightsError, weights_name
from ragvl.weights.watch import Watch

__all__ = ["UnnamedWeightsError", "Watch", "model_tensors", "weights_name"]
