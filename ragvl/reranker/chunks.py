"""Suffixes packed into chunks of few shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch

from ragvl.mllm import ImageInputs
from ragvl.prefix_cache import CachedPrefix, page_table


@dataclass(frozen=True)
class Suffix:
    """What is left of a prompt behind its cached prefix.

    Attributes:
        index: of its pair.
        prefix: the cached prefix.
        shared: how many tokens of the prefix the prompt begins with; as a rule all.
        input_ids: the tokens after those.
        pictures: those among these tokens, in order.
        known: whether the prefix was there before the call.
    """

    index: int
    prefix: CachedPrefix
    shared: int
    input_ids: list[int]
    pictures: Sequence[ImageInputs] = ()
    known: bool = False

    @property
    def first_position(self) -> int:
        """Of its first token: it goes on where its prefix ends, or sooner if less is shared."""
        return self.prefix.next_position - len(self.prefix.input_ids) + self.shared


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
        firsts = [suffix.first_position for suffix in suffixes]
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
            (chunk.prefix_lengths, [suffix.shared - suffix.prefix.dropped for suffix in suffixes]),
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
