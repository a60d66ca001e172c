"""One candidate at a time through `generate`: how RagVL's release scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ragvl import Document, Reranker


class SerialGenerate:
    """Generates one token for each document and reads Yes and No from its scores."""

    def __init__(self, model: PreTrainedModel, reranker: Reranker) -> None:
        self.reranker = reranker
        self.processor = reranker.mllm.prompting.processor
        self.model = model

    @torch.inference_mode()
    def score(self, query: str, documents: Sequence[Document]) -> list[float]:
        return [self._score(query, document) for document in documents]

    def _score(self, query: str, document: Document) -> float:
        inputs = self.processor(
            images=document.load(),
            text=self.reranker.prompt(query, document),
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        output = self.model.generate(
            **inputs,
            max_new_tokens=1,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        yes, no = self.reranker.yes_token_ids, self.reranker.no_token_ids
        return output.scores[0][0, yes + no].float().softmax(0)[0].item()
