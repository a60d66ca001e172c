"""Answers a question from the pictures that reranking kept."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ragvl.data.document import Document, DocumentLike
from ragvl.generator.prompt import generator_prompt
from ragvl.mllm import MLLM, ImageInputs, Prompt


class Generator:
    """An MLLM that answers, by greedy decoding."""

    def __init__(self, mllm: MLLM) -> None:
        self.mllm = mllm

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        **load: Any,
    ) -> Generator:
        """Loads a generator from a folder or the hub; see `Reranker.from_pretrained`."""
        return cls(MLLM.from_pretrained(path, device=device, dtype=dtype, **load))

    def answer(
        self, query: str, documents: Sequence[DocumentLike] = (), *, max_new_tokens: int = 32
    ) -> str:
        """The answer to `query` from the pictures and captions of `documents`; none is fine."""
        return self.answer_batch([query], [documents], max_new_tokens=max_new_tokens)[0]

    def answer_batch(
        self,
        queries: Sequence[str],
        documents: Sequence[Sequence[DocumentLike]],
        *,
        max_new_tokens: int = 32,
        batch_size: int = 16,
        progress: bool = True,
    ) -> list[str]:
        """An answer for each query from its own documents.

        Args:
            queries: the questions.
            documents: for each question its documents, in the order of the prompt; may be empty.
            max_new_tokens: at most this many tokens an answer.
            batch_size: prompts decoded together.
            progress: show a bar when there are several batches.

        Raises:
            ValueError: `queries` and `documents` differ in length, or a query is empty, or
                `batch_size` is below 1.
            ImageError: a picture cannot be read; the message names the document.
            PromptTooLongError: a prompt does not fit the model's context.
        """
        if len(queries) != len(documents):
            raise ValueError(f"{len(queries)} queries, but documents for {len(documents)}")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: it must be at least 1")
        for i, query in enumerate(queries):
            if not query.strip():
                raise ValueError(f"query {i} is empty")
        evidence = [[Document.of(document) for document in group] for group in documents]
        starts = range(0, len(queries), batch_size)
        answers: list[str] = []
        hidden = not progress or len(starts) < 2
        with ThreadPoolExecutor(4) as pool:
            for start in tqdm(starts, desc="generate", unit="batch", disable=hidden):
                part = slice(start, start + batch_size)
                loaded = [list(pool.map(self._load_image, group)) for group in evidence[part]]
                prompts = [
                    self._encode(query, group, images)
                    for query, group, images in zip(
                        queries[part], evidence[part], loaded, strict=True
                    )
                ]
                answers += self.mllm.generate(prompts, max_new_tokens=max_new_tokens)
        return [answer.strip() for answer in answers]

    def _load_image(self, document: Document) -> ImageInputs:
        return self.mllm.encode_image(document.load())

    def _encode(
        self, query: str, documents: Sequence[Document], images: Sequence[ImageInputs]
    ) -> Prompt:
        template, fields = generator_prompt(query, [document.caption for document in documents])
        return self.mllm.encode_prompt(self.mllm.render(template, **fields), images)
