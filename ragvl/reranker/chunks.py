"""Suffixes packed into chunks of few shapes, and run."""

from __future__ import annotations

import gc
import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ragvl.forks import fork_safe
from ragvl.messages import reason
from ragvl.mllm import MLLM
from ragvl.ops.backends import on_device
from ragvl.prefix_cache import CachedPrefix, PagePool, page_table
from ragvl.reranker.answer_head import AnswerHead
from ragvl.runtime import is_out_of_memory

logger = logging.getLogger(__name__)

# A matrix product gives a row the same bits whatever stands beside it, if it has whole blocks of
# so many rows; a product with a single row takes another path.
_BLOCK_ROWS = 32
# More rows gain nothing on a CPU and leave its caches. On a GPU every chunk has this shape, room
# for 20 candidates of 32 tokens, or with `deterministic=False` as many blocks as it needs.
_CPU_ROWS = 1024
_GPU_ROWS = 640
_QUESTION_TOKENS = range(4, 41)  # of the questions that graphs are captured ahead for


@dataclass(frozen=True)
class Suffix:
    """What is left of a prompt behind its cached prefix.

    Attributes:
        index: of its pair.
        prefix: the cached prefix.
        shared: how many tokens of the prefix the prompt begins with; as a rule all.
        input_ids: the tokens after those.
    """

    index: int
    prefix: CachedPrefix
    shared: int
    input_ids: list[int]


class Shape(NamedTuple):
    """What decides a chunk's tensors and launches: on a GPU there is a graph for each.

    Attributes:
        rows: of tokens, R.
        slots: room for so many suffixes, B.
        pages: room for so many pages of each suffix's prefix, M.
        longest: no suffix has more tokens.
    """

    rows: int
    slots: int
    pages: int
    longest: int


class Chunk:
    """Packed suffixes as tensors, all parts of one buffer: one copy takes them to a GPU.

    Attributes:
        shape: of the tensors.
        input_ids: (R,) int64.
        position_ids: (R,) int64.
        last_rows: (B,) int64, the row of each suffix's last token.
        page_table: (B, M) int32.
        prefix_lengths: (B,) int32.
        suffix_starts: (B,) int32.
        suffix_lengths: (B,) int32; 0 where there is room left.
    """

    def __init__(
        self, shape: Shape, device: torch.device | None = None, *, pinned: bool = False
    ) -> None:
        self.shape = shape
        rows, slots, pages, _ = shape
        wide, narrow = [rows, rows, slots], [slots * pages, slots, slots, slots]
        sizes = [8 * sum(wide), 4 * sum(narrow)]
        self._buffer = torch.zeros(sum(sizes), dtype=torch.uint8, device=device, pin_memory=pinned)
        int64, int32 = self._buffer.split(sizes)
        self.input_ids, self.position_ids, self.last_rows = int64.view(torch.int64).split(wide)
        table, self.prefix_lengths, self.suffix_starts, self.suffix_lengths = int32.view(
            torch.int32
        ).split(narrow)
        self.page_table = table.view(slots, pages)

    @classmethod
    def pack(cls, suffixes: Sequence[Suffix], shape: Shape, *, pinned: bool = False) -> Chunk:
        """Packs `suffixes` one after the other."""
        chunk = cls(shape, pinned=pinned)
        lengths = [len(suffix.input_ids) for suffix in suffixes]
        ends = list(accumulate(lengths))
        # A suffix goes on where its prefix ends, or sooner if some of that is not shared
        firsts = [s.prefix.next_position - len(s.prefix.input_ids) + s.shared for s in suffixes]
        for target, values in (
            (chunk.input_ids, [token for suffix in suffixes for token in suffix.input_ids]),
            (
                chunk.position_ids,
                [
                    position
                    for first, length in zip(firsts, lengths, strict=True)
                    for position in range(first, first + length)
                ],
            ),
            (chunk.last_rows, [end - 1 for end in ends]),
            (chunk.prefix_lengths, [suffix.shared for suffix in suffixes]),
            (chunk.suffix_starts, [0, *ends[:-1]]),
            (chunk.suffix_lengths, lengths),
        ):
            target.numpy()[: len(values)] = values  # several times as fast as torch.tensor
        pages = [suffix.prefix.pages for suffix in suffixes]
        chunk.page_table[: len(suffixes)] = page_table(pages, shape.pages)
        return chunk

    def to(self, device: torch.device) -> Chunk:
        """The same on `device`."""
        copy = Chunk(self.shape, device)
        copy.copy_(self)
        return copy

    def copy_(self, other: Chunk) -> None:
        """Takes over the values of another chunk of the same shape."""
        self._buffer.copy_(other._buffer, non_blocking=True)


