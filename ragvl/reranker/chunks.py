"""Suffixes packed into chunks of few shapes, and run."""

from __future__ import annotations

import gc
import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ragvl.forks import fork_safe
from ragvl.messages import reason
from ragvl.mllm import MLLM
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


@dataclass(frozen=True)
class Chunk:
    """Packed suffixes as tensors: R rows of tokens, room for B suffixes.

    Attributes:
        input_ids: (R,) int64.
        position_ids: (R,) int64.
        last_rows: (B,) int64, the row of each suffix's last token.
        page_table: (B, M) int32.
        prefix_lengths: (B,) int32.
        suffix_starts: (B,) int32.
        suffix_lengths: (B,) int32; 0 where there is room left.
    """

    input_ids: Tensor
    position_ids: Tensor
    last_rows: Tensor
    page_table: Tensor
    prefix_lengths: Tensor
    suffix_starts: Tensor
    suffix_lengths: Tensor

    @classmethod
    def pack(cls, suffixes: Sequence[Suffix], rows: int, slots: int, width: int) -> Chunk:
        """Packs `suffixes` into `rows` rows, `slots` suffixes and `width` pages a prefix."""
        ids: list[int] = []
        positions: list[int] = []
        starts: list[int] = []
        for suffix in suffixes:
            starts.append(len(ids))
            ids += suffix.input_ids
            dropped = len(suffix.prefix.input_ids) - suffix.shared
            first = suffix.prefix.next_position - dropped
            positions += range(first, first + len(suffix.input_ids))
        lengths = [len(suffix.input_ids) for suffix in suffixes]
        lasts = [start + length - 1 for start, length in zip(starts, lengths, strict=True)]
        table = torch.zeros(slots, width, dtype=torch.int32)
        table[: len(suffixes)] = page_table([suffix.prefix.pages for suffix in suffixes], width)
        return cls(
            _filled(ids, rows, torch.int64),
            _filled(positions, rows, torch.int64),
            _filled(lasts, slots, torch.int64),
            table,
            _filled([suffix.shared for suffix in suffixes], slots, torch.int32),
            _filled(starts, slots, torch.int32),
            _filled(lengths, slots, torch.int32),
        )

    def to(self, device: torch.device) -> Chunk:
        """The same on `device`."""
        return Chunk(*(tensor.to(device, non_blocking=True) for tensor in self._tensors()))

    def copy_(self, other: Chunk) -> None:
        """Takes over another chunk's values, of the same shape."""
        for own, new in zip(self._tensors(), other._tensors(), strict=True):
            own.copy_(new, non_blocking=True)

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, item.name) for item in fields(self)]


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
        self._graphs: dict[tuple[int, int, int], Callable[[Chunk], Tensor]] = {}
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
        longest = max(len(suffix.input_ids) for suffix in suffixes)
        pages = max(len(suffix.prefix.pages) for suffix in suffixes)
        rows = _round_up(sum(len(suffix.input_ids) for suffix in suffixes), self._row_step)
        if not self._on_gpu:
            chunk = Chunk.pack(suffixes, rows, _BLOCK_ROWS, pages)
            return self._relevance(chunk, longest)[: len(suffixes)]
        for suffix in suffixes:
            suffix.prefix.wait()
        # A graph for each shape: powers of two keep them few, and change no bit
        longest, pages = _power_of_two(longest), _power_of_two(pages)
        chunk = Chunk.pack(suffixes, rows, _BLOCK_ROWS, pages)
        shape = rows, pages, longest
        with self._lock:
            if shape not in self._graphs:
                self._graphs[shape] = self._capture(chunk.to(self._mllm.device), longest)
            run = self._graphs[shape]
            return run(chunk)[: len(suffixes)]

    def _capture(self, chunk: Chunk, max_suffix_length: int) -> Callable[[Chunk], Tensor]:
        """A run of this shape in one launch; one by one where the model cannot be captured.

        A graph keeps the memory of its activations. Where there is none for another one, the
        earlier go, and it is tried once more.
        """
        try:
            return _Graph(self, chunk, max_suffix_length)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                if not self._graphs:
                    raise
                logger.warning("CUDA graphs are captured again: memory ran out (%s)", reason(error))
                self._graphs.clear()
            else:
                return self._uncaptured(chunk, max_suffix_length, error)
        # Outside of the handler: the error's traceback holds the tensors of the failed capture
        gc.collect()
        torch.cuda.empty_cache()
        return self._capture(chunk, max_suffix_length)

    def _uncaptured(
        self, chunk: Chunk, max_suffix_length: int, error: Exception
    ) -> Callable[[Chunk], Tensor]:
        logger.warning(
            "%s cannot be captured as a CUDA graph and runs without: %s",
            self._mllm.architecture,
            reason(error),
        )
        device = chunk.input_ids.device
        return lambda chunk: self._relevance(chunk.to(device), max_suffix_length).cpu()

    def _relevance(self, chunk: Chunk, max_suffix_length: int) -> Tensor:
        """(B,) float32 on the model's device."""
        prefixes = self._pool.batches(
            chunk.page_table,
            chunk.prefix_lengths,
            chunk.suffix_starts,
            chunk.suffix_lengths,
            max_suffix_length,
        )
        hidden = self._mllm.decoder.extend(
            chunk.input_ids, chunk.position_ids, chunk.last_rows, prefixes
        )
        return self._head.relevance(hidden, torch.arange(len(hidden), device=hidden.device))


class _Graph:
    """One chunk shape, captured as a CUDA graph: a run is one launch."""

    _WARM_UPS = 2  # libraries and Triton set themselves up in the first runs

    def __init__(self, runner: ChunkRunner, chunk: Chunk, max_suffix_length: int) -> None:
        self._chunk = chunk
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(self._WARM_UPS):
                runner._relevance(chunk, max_suffix_length)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._relevance = runner._relevance(chunk, max_suffix_length)

    def __call__(self, chunk: Chunk) -> Tensor:
        self._chunk.copy_(chunk)
        self._graph.replay()
        return self._relevance.cpu()


def _filled(values: list[int], size: int, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values + [0] * (size - len(values)), dtype=dtype)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()
