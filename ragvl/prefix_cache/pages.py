"""Device memory for keys and values, in pages of a few tokens that any prefix may use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ragvl.mllm import KvLayout
from ragvl.ops import PrefixBatch

# Few enough that half an unused page is little, and one AVX-512 vector of keys
PAGE_TOKENS = 16

Compression = Literal["int8"]


def page_bytes(layout: KvLayout, compression: Compression | None = None) -> int:
    """Bytes of one page: keys and values of all layers, with their scales where compressed."""
    if compression is None:
        return PAGE_TOKENS * layout.bytes_per_token()
    numbers = 2 * layout.num_layers * layout.num_heads
    return PAGE_TOKENS * numbers * (layout.head_dim + 4)  # bytes, and a scale


def num_pages(num_tokens: int) -> int:
    """How many pages that many tokens take."""
    return -(-num_tokens // PAGE_TOKENS)


def pages_in_turn(lengths: Sequence[int], device: torch.device | None = None) -> list[Tensor]:
    """Pages (n,) int64 for prefixes of so many tokens, one after the other from page 0 on."""
    counts = [num_pages(length) for length in lengths]
    return list(torch.arange(sum(counts), device=device).split(counts))


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
        shape = (layout.num_layers, size, layout.num_heads)
        dim, tokens = layout.head_dim, PAGE_TOKENS
        self._tensors = {
            "keys": torch.empty(*shape, dim, tokens, dtype=dtype, device=device),
            "values": torch.empty(*shape, tokens, dim, dtype=dtype, device=device),
        }
        if compression is not None:
            for name in ("key_scales", "value_scales"):
                self._tensors[name] = torch.empty(*shape, tokens, device=device)
        self.device = device

    def write(self, layer: int, pages: Sequence[Tensor], keys: Tensor, values: Tensor) -> None:
        """Puts one layer's keys and values, each (B, G, T, D), into the pages of B prefixes.

        T is at least what the longest prefix has; a shorter one's pages end sooner.
        """
        width = num_pages(keys.shape[2])
        counts = torch.tensor([len(own) for own in pages])
        used = (torch.arange(width) < counts[:, None]).flatten().nonzero()[:, 0].to(self.device)
        targets = torch.cat(list(pages))
        for name, x in (("key", keys), ("value", values)):
            padded = F.pad(x, (0, 0, 0, width * PAGE_TOKENS - x.shape[2]))
            paged = padded.unflatten(2, (width, PAGE_TOKENS)).transpose(1, 2).flatten(0, 1)[used]
            if self.compression is not None:
                paged, scales = _compress(paged)
                self._tensors[f"{name}_scales"][layer].index_copy_(0, targets, scales)
            target = self._tensors[f"{name}s"][layer]
            target.index_copy_(0, targets, paged.mT if name == "key" else paged)

    def synchronize(self) -> None:
        """Waits until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def read(self, pages: Tensor) -> dict[str, Tensor]:
        """Copies of what `pages` hold, on the CPU, for `load`."""
        return {name: x[:, pages].cpu() for name, x in self._tensors.items()}

    def load(self, pages: Tensor, tensors: dict[str, Tensor]) -> None:
        """Puts back what `read` gave, into as many pages, of this pool or one like it.

        Raises:
            ValueError: the tensors come from a pool of another shape, dtype or compression.
        """
        for name, x in self._tensors.items():
            shape = (x.shape[0], len(pages), *x.shape[2:])
            given = tensors.get(name)
            if given is None or given.shape != shape or given.dtype != x.dtype:
                raise ValueError(f"{name}: expected {shape} {x.dtype}")
        for name, x in self._tensors.items():
            x.index_copy_(1, pages, tensors[name].to(self.device))

    def batches(
        self,
        page_table: Tensor,
        prefix_lengths: Tensor,
        suffix_starts: Tensor,
        suffix_lengths: Tensor,
        max_suffix_length: int,
    ) -> list[PrefixBatch]:
        """For each layer what `prefix_attention` takes; see `PrefixBatch`."""
        return [
            PrefixBatch(
                self._tensors["keys"][layer],
                self._tensors["values"][layer],
                page_table,
                prefix_lengths,
                suffix_starts,
                suffix_lengths,
                max_suffix_length,
                key_scales=self._scales("key_scales", layer),
                value_scales=self._scales("value_scales", layer),
            )
            for layer in range(self.layout.num_layers)
        ]

    def _scales(self, name: str, layer: int) -> Tensor | None:
        return None if self.compression is None else self._tensors[name][layer]


def page_table(pages: Sequence[Tensor], width: int) -> Tensor:
    """(B, width) int32 on the CPU: each prefix's pages in a row, then zeros."""
    table = torch.zeros(len(pages), width, dtype=torch.int32)
    for row, own in zip(table, pages, strict=True):
        row[: len(own)] = own
    return table


def _compress(x: Tensor) -> tuple[Tensor, Tensor]:
    """(n, G, T, D) int8 numbers, and (n, G, T) float32 scales: x = number * scale."""
    x = x.float()
    scales = x.abs().amax(-1) / 127
    scaled = x / scales.clamp_min(torch.finfo(torch.float32).tiny)[..., None]
    return scaled.round().to(torch.int8), scales
