"""Other ways to score the same prompts, for comparison; our own code.

Each is a class with `score(query, documents) -> list[float]`. It loads its own stock model from the
checkpoint folder and takes from a `Reranker` only what is asked and where: the prompt's text, the
answers' token ids, the checkpoint's processor, the device and the dtype.
"""

from __future__ import annotations

from baselines.cross_encoder import CrossEncoderBaseline
from baselines.padded_batch import PaddedBatch
from baselines.serial_generate import SerialGenerate

__all__ = ["CrossEncoderBaseline", "PaddedBatch", "SerialGenerate"]
