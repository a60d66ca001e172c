"""Answers a question from the pictures that reranking kept."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ragvl.arguments import checked_count
from ragvl.data.document import Document, DocumentLike
from ragvl.data.picture import Picture
from ragvl.data.query import Query
from ragvl.generator.prompt import generator_prompt
from ragvl.identity import config_content, name_of
from ragvl.mllm import (
    MLLM,
    CaptionLimit,
    ImageInputs,
    Prompt,
    checked_caption_tokens,
    encode_picture,
    too_long,
)
from ragvl.progress import ProgressBar
from ragvl.reranker.arguments import as_documents, checked_query, refuse_one_document
from ragvl.reranker.prompts import check_caption
from ragvl.runtime import warn_of_slow_products
from ragvl.torch_context import default_torch_context
from ragvl.workers import Pending, Workers, ahead

_PICTURES_AHEAD = 16  # are decoded while the model writes


class Generator:
    """An MLLM that answers, by greedy decoding.

    Args:
        mllm: the model.
        caption_tokens: cuts a longer caption to so many tokens, with a word in the log; None leaves
            captions whole.

    Raises:
        ValueError: `caption_tokens` is below 1.
    """

    def __init__(self, mllm: MLLM, *, caption_tokens: int | None = None) -> None:
        warn_of_slow_products(mllm.dtype, mllm.device)
        self.mllm = mllm
        self._captions = CaptionLimit(mllm.prompting, caption_tokens)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), caption_tokens=self.caption_tokens), (self.mllm,)

    @property
    def caption_tokens(self) -> int | None:
        """How many tokens of a caption prompts hold at most; None for all."""
        return self._captions.max_tokens

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        caption_tokens: int | None = None,
        **load: Any,
    ) -> Generator:
        """Loads a generator from a folder or the hub; see `Reranker.from_pretrained`."""
        checked_caption_tokens(caption_tokens)
        mllm = MLLM.from_pretrained(path, device=device, dtype=dtype, **load)
        return cls(mllm, caption_tokens=caption_tokens)

    @property
    def fingerprint(self) -> str:
        """Names all that its answers depend on, the questions and documents apart."""
        mllm = self.mllm
        kinds = [Document(b""), Document(b"", caption="a"), Document(text="a")]
        prompts = generator_prompt("", kinds)
        settings = config_content(mllm.model.generation_config)
        return name_of(
            "generator",
            mllm.fingerprint,
            mllm.environment_name,
            prompts,
            self.caption_tokens,
            settings,
        )

    def answer(
        self, query: str, documents: Sequence[DocumentLike] = (), *, max_new_tokens: int = 32
    ) -> str:
        """The answer to `query` from `documents` of any kinds; none is fine."""
        return self.answer_batch([query], [documents], max_new_tokens=max_new_tokens)[0]

    @default_torch_context
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
                `batch_size` or `max_new_tokens` is below 1.
            TypeError: what is to be a list is one query or one document, or holds what is none.
            DocumentError: a picture or a caption cannot be read; the message names the document.
            PromptTooLongError: a prompt does not fit the model's context; the message names its
                documents and its query, `index` is the query's place.
        """
        if isinstance(queries, str):
            raise TypeError("queries is one query: put it into a list, or call answer()")
        if len(queries) != len(documents):
            raise ValueError(f"{len(queries)} queries, but documents for {len(documents)}")
        batch_size = checked_count("batch_size", batch_size)
        max_new_tokens = checked_count("max_new_tokens", max_new_tokens)
        for i, query in enumerate(queries):
            try:
                checked_query(query)
            except (TypeError, ValueError) as error:
                raise type(error)(f"queries[{i}]: {error}") from None
        evidence = [_checked_documents(group) for group in documents]
        deque(self._captions.watched(itertools.chain(*evidence)), maxlen=0)
        # Prompts of like length together: a batch is as long as its longest
        order = sorted(range(len(queries)), key=lambda i: _size(queries[i], evidence[i]))
        starts = range(0, len(order), batch_size)
        answers = [""] * len(queries)
        hidden = not progress or len(starts) < 2
        with Workers() as workers:
            images = ahead(self._prepared(workers, [evidence[i] for i in order]), _PICTURES_AHEAD)
            for start in ProgressBar(starts, desc="generate", unit="batch", disable=hidden):
                batch = order[start : start + batch_size]
                prompts = [
                    self._encode(
                        index,
                        queries[index],
                        evidence[index],
                        [
                            next(images).result()
                            for document in evidence[index]
                            for _ in document.pictures
                        ],
                    )
                    for index in batch
                ]
                texts = self.mllm.generate(prompts, max_new_tokens=max_new_tokens)
                for index, text in zip(batch, texts, strict=True):
                    answers[index] = text
        return answers

    def _prepared(
        self, workers: Workers, evidence: Sequence[Sequence[Document]]
    ) -> Iterator[Pending[ImageInputs]]:
        """The pictures of documents, in order; one that comes again is prepared once."""
        pictures = [p for group in evidence for document in group for p in document.pictures]
        left = Counter(pictures)
        pending: dict[Picture, Pending[ImageInputs]] = {}
        for picture in pictures:
            left[picture] -= 1
            if picture not in pending:
                pending[picture] = workers.submit(
                    partial(encode_picture, self.mllm.prompting, picture)
                )
            yield pending[picture] if left[picture] else pending.pop(picture)

    def _encode(
        self,
        index: int,
        query: str,
        documents: Sequence[Document],
        images: Sequence[ImageInputs],
    ) -> Prompt:
        template, fields = generator_prompt(query, [*map(self._captions.shortened, documents)])
        prompting = self.mllm.prompting
        prompt = prompting.encode_prompt(prompting.render(template, **fields), images)
        if len(prompt) > prompting.max_length:
            raise too_long(
                prompting.max_length, len(prompt), documents, index=index, query=Query(query)
            )
        return prompt


def _checked_documents(group: Sequence[DocumentLike]) -> list[Document]:
    refuse_one_document(group)
    documents = as_documents(group)
    for document in documents:
        check_caption(document)
    return documents


def _size(query: str, documents: Sequence[Document]) -> tuple[int, int]:
    """About how long a prompt becomes: its pictures, and then the characters of its texts."""
    texts = [part for document in documents for part in document.parts if isinstance(part, str)]
    return sum(len(document.pictures) for document in documents), sum(map(len, [query, *texts]))
