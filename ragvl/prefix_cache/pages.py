"""Device memory for keys and values, in pages of a few tokens that any prefix may use."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ragvl.mllm import KvLayout, KvShape, WriteKv
from ragvl.ops import PrefixBatch, prefix_write
from ragvl.prefix_cache.transfer import Transfer
from ragvl.runtime import to_device

# Few enough that half an unused page is little, and one AVX-512 vector of keys
PAGE_TOKENS = 16

Compression = Literal["int8"]


def page_bytes(layout: KvLayout, compression: Compression | None = None) -> int:
    """Bytes of one page: keys and values of all layers, with their scales where compressed."""
    if compression is None:
        return PAGE_TOKENS * layout.bytes_per_token()
    # of each head bytes, and a scale
    return 2 * PAGE_TOKENS * sum(heads * (head_dim + 4) for heads, head_dim in layout.shapes)


def num_pages(num_tokens: int) -> int:
    """How many pages that many tokens take."""
    return -(-num_tokens // PAGE_TOKENS)


def pages_in_turn(lengths: Sequence[int]) -> list[list[int]]:
    """Pages for prefixes of so many tokens, one after the other from page 0 on."""
    ends = accumulate(map(num_pages, lengths))
    return [list(range(end - num_pages(n), end)) for n, end in zip(lengths, ends, strict=True)]


class _Layer(NamedTuple):
    """One layer's pages, as `prefix_write` and `prefix_attention` take them."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None


class PagePool:
    """A fixed number of pages, by their numbers; which are in use is the caller's to know.

    What is in one is laid out as `prefix_attention` reads it.

    Args:
        layout: what a token takes.
        size: how many pages; they are reserved at once. On a CPU the system lends the memory only
            as it is first written to.
        device: where.
        compression: "int8" keeps each number in one byte, with a float32 scale for each
            token, head and layer; None keeps the decoder's own dtype.
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
        dtype = layout.dtype if compression is None else torch.int8
        self._tensors: dict[str, Tensor] = {}
        layers: dict[int, _Layer] = {}
        for group, (shape, places) in enumerate(_by_shape(layout.shapes).items()):
            heads, dim = shape
            pages = len(places), size, heads
            tensors = {
                "keys": torch.empty(*pages, dim, PAGE_TOKENS, dtype=dtype, device=device),
                "values": torch.empty(*pages, PAGE_TOKENS, dim, dtype=dtype, device=device),
            }
            if compression is not None:
                for name in ("key_scales", "value_scales"):
                    tensors[name] = torch.empty(*pages, PAGE_TOKENS, device=device)
            for place, *held in zip(places, *tensors.values(), strict=True):
                layers[place] = _Layer(*held)
            suffix = f"/{group}" if group else ""
            self._tensors |= {f"{name}{suffix}": x for name, x in tensors.items()}
        self._layers = [layers[place] for place in range(len(layout.shapes))]
        self.device = device
        self._transfer = Transfer(device)

    def writer(self, pages: Sequence[Sequence[int]], lengths: Sequence[int]) -> WriteKv:
        """What a prefill calls to put each layer's keys and values into its prefixes' pages.

        The page numbers go to the device once, for all layers.

        Args:
            pages: of each of B prefixes.
            lengths: how many tokens each has; what is written after them is zero.
        """
        table = page_table(pages, max(map(len, pages)))
        numbers = torch.cat([table.flatten(), torch.tensor(lengths, dtype=torch.int32)])
        numbers = to_device(numbers, self.device)
        table, prefix_lengths = numbers[: table.numel()].view(table.shape), numbers[table.numel() :]

        def write(place: int, keys: Tensor, values: Tensor) -> None:
            held = self._layers[place]
            prefix_write(
                keys,
                values,
                held.keys,
                held.values,
                table,
                prefix_lengths,
                key_scales=held.key_scales,
                value_scales=held.value_scales,
            )

        return write

    def synchronize(self) -> None:
        """Waits until nothing writes to any page."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def read(self, pages: Sequence[int]) -> dict[str, Tensor]:
        """Copies of what `pages` hold, on the CPU, for `load`."""
        copies = {
            name: torch.empty((x.shape[0], len(pages), *x.shape[2:]), dtype=x.dtype)
            for name, x in self._tensors.items()
        }
        self._transfer.read([(x, copies[name]) for name, x in self._tensors.items()], pages)
        return copies

    def load(self, pages: Sequence[int], tensors: dict[str, Tensor]) -> torch.cuda.Event | None:
        """Puts back what `read` gave, into as many pages, of this pool or one like it.

        Returns:
            When the pages hold it, on a GPU, which goes on with other work meanwhile.

        Raises:
            ValueError: the tensors come from a pool of another shape, dtype or compression.
        """
        for name, x in self._tensors.items():
            shape = (x.shape[0], len(pages), *x.shape[2:])
            given = tensors.get(name)
            if given is None or given.shape != shape or given.dtype != x.dtype:
                raise ValueError(f"{name}: expected {shape} {x.dtype}")
        return self._transfer.load([(tensors[n], x) for n, x in self._tensors.items()], pages)

    def batches(
        self,
        page_table: Tensor,
        prefix_lengths: Tensor,
        suffix_starts: Tensor,
        suffix_lengths: Tensor,
        max_suffix_length: int,
    ) -> list[PrefixBatch]:
        """For each of the decoder's layers what `prefix_attention` takes; see `PrefixBatch`."""
        batches = [
            PrefixBatch(
                held.keys,
                held.values,
                page_table,
                prefix_lengths,
                suffix_starts,
                suffix_lengths,
                max_suffix_length,
                key_scales=held.key_scales,
                value_scales=held.value_scales,
            )
            for held in self._layers
        ]
        return [batches[source] for source in self.layout.sources]


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
