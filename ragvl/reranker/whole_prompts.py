"""Scores prompts in one piece: for models and templates in which no prefix can be reused.

Pictures' visual tokens still are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from sys import maxsize

import torch
from torch import Tensor

from ragvl.data.document import Document
from ragvl.data.images import DocumentError
from ragvl.data.query import Query
from ragvl.mllm import MLLM, Prompt, PromptTooLongError, too_long
from ragvl.prefix_cache import PictureSupply, SuppliedPicture
from ragvl.reranker.heads import Head
from ragvl.reranker.prompts import Prompts
from ragvl.reranker.scorer import Refuse, Scored
from ragvl.reranker.templates import pictures_in_order
from ragvl.workers import Workers, ahead

_AHEAD = 64  # pairs whose pictures are being prepared
_WINDOW = 256  # pairs are sorted by length this many at a time
_WINDOW_TOKENS = 1 << 18  # or fewer, that their pictures' visual tokens do not take all memory
# On a CPU a larger batch saves nothing and leaves the caches; measured on 44 M parameters.
_CPU_BATCH_TOKENS = 1024
_GPU_BATCH_SIZE = 32


@dataclass(frozen=True)
class _Entry:
    """A pair's prompt, ready to be run.

    Attributes:
        index: the pair's.
        input_ids: the prompt's.
        pictures: its pictures, in order.
    """

    index: int
    input_ids: list[int]
    pictures: Sequence[SuppliedPicture]

    def __len__(self) -> int:
        return len(self.input_ids)


class WholePrompts:
    """Runs batches of prompts of like length; a `Scorer`.

    What is kept from query to query is pictures' visual tokens: a known picture is not read,
    hashed, resized or looked at by the vision tower again.

    Args:
        mllm: the model.
        prompts: writes the prompts.
        head: reads scores.
        pictures: supplies them.
        deterministic: a score's bits do not depend on its company: each prompt is a batch.
    """

    def __init__(
        self,
        mllm: MLLM,
        prompts: Prompts,
        head: Head,
        pictures: PictureSupply,
        *,
        deterministic: bool,
    ) -> None:
        self._mllm = mllm
        self._prompts = prompts
        self._head = head
        self._pictures = pictures
        self._deterministic = deterministic

    def warm(self, documents: Iterable[Document], refuse: Refuse) -> Iterator[tuple[int, bool]]:
        """Brings pictures' visual tokens into the cache; see `Scorer`."""
        if (problem := self._pictures.problem) is not None:
            raise ValueError(f"there is nothing to warm: {problem}")
        with Workers() as workers:
            call = self._pictures.call(workers)
            coming = ((one, [*map(call.take, one.pictures)]) for one in documents)
            for index, (document, pictures) in enumerate(ahead(coming, _AHEAD)):
                try:
                    self._keep(document, pictures, index)
                except (DocumentError, PromptTooLongError) as error:
                    refuse([index], error)
                else:
                    yield index, all(picture.known for picture in pictures)

    def is_warm(self, document: Document, _instruction: str | None) -> bool:
        """Whether its pictures' visual tokens are in the cache; see `Scorer`."""
        return all(map(self._pictures.has, document.pictures))

    def _keep(self, document: Document, pictures: Sequence[SuppliedPicture], index: int) -> None:
        """Has the pictures looked at of a document whose prompt can fit the model's context."""
        self._prompts.check_document(document)
        length = sum(picture.inputs.num_tokens for picture in pictures) + 1
        if length > self._prompts.max_length:
            raise too_long(self._prompts.max_length, length, [document], index=index)
        for picture in pictures:
            picture.seen()

    def score(
        self, pairs: Sequence[tuple[Query, Document]], batch_size: int | None, refuse: Refuse
    ) -> Iterator[Scored]:
        """Raw scores, in batches; see `Scorer`."""
        batch_size = 1 if self._deterministic else batch_size
        for window in self._prepare(pairs, refuse):
            # prompts of like length share a batch, so that little of it is padding
            for batch in self._batches(sorted(window, key=len), batch_size):
                indices = [entry.index for entry in batch]
                yield Scored(indices, self._raw(batch), list(map(len, batch)), [0] * len(batch))

    def _batches(self, window: Sequence[_Entry], batch_size: int | None) -> Iterator[list[_Entry]]:
        """`window`, shortest prompt first, cut into batches."""
        on_cpu = self._mllm.device.type == "cpu"
        max_tokens = _CPU_BATCH_TOKENS if batch_size is None and on_cpu else maxsize
        max_size = batch_size or (maxsize if on_cpu else _GPU_BATCH_SIZE)
        batch: list[_Entry] = []
        for entry in window:
            size = len(batch) + 1
            if batch and (size > max_size or size * len(entry) > max_tokens):
                yield batch
                batch = []
            batch.append(entry)
        if batch:
            yield batch

    def _prepare(
        self, pairs: Sequence[tuple[Query, Document]], refuse: Refuse
    ) -> Iterator[list[_Entry]]:
        """Windows of prompts; pictures are prepared ahead.

        Pairs are taken document by document, so that each picture is prepared once and held
        for no longer than its own pairs are at work.
        """
        by_document: dict[int, list[int]] = {}
        for i, (_, document) in enumerate(pairs):
            by_document.setdefault(id(document), []).append(i)
        with Workers() as workers:
            call = self._pictures.call(workers)
            template = self._prompts.template
            coming = (
                (i, [*map(call.take, pictures_in_order(template, *pairs[i]))])
                for indices in by_document.values()
                for i in indices
            )
            window: list[_Entry] = []
            for index, pictures in ahead(coming, _AHEAD):
                entry = self._entry_or_none(index, *pairs[index], pictures, refuse)
                window += [] if entry is None else [entry]
                if len(window) == _WINDOW or sum(map(len, window)) > _WINDOW_TOKENS:
                    yield window
                    window = []
            yield window

    def _entry_or_none(
        self,
        index: int,
        query: Query,
        document: Document,
        pictures: Sequence[SuppliedPicture],
        refuse: Refuse,
    ) -> _Entry | None:
        try:
            images = [picture.inputs for picture in pictures]
            prompt = self._prompts.prompt(query, document, images)
            if (length := len(prompt)) > (most := self._prompts.max_length):
                raise too_long(most, length, [document], index=index, query=query)
        except (DocumentError, PromptTooLongError) as error:
            refuse([index], error)
            return None
        return _Entry(index, prompt.input_ids, pictures)

    @torch.inference_mode()
    def _raw(self, batch: Sequence[_Entry]) -> Tensor:
        prompts = [
            Prompt(entry.input_ids, tuple(picture.seen() for picture in entry.pictures))
            for entry in batch
        ]
        hidden = self._mllm.hidden_states(prompts)
        size, length, width = hidden.shape
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=hidden.device)
        if self._head.pooling == "mean":
            real = torch.arange(length, device=hidden.device) < lengths[:, None]
            return self._head(hidden[real], lengths.cumsum(0) - 1).cpu()
        last_rows = torch.arange(size, device=hidden.device) * length + lengths - 1
        return self._head(hidden.reshape(size * length, width), last_rows).cpu()
