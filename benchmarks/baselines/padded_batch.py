"""All candidates in one padded batch, with logits at every position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ragvl import Document, Reranker


class PaddedBatch:
    """One stock forward pass over the whole batch, then the logits of each last position."""

    def __init__(self, model: PreTrainedModel, reranker: Reranker) -> None:
        self.reranker = reranker
        self.processor = reranker.mllm.prompting.processor
        self.model = model

    @torch.inference_mode()
    def score(self, query: str, documents: Sequence[Document]) -> list[float]:
        inputs = self.processor(
            images=[document.load() for document in documents],
            text=[self.reranker.prompt(query, document) for document in documents],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        logits = self.model(**inputs, use_cache=False).logits
        last = inputs["attention_mask"].sum(1) - 1
        rows = logits[torch.arange(len(documents), device=last.device), last]
        yes, no = self.reranker.yes_token_ids, self.reranker.no_token_ids
        return rows[:, yes + no].float().softmax(1)[:, 0].tolist()