class ChunkRunner:
    """Runs chunks: the decoder over the suffixes, then the head.

    Args:
        mllm: the model.
        head: reads relevance.
        pool: where the prefixes lie.
        deterministic: see `CachedPrefixes`.
    """

    def __init__(
        self, mllm: MLLM, head: AnswerHead, pool: PagePool, *, deterministic: bool
    ) -> None:
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
        self._graphs: dict[Shape, Callable[[Chunk], Tensor]] = {}
        # One graph runs at a time, and its result is read before the next: they share their memory
        self.graph_memory = torch.cuda.graph_pool_handle() if self._on_gpu else None
        self._reported = False
        self._lock = fork_safe(threading.Lock())

    def chunks(
        self, suffixes: Sequence[Suffix], batch_size: int | None
    ) -> Iterator[Sequence[Suffix]]:
        """`suffixes`, in order, cut where a chunk is full."""
        max_size = _BLOCK_ROWS if batch_size is None else min(batch_size, _BLOCK_ROWS)
        start = rows = 0
        for end, suffix in enumerate(suffixes):
            length = len(suffix.input_ids)
            if end > start and (rows + length > self._max_rows or end - start == max_size):
                yield suffixes[start:end]
                start, rows = end, 0
            rows += length
        if start < len(suffixes):
            yield suffixes[start:]

    @torch.inference_mode()
    def __call__(self, suffixes: Sequence[Suffix]) -> Tensor:
        """(B,) float32 on the CPU: the relevance of each suffix's prompt."""
        shape = self._shape(
            sum(len(suffix.input_ids) for suffix in suffixes),
            max(len(suffix.prefix.pages) for suffix in suffixes),
            max(len(suffix.input_ids) for suffix in suffixes),
        )
        if not self._on_gpu:
            return self._relevance(Chunk.pack(suffixes, shape))[: len(suffixes)]
        chunk = Chunk.pack(suffixes, shape, pinned=True)
        with self._lock, on_device(self._mllm.device):
            for suffix in suffixes:
                suffix.prefix.wait()
            return self._captured(shape)(chunk)[: len(suffixes)]

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
                self._captured(self._shape(self._max_rows, pages, longest))

    def _shape(self, rows: int, pages: int, longest: int) -> Shape:
        if self._on_gpu:  # a graph for each shape: powers of two keep them few, and change no bit
            pages, longest = _power_of_two(pages), _power_of_two(longest)
        return Shape(_round_up(rows, self._row_step), _BLOCK_ROWS, pages, longest)

    def _captured(self, shape: Shape) -> Callable[[Chunk], Tensor]:
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(shape)
        return self._graphs[shape]

    def _capture(self, shape: Shape) -> Callable[[Chunk], Tensor]:
        """A run of this shape in one launch; one by one where the model cannot be captured.

        A graph keeps the memory of its activations. Where there is none for another one, the
        earlier go, and it is tried once more.
        """
        try:
            return _Graph(self, shape)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                if not self._graphs:
                    raise
                logger.warning("CUDA graphs are captured again: memory ran out (%s)", reason(error))
                self._graphs.clear()
            else:
                return self._uncaptured(error)
        # Outside of the handler: the error's traceback holds the tensors of the failed capture
        gc.collect()
        torch.cuda.empty_cache()
        return self._capture(shape)

    def _uncaptured(self, error: Exception) -> Callable[[Chunk], Tensor]:
        if not self._reported:
            self._reported = True
            logger.warning(
                "%s cannot be captured as a CUDA graph and runs without: %s",
                self._mllm.architecture,
                reason(error),
            )
        return lambda chunk: self._relevance(chunk.to(self._mllm.device)).cpu()

    def _relevance(self, chunk: Chunk) -> Tensor:
        """(B,) float32 on the model's device."""
        prefixes = self._pool.batches(
            chunk.page_table,
            chunk.prefix_lengths,
            chunk.suffix_starts,
            chunk.suffix_lengths,
            chunk.shape.longest,
        )
        hidden = self._mllm.decoder.extend(
            chunk.input_ids, chunk.position_ids, chunk.last_rows, prefixes
        )
        return self._head.relevance(hidden, torch.arange(len(hidden), device=hidden.device))


class _Graph:
    """One chunk shape, captured as a CUDA graph: a run is one launch."""

    _WARM_UPS = 2  # libraries and Triton set themselves up in the first runs

    def __init__(self, runner: ChunkRunner, shape: Shape) -> None:
        self._chunk = Chunk(shape, runner._mllm.device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(self._WARM_UPS):
                runner._relevance(self._chunk)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            self._graph, pool=runner.graph_memory, capture_error_mode="thread_local"
        ):
            self._relevance = runner._relevance(self._chunk)

    def __call__(self, chunk: Chunk) -> Tensor:
        self._chunk.copy_(chunk)
        self._graph.replay()
        return self._relevance.cpu()


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()
