"""Device memory for keys, values and states, in pages that any prefix may use.

A page has room for the keys and values of a few tokens. Where layers carry a state, whose size does
not depend on how many tokens a prefix has, its bytes lie in the prefix's first pages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ragvl.compression import Compression, page_tokens
from ragvl.mllm import KvLayout, KvShape, LayerState, WriteKv
from ragvl.ops import PrefixBatch, prefix_write
from ragvl.ops.pages import PageTensor, page_tensors
from ragvl.prefix_cache.states import StateBytes
from ragvl.prefix_cache.transfer import Transfer
from ragvl.runtime import to_device

PAGE_TOKENS = page_tokens(None)
"""Tokens of a page that is not compressed."""


def page_bytes(layout: KvLayout, compression: Compression | None = None) -> int:
    """Bytes of one page: keys and values of all layers, with what their compression needs.

    Raises:
        ValueError: `compression` has no place for the model's heads.
    """
    return sum(
        part.nbytes
        for shape in layout.shapes
        for part in _parts(layout, shape, compression).values()
    )


def num_pages(num_tokens: int, state_pages: int = 0, compression: Compression | None = None) -> int:
    """How many pages a prefix of that many tokens takes, with those of its states."""
    return state_pages + -(-num_tokens // page_tokens(compression))


def num_state_pages(layout: KvLayout, compression: Compression | None = None) -> int:
    """How many pages the states of one prefix take; they are never compressed."""
    shape, places = next(iter(_by_shape(layout.shapes).items()))
    numbers = _parts(layout, shape, compression)["key_pages"]
    room = 2 * len(places) * numbers.nbytes
    return -(-StateBytes(layout.states).size // room)


def pages_in_turn(
    lengths: Sequence[int], state_pages: int = 0, compression: Compression | None = None
) -> list[list[int]]:
    """Pages for prefixes of so many tokens, one after the other from page 0 on."""
    counts = [num_pages(length, state_pages, compression) for length in lengths]
    return [
        list(range(end - count, end)) for count, end in zip(counts, accumulate(counts), strict=True)
    ]


def _parts(
    layout: KvLayout, shape: KvShape, compression: Compression | None
) -> Mapping[str, PageTensor]:
    """What the pages of a layer consist of."""
    return page_tensors(compression, layout.dtype, *shape, page_tokens(compression))


class _Layer(NamedTuple):
    """One layer's pages, as `prefix_write` and `prefix_attention` take them."""

    key_pages: Tensor
    value_pages: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None
    key_minima: Tensor | None = None
    value_minima: Tensor | None = None


