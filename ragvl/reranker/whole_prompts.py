"""Scores prompts in one piece: for models and templates in which no prefix can be reused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from sys import maxsize

import torch
from torch import Tensor

from ragvl.data.document import Document
from ragvl.data.images import ImageError
from ragvl.mllm import (
    MLLM,
    ImageInputs,
    Prompt,
    PromptTooLongError,
    encode_document,
    too_long,
)
from ragvl.reranker.heads import Head
from ragvl.reranker.prompts import Prompts
from ragvl.reranker.scorer import OnError, skip
from ragvl.workers import Pending, Workers, ahead

_WINDOW = 256  # pairs are prepared and sorted by length this many at a time
# On a CPU a larger batch saves nothing and leaves the caches; measured on 44 M parameters.
_CPU_BATCH_TOKENS = 1024
_GPU_BATCH_SIZE = 32


class WholePrompts:
    """Runs batches of prompts of like length; a `Scorer`.

    Args:
        mllm: the model.
        prompts: writes the prompts.
        head: reads scores.
        reason: why no prefix is kept.
    """

    def __init__(
        self,
        mllm: MLLM,
        prompts: Prompts,
        head: Head,
        reason: str = "prompts are scored whole",
    ) -> None:
        self._mllm = mllm
        self._prompts = prompts
        self._head = head
        self._reason = reason

    def warm(self, documents: Iterable[Document], on_error: OnError) -> Iterator[str]:  # noqa: ARG002
        """Refuses: nothing is kept; see `Scorer`."""
        raise ValueError(f"there is nothing to warm: {self._reason}")

    def score(
        self, pairs: Sequence[tuple[str, Document]], batch_size: int | None, on_error: OnError
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Indices of pairs with their raw scores (B,), in batches; see `Scorer`."""
        for window in self._prepare(pairs, on_error):
            # prompts of like length share a batch, so that little of it is padding
            window.sort(key=lambda entry: len(entry[1]))
            for batch in self._batches(window, batch_size):
                indices, prompts = zip(*batch, strict=True)
                yield indices, self._raw(prompts)

    def _batches(
        self, window: Sequence[tuple[int, Prompt]], batch_size: int | None
    ) -> Iterator[list[tuple[int, Prompt]]]:
        """`window`, shortest prompt first, cut into batches."""
        on_cpu = self._mllm.device.type == "cpu"
        max_tokens = _CPU_BATCH_TOKENS if batch_size is None and on_cpu else maxsize
        max_size = batch_size or (maxsize if on_cpu else _GPU_BATCH_SIZE)
        batch: list[tuple[int, Prompt]] = []
        for entry in window:
            size = len(batch) + 1
            if batch and (size > max_size or size * len(entry[1]) > max_tokens):
                yield batch
                batch = []
            batch.append(entry)
        if batch:
            yield batch

    def _prepare(
        self, pairs: Sequence[tuple[str, Document]], on_error: OnError
    ) -> Iterator[list[tuple[int, Prompt]]]:
        """Windows of (index of the pair, its prompt); pictures are prepared one window ahead.

        Pairs are taken document by document, so that each picture is prepared once and held
        for no longer than its own pairs are at work.
        """
        by_document: dict[int, tuple[Document, list[int]]] = {}
        for i, (_, document) in enumerate(pairs):
            by_document.setdefault(id(document), (document, []))[1].append(i)
        encode = partial(encode_document, self._mllm.prompting)
        with Workers() as workers:
            encoded = (
                (indices, workers.submit(partial(encode, document)))
                for document, indices in by_document.values()
            )
            prompts = (
                (i, self._prompt_or_none(i, *pairs[i], image, on_error))
                for indices, image in ahead(encoded, _WINDOW)
                for i in indices
            )
            while window := list(islice(prompts, _WINDOW)):
                yield [(i, prompt) for i, prompt in window if prompt is not None]

    def _prompt_or_none(
        self,
        index: int,
        query: str,
        document: Document,
        image: Pending[ImageInputs],
        on_error: OnError,
    ) -> Prompt | None:
        try:
            text = self._prompts.text(query, document)
            prompting = self._mllm.prompting
            prompt = prompting.encode_prompt(text, [image.result()])
            if len(prompt) > prompting.max_length:
                raise too_long(prompting, len(prompt), [document], index=index, question=query)
        except (ImageError, PromptTooLongError) as error:
            skip(error, on_error)
            return None
        return prompt

    @torch.inference_mode()
    def _raw(self, prompts: Sequence[Prompt]) -> Tensor:
        hidden = self._mllm.hidden_states(prompts)
        size, length, width = hidden.shape
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=hidden.device)
        if self._head.pooling == "mean":
            real = torch.arange(length, device=hidden.device) < lengths[:, None]
            return self._head(hidden[real], lengths.cumsum(0) - 1).cpu()
        last_rows = torch.arange(size, device=hidden.device) * length + lengths - 1
        return self._head(hidden.reshape(size * length, width), last_rows).cpu()
