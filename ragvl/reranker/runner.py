"""Runs packed suffixes over their cached prefixes."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from ragvl.forks import fork_safe
from ragvl.mllm import MLLM, Prompt, ReadStates
from ragvl.ops import PrefixBatch
from ragvl.ops.backends import on_device
from ragvl.prefix_cache import PagePool
from ragvl.reranker.chunks import Chunk, Shape, Suffix
from ragvl.reranker.graphs import Graphs
from ragvl.reranker.heads import Head

# A matrix product gives a row the same bits whatever stands beside it, if it has whole blocks of
# so many rows; a product with a single row takes another path. Where a library does not keep to
# that: `ragvl.mkl`, `ragvl.mllm.products`.
_BLOCK_ROWS = 32
# More rows gain nothing on a CPU and leave its caches. On a GPU every chunk has this shape, room
# for 20 candidates of 32 tokens, or with `deterministic=False` as many blocks as it needs.
_CPU_ROWS = 1024
_GPU_ROWS = 640
_QUESTION_TOKENS = range(4, 41)  # of the questions that graphs are captured ahead for


class ChunkRunner:
    """Runs chunks: the decoder over the suffixes, then the head.

    Args:
        mllm: the model.
        head: reads scores.
        pool: where the prefixes lie.
        deterministic: see `CachedPrefixes`.
    """

    def __init__(self, mllm: MLLM, head: Head, pool: PagePool, *, deterministic: bool) -> None:
        self._mllm = mllm
        self._head = head
        self._pool = pool
        self._on_gpu = mllm.device.type == "cuda"
        self._max_rows = _GPU_ROWS if self._on_gpu else _CPU_ROWS
        if self._on_gpu and deterministic:
            self._row_step = _GPU_ROWS
        else:
            # Each of torch's threads gets whole rows too, or its share would end within a vector
            self._row_step = math.lcm(_BLOCK_ROWS, 1 if self._on_gpu else torch.get_num_threads())
        # Layers that carry a state run suffixes as sequences of the longest one's length there
        self._by_length = self._on_gpu and deterministic and bool(pool.state_pages)
        self._graphs = Graphs(mllm.device, mllm.architecture)
        self._lock = fork_safe(threading.Lock())

    def chunks(
        self, suffixes: Sequence[Suffix], batch_size: int | None
    ) -> Iterator[Sequence[Suffix]]:
        """`suffixes`, in order, cut where a chunk is full.

        One with pictures is a chunk by itself. Where a chunk's longest suffix could decide bits,
        those that count as equally long come together, the shorter first.
        """
        max_size = _BLOCK_ROWS if batch_size is None else min(batch_size, _BLOCK_ROWS)
        suffixes = sorted(suffixes, key=self._counted_length)
        for _, equals in groupby(suffixes, key=self._counted_length):
            yield from self._filled(list(equals), max_size)

    def _counted_length(self, suffix: Suffix) -> int:
        return _power_of_two(len(suffix.input_ids)) if self._by_length else 0

    def _filled(self, suffixes: Sequence[Suffix], max_size: int) -> Iterator[Sequence[Suffix]]:
        start = rows = 0
        for end, suffix in enumerate(suffixes):
            length = len(suffix.input_ids)
            is_full = rows + length > self._max_rows or end - start == max_size
            if end > start and (is_full or suffix.pictures or suffixes[start].pictures):
                yield suffixes[start:end]
                start, rows = end, 0
            rows += length
        yield suffixes[start:]

    @torch.inference_mode()
    def __call__(self, suffixes: Sequence[Suffix]) -> Tensor:
        """(B,) float32 on the CPU: the raw score of each suffix's prompt."""
        shape = self._shape(
            sum(len(suffix.input_ids) for suffix in suffixes),
            max(len(suffix.prefix.pages) for suffix in suffixes),
            max(len(suffix.input_ids) for suffix in suffixes),
        )
        if not self._on_gpu:
            return self._run(Chunk.pack(suffixes, shape), suffixes)[: len(suffixes)]
        chunk = Chunk.pack(suffixes, shape, pinned=True)
        with self._lock, on_device(self._mllm.device):
            for suffix in suffixes:
                suffix.prefix.wait()
            if suffixes[0].pictures:
                raw = self._run(chunk.to(self._mllm.device), suffixes).cpu()
            else:
                raw = self._graphs.of(shape, self._raw)(chunk)
            return raw[: len(suffixes)]

    @torch.inference_mode()
    def prepare(self, pages: int, suffix_length: int) -> None:
        """Compiles kernels, and captures the graphs that the first questions will need on a GPU.

        Args:
            pages: of a prefix that questions will come about.
            suffix_length: tokens of a suffix whose question has none.
        """
        if not self._on_gpu:
            return
        lengths = {_power_of_two(suffix_length + tokens) for tokens in _QUESTION_TOKENS}
        with self._lock, on_device(self._mllm.device):
            for longest in sorted(lengths):
                self._graphs.of(self._shape(self._max_rows, pages, longest), self._raw)

    def _shape(self, rows: int, pages: int, longest: int) -> Shape:
        if self._on_gpu:  # a graph for each shape: powers of two keep them few, and change no bit
            pages, longest = _power_of_two(pages), _power_of_two(longest)
        return Shape(_round_up(rows, self._row_step), _BLOCK_ROWS, pages, longest)

    def _run(self, chunk: Chunk, suffixes: Sequence[Suffix]) -> Tensor:
        """(B,) float32 on the model's device, of what `chunk` was packed from."""
        first = suffixes[0]
        if not first.pictures:
            return self._raw(chunk)
        hidden = self._mllm.extend_with_pictures(
            Prompt(first.input_ids, tuple(first.pictures)),
            first.first_position,
            chunk.last_rows,
            *self._reached(chunk),
            num_rows=chunk.shape.rows,
        )
        return self._read(hidden)

    def _raw(self, chunk: Chunk) -> Tensor:
        """(B,) float32 on the model's device."""
        hidden = self._mllm.decoder.extend(
            chunk.input_ids, chunk.position_ids, chunk.last_rows, *self._reached(chunk)
        )
        return self._read(hidden)

    def _reached(self, chunk: Chunk) -> tuple[Sequence[PrefixBatch | None], ReadStates]:
        """What each layer goes on from."""
        prefixes = self._pool.batches(
            chunk.page_table,
            chunk.prefix_lengths,
            chunk.suffix_starts,
            chunk.suffix_lengths,
            chunk.shape.longest,
        )
        return prefixes, partial(self._pool.states, chunk.page_table)

    def _read(self, hidden: Tensor) -> Tensor:
        return self._head(hidden, torch.arange(len(hidden), device=hidden.device))


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()