class PagePool:
    """A fixed number of pages, by their numbers; which are in use is the caller's to know.

    A prefix's pages are those of its states, then those of its keys and values, which are laid out
    as `prefix_attention` reads them.

    Args:
        layout: what a token takes.
        size: how many pages; they are reserved at once. On a CPU the system lends the memory only
            as it is first written to.
        device: where.
        compression: "int8" keeps each number in a byte, "int4" in half a byte, with what they are
            of; see `prefix_write`. None keeps the decoder's own dtype. States are kept as they are.

    Attributes:
        state_pages: how many of a prefix's pages hold its states.

    Raises:
        ValueError: `compression` has no place for the model's heads.
    """

    def __init__(
        self,
        layout: KvLayout,
        size: int,
        device: torch.device,
        compression: Compression | None = None,
    ) -> None:
        self.layout = layout
        self.size = size
        self.compression = compression
        self.state_pages = num_state_pages(layout, compression)
        self._tensors: dict[str, Tensor] = {}
        layers: dict[int, _Layer] = {}
        for group, (shape, places) in enumerate(_by_shape(layout.shapes).items()):
            parts = dict(_parts(layout, shape, compression))
            numbers = parts.pop("key_pages"), parts.pop("value_pages")
            memory = torch.empty(
                *(2, len(places), size, math.prod(numbers[0].shape)),
                dtype=numbers[0].dtype,
                device=device,
            )
            if not group:
                # (2 L, P, bytes): what a page has of each layer's keys, then of its values
                self._bytes = memory.view(torch.uint8).flatten(0, 1)
            tensors = {
                name: part.view(len(places), size, *of_a_page.shape)
                for name, part, of_a_page in zip(("keys", "values"), memory, numbers, strict=True)
            }
            for name, part in parts.items():
                shape_of_all = len(places), size, *part.shape
                tensors[name] = torch.empty(shape_of_all, dtype=part.dtype, device=device)
            for place, *held in zip(places, *tensors.values(), strict=True):
                layers[place] = _Layer(*held)
            suffix = f"/{group}" if group else ""
            self._tensors |= {f"{name}{suffix}": x for name, x in tensors.items()}
        self._layers = [layers[place] for place in range(len(layout.shapes))]
        self._states = StateBytes(layout.states)
        self.device = device
        self._transfer = Transfer(device)

    def num_pages(self, num_tokens: int) -> int:
        """How many pages a prefix of that many tokens takes, with those of its states."""
        return num_pages(num_tokens, self.state_pages, self.compression)

    def writer(self, pages: Sequence[Sequence[int]], lengths: Sequence[int]) -> WriteKv:
        """What a prefill calls to put each layer's keys and values into its prefixes' pages.

        The page numbers go to the device once, for all layers.

        Args:
            pages: of each of B prefixes.
            lengths: how many tokens each has; what is written after them is zero.
        """
        pages = [own[self.state_pages :] for own in pages]
        table = page_table(pages, max(map(len, pages)))
        numbers = torch.cat([table.flatten(), torch.tensor(lengths, dtype=torch.int32)])
        numbers = to_device(numbers, self.device)
        table, prefix_lengths = numbers[: table.numel()].view(table.shape), numbers[table.numel() :]

        def write(place: int, keys: Tensor, values: Tensor) -> None:
            held = self._layers[place]._asdict()
            prefix_write(keys, values, page_table=table, prefix_lengths=prefix_lengths, **held)

        return write

    def write_states(self, pages: Sequence[int], states: Sequence[LayerState]) -> None:
        """Puts a prefix's states, of each layer that carries one, into its pages."""
        if self.state_pages:
            own = to_device(torch.tensor(pages[: self.state_pages]), self.device)
            self._bytes.index_copy_(1, own, self._paged(states))

    def states(self, page_table: Tensor, layer: int, prefixes: slice) -> LayerState:
        """The states of some prefixes, tensors (B, ...).

        Args:
            page_table: (B, M) the pages of each prefix, as in `batches`.
            layer: the layer's place among those that carry a state.
            prefixes: which rows of the table.
        """
        pieces, _, size = self._bytes.shape
        begin, end = self._states.span(layer)
        first, last = begin // (pieces * size), -(-end // (pieces * size))
        own = page_table[prefixes, first:last]
        gathered = self._bytes.index_select(1, own.flatten()).unflatten(1, own.shape)
        data = gathered.permute(1, 2, 0, 3).flatten(1)
        return self._states.split(data, layer, first * pieces * size)

    def _paged(self, states: Sequence[LayerState]) -> Tensor:
        """One prefix's states as they lie in its pages: (2 L, pages, bytes) uint8."""
        pieces, _, size = self._bytes.shape
        data = self._states.join(states, self.state_pages * pieces * size)
        return data.view(self.state_pages, pieces, size).transpose(0, 1)

    def synchronize(self) -> None:
        """Waits until nothing writes to any page."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def read(self, pages: Sequence[int]) -> dict[str, Tensor]:
        """Copies of what a prefix's pages hold, on the CPU, for `load`."""
        state_pages, pages = pages[: self.state_pages], pages[self.state_pages :]
        copies = {
            name: torch.empty((x.shape[0], len(pages), *x.shape[2:]), dtype=x.dtype)
            for name, x in self._tensors.items()
        }
        self._transfer.read([(x, copies[name]) for name, x in self._tensors.items()], pages)
        if not state_pages:
            return copies
        pieces, _, size = self._bytes.shape
        paged = torch.empty(pieces, len(state_pages), size, dtype=torch.uint8)
        self._transfer.read([(self._bytes, paged)], state_pages)
        return copies | self._states.named(paged.transpose(0, 1).flatten())

    def load(self, pages: Sequence[int], tensors: dict[str, Tensor]) -> torch.cuda.Event | None:
        """Puts back what `read` gave, into as many pages, of this pool or one like it.

        Returns:
            When the pages hold it, on a GPU, which goes on with other work meanwhile.

        Raises:
            ValueError: the tensors come from a pool of another shape, dtype or compression.
        """
        state_pages, pages = pages[: self.state_pages], pages[self.state_pages :]
        for name, x in self._tensors.items():
            shape = (x.shape[0], len(pages), *x.shape[2:])
            given = tensors.get(name)
            if given is None or given.shape != shape or given.dtype != x.dtype:
                raise ValueError(f"{name}: expected {shape} {x.dtype}")
        if state_pages:
            states = self._paged(self._states.from_named(tensors))
            self._transfer.load([(states.contiguous(), self._bytes)], state_pages)
        return self._transfer.load([(tensors[n], x) for n, x in self._tensors.items()], pages)

    def batches(
        self,
        page_table: Tensor,
        prefix_lengths: Tensor,
        suffix_starts: Tensor,
        suffix_lengths: Tensor,
        max_suffix_length: int,
    ) -> list[PrefixBatch | None]:
        """For each of the decoder's layers what `prefix_attention` takes; see `PrefixBatch`.

        None for a layer that carries a state. `page_table` names all pages of each prefix.
        """
        if self.state_pages:
            page_table = page_table[:, self.state_pages :].contiguous()
        batches = [
            PrefixBatch(
                page_table=page_table,
                prefix_lengths=prefix_lengths,
                suffix_starts=suffix_starts,
                suffix_lengths=suffix_lengths,
                max_suffix_length=max_suffix_length,
                **held._asdict(),
            )
            for held in self._layers
        ]
        return [None if source is None else batches[source] for source in self.layout.sources]


def _by_shape(shapes: Sequence[KvShape]) -> dict[KvShape, list[int]]:
    """The places of each shape."""
    places: dict[KvShape, list[int]] = {}
    for place, shape in enumerate(shapes):
        places.setdefault(shape, []).append(place)
    return places


def page_table(pages: Sequence[Sequence[int]], width: int) -> Tensor:
    """(B, width) int32 on the CPU: each prefix's pages in a row, then zeros."""
    table = np.zeros((len(pages), width), np.int32)
    for row, own in zip(table, pages, strict=True):
        row[: len(own)] = own
    return torch.from_numpy(table)
