"""How pages hold keys and values: as they are, or compressed to int8 or int4.

The dtype of the pages says which: the model's own, int8, or uint8, of which each byte holds two
numbers of four bits. Beside compressed numbers lies what they are multiplied by, and in int4 what
is added then:

    int8: x = number * scale                 # a scale for each token and head, keys and values
    int4: x = number * scale + minimum       # of keys for each channel of a page, over its tokens;
                                             # of values for each token and head

A byte of int4 has dimension i of a head in its low half and dimension i + D / 2 in its high half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ragvl.compression import Compression
from ragvl.ops.arguments import check_tensor

PAGE_TENSORS = (
    *("key_pages", "value_pages", "key_scales", "value_scales"),
    *("key_minima", "value_minima"),
)
"""What pages of one form or another consist of, as the operations' arguments are named."""

SMALLEST_INT4_DIM = 8  # below, scales and minima take more than numbers

_DTYPES: dict[Compression, torch.dtype] = {"int8": torch.int8, "int4": torch.uint8}


class PageTensor(NamedTuple):
    """One tensor of pages.

    Attributes:
        shape: of one page.
        dtype: of its elements.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of one page."""
        return math.prod(self.shape) * self.dtype.itemsize


@cache
def page_tensors(
    compression: Compression | None, dtype: torch.dtype, kv_heads: int, dim: int, tokens: int
) -> Mapping[str, PageTensor]:
    """What one layer's pages consist of, by the names of `prefix_write`'s arguments.

    Args:
        compression: of the numbers; None for none.
        dtype: of keys and values that are not compressed.
        kv_heads: G, heads of keys and values.
        dim: D, columns of a head.
        tokens: S, of a page.

    Raises:
        ValueError: the heads are none that int4 can hold.
    """
    held, columns = _held(compression, dtype), _columns(compression, dim)
    tensors = {
        "key_pages": PageTensor((kv_heads, columns, tokens), held),
        "value_pages": PageTensor((kv_heads, tokens, columns), held),
    }
    if compression == "int8":
        scales = PageTensor((kv_heads, tokens), torch.float32)
        tensors |= {"key_scales": scales, "value_scales": scales}
    if compression == "int4":
        of_channels = PageTensor((kv_heads, dim), torch.float16)
        of_tokens = PageTensor((kv_heads, tokens), torch.float16)
        tensors |= {"key_scales": of_channels, "value_scales": of_tokens}
        tensors |= {"key_minima": of_channels, "value_minima": of_tokens}
    return MappingProxyType(tensors)


def compression_of(pages: torch.dtype) -> Compression | None:
    """What pages of a dtype are compressed to; None for a model's own dtype."""
    return next((name for name, dtype in _DTYPES.items() if dtype == pages), None)


def check_pages(
    tensors: Mapping[str, Tensor | None],
    *,
    dtype: torch.dtype,
    kv_heads: int,
    dim: int,
    device: torch.device,
) -> None:
    """Checks all tensors of a layer's pages.

    Args:
        tensors: every tensor that some pages have, by name; None for one that is absent.
        dtype: of keys and values that are not compressed.
        kv_heads: their heads.
        dim: columns of a head.
        device: where they are.

    Raises:
        TypeError: one is no tensor, or of another dtype.
        ValueError: one has another shape or is elsewhere, is not contiguous, is missing, or is
            given with pages that have none.
    """
    keys: Tensor = tensors["key_pages"]  # type: ignore[assignment]  # looked at next
    compression = compression_of(keys.dtype) if isinstance(keys, Tensor) else None
    columns = _columns(compression, dim)
    dtypes = (dtype, *_DTYPES.values())
    shape = "P", kv_heads, columns, "S"
    check_tensor("key_pages", keys, shape=shape, dtypes=dtypes, device=device)
    num_pages, _, _, tokens = keys.shape
    if tokens == 0 or tokens % 16:
        raise ValueError(f"a page must hold a multiple of 16 tokens, key_pages' hold {tokens}")
    parts = page_tensors(compression, dtype, kv_heads, dim, tokens)
    for name, tensor in tensors.items():
        if (tensor is None) == (name in parts):
            raise ValueError(f"{name} must be given with {_with(name)} pages, and only with them")
        if tensor is not None:
            part = parts[name]
            whole = num_pages, *part.shape
            check_tensor(name, tensor, shape=whole, dtypes=(part.dtype,), device=device)
            if not tensor.is_contiguous():
                raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")


def _held(compression: Compression | None, dtype: torch.dtype) -> torch.dtype:
    return dtype if compression is None else _DTYPES[compression]


def _columns(compression: Compression | None, dim: int) -> int:
    """How many elements of pages hold a head's columns."""
    if compression != "int4":
        return dim
    if dim % 2 or dim < SMALLEST_INT4_DIM:
        raise ValueError(
            f"int4 needs heads of an even number of columns, at least {SMALLEST_INT4_DIM}: these "
            f"have {dim}"
        )
    return dim // 2


def _with(name: str) -> str:
    """Which pages have a tensor of this name."""
    sizes = torch.float32, 1, SMALLEST_INT4_DIM, 16
    return " or ".join(form for form in _DTYPES if name in page_tensors(form, *sizes))
