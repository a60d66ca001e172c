"""Other methods to score the same prompts, for comparison; our own code.

Each is a class with `score(query, documents) -> list[float]`. It runs a stock model (the
CrossEncoder loads its own) and takes from a `Reranker` only the input: the prompt's
text, the answers' token ids, the checkpoint's processor, the device and the dtype.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForImageTextToText, PreTrainedModel

from baselines.cross_encoder import CrossEncoderBaseline
from baselines.padded_batch import PaddedBatch
from baselines.serial_generate import SerialGenerate
from baselines.stock_cache import StockCache
from ragvl import Reranker

__all__ = ["CrossEncoderBaseline", "PaddedBatch", "SerialGenerate", "StockCache", "stock_model"]


def stock_model(folder: Path, reranker: Reranker) -> PreTrainedModel:
    """The checkpoint as Hugging Face loads it, in the reranker's dtype and on its device."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=reranker.mllm.dtype)
    return model.to(reranker.mllm.device).eval()
