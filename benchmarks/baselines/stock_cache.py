"""Hugging Face's own cache: each document's prefix kept, then one candidate at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ragvl import Document, Reranker


@dataclass(frozen=True)
class _Prefix:
    """What is kept of a document; a Qwen-VL's positions after a picture are `rope_deltas` off."""

    input_ids: list[int]
    cache: DynamicCache
    rope_deltas: Tensor | None


class StockCache:
    """A prefix is computed at a document's first question, as anybody would with a stock cache.

    It saves the same work as ragvl's cache, without its batches, pages and graphs.
    """

    def __init__(self, model: PreTrainedModel, reranker: Reranker) -> None:
        self.reranker = reranker
        self.processor = reranker.mllm.prompting.processor
        self.model = model
        self._prefixes: dict[int, _Prefix] = {}

    @torch.inference_mode()
    def score(self, query: str, documents: Sequence[Document]) -> list[float]:
        return [self._score(query, document) for document in documents]

    def _score(self, query: str, document: Document) -> float:
        prefix_ids, suffix_ids = self.reranker.split_prompt(query, document)
        prefix = self._prefixes.get(id(document))
        if prefix is None or prefix.input_ids != prefix_ids:
            prefix = self._prefill(query, document, prefix_ids)
            self._prefixes[id(document)] = prefix
        positions = torch.arange(len(suffix_ids))[None] + len(prefix_ids)
        if prefix.rope_deltas is not None:
            positions = (positions + prefix.rope_deltas.cpu()).expand(3, 1, -1)
        logits = self._forward(
            prefix.cache, input_ids=torch.tensor([suffix_ids]), position_ids=positions
        )
        prefix.cache.crop(-len(suffix_ids))  # so many fewer, in every version
        yes, no = self.reranker.yes_token_ids, self.reranker.no_token_ids
        return logits[0, -1, yes + no].float().softmax(0)[0].item()

    def _prefill(self, query: str, document: Document, prefix_ids: list[int]) -> _Prefix:
        inputs = self.processor(
            images=document.load(),
            text=self.reranker.prompt(query, document),
            return_tensors="pt",
        )
        length = inputs["input_ids"].shape[1]
        inputs = {
            name: x[:, : len(prefix_ids)] if x.shape[:2] == (1, length) else x
            for name, x in inputs.items()
        }
        cache = DynamicCache(config=self.model.config)
        self._forward(cache, **inputs)
        return _Prefix(prefix_ids, cache, getattr(self.model.model, "rope_deltas", None))

    def _forward(self, cache: DynamicCache, **inputs: Any) -> Tensor:
        """(1, 1, V): the logits at the last position."""
        dtype, device = self.model.dtype, self.model.device
        placed = {
            name: x.to(device, dtype if x.is_floating_point() else None)
            for name, x in inputs.items()
        }
        return self.model(**placed, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
