"""prefix_attention: suffixes attend to prefixes that lie in pages, without a copy of a prefix.

Reranking compares one question with many candidates. A candidate's prefix (its image and caption)
has been through the decoder before; its keys and values are kept in pages of fixed size. The
question's tokens, the suffix, attend to them where they lie, and to themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ragvl.ops.arguments import check_tensor, inference_only
from ragvl.ops.backends import KERNEL_DTYPES, Backend, choose, on_device
from ragvl.ops.compiled import run_compiled, view
from ragvl.ops.pages import PAGE_TENSORS, check_pages, compression_of


@dataclass(frozen=True)
class PrefixBatch:
    """One decoder layer's pages, and which pages and which rows belong to which candidate.

    Attributes:
        key_pages: (P, G, D, S) keys of S tokens and G heads a page; S is a multiple of 16. They are
            transposed, so that one coordinate of neighbouring keys is one vector. In int4 two
            numbers are a byte: (P, G, D / 2, S) uint8, see `prefix_write`.
        value_pages: (P, G, S, D), or in int4 (P, G, S, D / 2).
        page_table: (B, M) int32, the pages of each candidate's prefix, in order. What lies past its
            length is ignored.
        prefix_lengths: (B,) int32, how many tokens of the pages count: none, all, or any between.
        suffix_starts: (B,) int32, the row of k and v where each suffix begins. Suffixes do not
            overlap; rows may belong to none.
        suffix_lengths: (B,) int32; 0 for a candidate that only fills up a batch.
        max_suffix_length: no suffix is longer. A number on the host: a kernel's launch depends on
            it and must not wait for a GPU.
        last_only: only each suffix's last token has a query.
        key_scales: (P, G, S) float32 for int8 pages: key = page's number * scale. For int4 pages
            (P, G, D) float16: key = number * scale + minimum.
        value_scales: (P, G, S) float32 for int8 pages, float16 for int4 pages.
        key_minima: (P, G, D) float16 for int4 pages.
        value_minima: (P, G, S) float16, likewise.
    """

    key_pages: Tensor
    value_pages: Tensor
    page_table: Tensor
    prefix_lengths: Tensor
    suffix_starts: Tensor
    suffix_lengths: Tensor
    max_suffix_length: int
    last_only: bool = False
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None
    key_minima: Tensor | None = None
    value_minima: Tensor | None = None


_BATCH = tuple(field.name for field in fields(PrefixBatch))


def prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: PrefixBatch,
    *,
    scale: float,
    sliding_window: int | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """softmax(scale * q [prefix keys, k]ᵀ) [prefix values, v], causal, within each candidate.

    ```
    keys   = prefix keys, then the candidate's rows of k       # likewise the values
    p      = prefix_length + t                                 # position of suffix token t
    seen   = [j for j in positions if p - sliding_window < j <= p]
    out[t] = softmax(scale * keys[seen] @ q[t]) @ values[seen]
    ```

    Equivalent to, for each candidate, `scaled_dot_product_attention(q, keys, values, mask,
    scale=scale, enable_gqa=True)`. Query head h uses head h // (H // G) of the keys. All sums are
    in float32 (float64 for float64); in bfloat16 a CPU may round the softmax's weights to bfloat16,
    and divides by the sum of the rounded ones. There is no gradient: computing one raises
    RuntimeError; `prefix_attention_reference` has one. With the backends cpu and triton a row's
    result is bitwise the same in any batch and on any pages, and in float32 or on the CPU with
    `last_only` too. On a GPU float32 does without tensor cores: it is an oracle for the other
    dtypes, many times slower.

    Args:
        q: (S, H, D) float32, bfloat16, float16 or (reference only) float64, one query a row; with
            `prefix.last_only`, (B, H, D). Rows and heads of q, k and v may be strided; the kernels
            copy where elements within a head are not adjacent.
        k: (S, G, D) of q's dtype; H is a multiple of G.
        v: (S, G, D) of q's dtype.
        prefix: the cached part. Its pages have q's dtype, or are int8 with scales, or int4 (uint8)
            with scales and minima, of an even D of at least 8; all are contiguous.
        scale: what scores are multiplied by, as a rule 1 / sqrt(D).
        sliding_window: how many keys a token sees, its own among them; None for all.
        backend: "auto" for the fastest that is present, or a name; see `ragvl.ops.backends`.

    Returns:
        q's shape and dtype; zeros in rows of no suffix and, with `last_only`, for empty suffixes.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, layout or number; pages, lengths or rows that do not
            exist, or suffixes that overlap (of CPU tensors: a GPU's cannot be read without waiting,
            and must be right).
        BackendUnavailableError: the backend named is not available here.

    Source: the split softmax is FlashAttention's, arXiv 2205.14135; the pages are PagedAttention's,
    arXiv 2309.06180.

    Examples:
        >>> kv = torch.tensor([[1.0, 2.0]]).view(1, 1, 2)  # a suffix of one token, one head
        >>> pages = torch.zeros(1, 1, 16, 2)
        >>> pages[0, 0, 0] = torch.tensor([3.0, 4.0])
        >>> numbers = [torch.tensor([n], dtype=torch.int32) for n in (1, 0, 1)]
        >>> table = torch.zeros(1, 1, dtype=torch.int32)
        >>> prefix = PrefixBatch(pages.mT.contiguous(), pages, table, *numbers, 1)
        >>> prefix_attention(torch.zeros(1, 1, 2), kv, kv, prefix, scale=1.0)
        tensor([[[2., 3.]]])
    """
    _check(q, k, v, prefix, scale, sliding_window)
    batch = (getattr(prefix, name) for name in _BATCH)
    return _prefix_attention(q, k, v, *batch, scale, sliding_window, backend)


def prefix_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: PrefixBatch,
    *,
    scale: float,
    sliding_window: int | None = None,
) -> Tensor:
    """`prefix_attention` in plain PyTorch, differentiable: what every other backend must equal."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    kv_heads, page_size = prefix.value_pages.shape[1:3]
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    candidates = zip(
        prefix.page_table,
        prefix.prefix_lengths.tolist(),
        prefix.suffix_starts.tolist(),
        prefix.suffix_lengths.tolist(),
        strict=True,
    )
    for b, (table, cached, start, length) in enumerate(candidates):
        if length == 0:
            continue
        pages = table[: -(-cached // page_size)]
        suffix = slice(start, start + length)
        queried = slice(b, b + 1) if prefix.last_only else suffix
        # (G, D, tokens) and (G, tokens, D)
        past_keys = _page_values(prefix, "key", pages, -2, dtype)
        past_keys = past_keys.permute(1, 2, 0, 3).flatten(2)[..., :cached]
        past_values = _page_values(prefix, "value", pages, -1, dtype)
        past_values = past_values.transpose(0, 1).flatten(1, 2)[:, :cached]
        keys = torch.cat([past_keys, k[suffix].to(dtype).permute(1, 2, 0)], dim=2)
        values = torch.cat([past_values, v[suffix].to(dtype).transpose(0, 1)], dim=1)
        # (G, H / G, queried, D)
        queries = q[queried].to(dtype).unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)

        position = torch.arange(cached + length, device=q.device)
        own = position[-queries.shape[2] :, None]
        seen = position <= own
        if sliding_window is not None:
            seen &= position > own - sliding_window
        scores = scale * (queries @ keys[:, None])
        result = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values[:, None]
        out[queried] = result.permute(2, 0, 1, 3).flatten(1, 2).to(out.dtype)
    return out


def _page_values(
    prefix: PrefixBatch,
    kind: Literal["key", "value"],
    which: Tensor,
    head_dim: int,
    dtype: torch.dtype,
) -> Tensor:
    """Keys or values of some pages in `dtype`; `head_dim` is where a head's columns lie."""
    numbers, *others = (
        None if x is None else x[which]
        for x in (getattr(prefix, f"{kind}_{part}") for part in ("pages", "scales", "minima"))
    )
    assert numbers is not None
    compression = compression_of(numbers.dtype)
    if compression == "int4":
        numbers = torch.cat([numbers & 15, numbers >> 4], head_dim)
    # int4 has a scale for each column of a page's keys, all others one for each token
    shared = -1 if (compression, kind) == ("int4", "key") else head_dim
    scales, minima = (None if x is None else x.unsqueeze(shared).to(dtype) for x in others)
    values = numbers.to(dtype)
    values = values if scales is None else values * scales
    return values if minima is None else values + minima


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: PrefixBatch,
    scale: float,
    sliding_window: int | None,
) -> None:
    """Everything that can be checked without reading a tensor's values."""
    check_tensor("k", k, shape=("S", "G", "D"), dtypes=(*KERNEL_DTYPES, torch.float64))
    (rows, kv_heads, dim), dtype, device = k.shape, k.dtype, k.device
    if kv_heads == 0 or dim == 0:
        raise ValueError(f"k must have at least one head and one column, got {tuple(k.shape)}")
    check_tensor("v", v, shape=(rows, kv_heads, dim), dtypes=(dtype,), device=device)

    int32 = (torch.int32,)
    check_tensor("page_table", prefix.page_table, shape=("B", "M"), dtypes=int32, device=device)
    batch = prefix.page_table.shape[0]
    for name in ("prefix_lengths", "suffix_starts", "suffix_lengths"):
        check_tensor(name, getattr(prefix, name), shape=(batch,), dtypes=int32, device=device)
    num_queries = batch if prefix.last_only else rows
    check_tensor("q", q, shape=(num_queries, "H", dim), dtypes=(dtype,), device=device)
    if q.shape[1] == 0 or q.shape[1] % kv_heads:
        raise ValueError(f"q's {q.shape[1]} heads must be a multiple of the {kv_heads} heads of k")

    pages = {name: getattr(prefix, name) for name in PAGE_TENSORS}
    check_pages(pages, dtype=dtype, kv_heads=kv_heads, dim=dim, device=device)
    if prefix.max_suffix_length < 0:
        raise ValueError(f"max_suffix_length must not be negative, got {prefix.max_suffix_length}")
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window must be at least 1, or None for none: {sliding_window}")


@torch.library.custom_op(
    "ragvl::prefix_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor key_pages, Tensor value_pages, "
    "Tensor page_table, Tensor prefix_lengths, Tensor suffix_starts, Tensor suffix_lengths, "
    "SymInt max_suffix_length, bool last_only, Tensor? key_scales, Tensor? value_scales, "
    "Tensor? key_minima, Tensor? value_minima, float scale, SymInt? sliding_window, str backend) "
    "-> Tensor",
)
def _prefix_attention(q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> Tensor:
    """The operation as torch.compile sees it: one node, whatever backend runs it."""
    *tables, scale, sliding_window, backend = arguments
    # The kernels read rows and heads at any stride, elements within a head side by side, and whole
    # tables. (Pages and their scales are contiguous already.)
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    batch: list[Any] = [x.contiguous() if isinstance(x, Tensor) else x for x in tables]
    prefix = PrefixBatch(*batch)
    if q.device.type == "cpu":
        _check_values(prefix, k.shape[0])
    name, _ = choose("prefix_attention", backend, q.device, q.dtype)
    run = _IMPLEMENTATIONS[name]
    with on_device(q.device):
        return run(q, k, v, prefix, scale=scale, sliding_window=sliding_window)


@_prefix_attention.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape)


inference_only("prefix_attention", _prefix_attention)


def _check_values(prefix: PrefixBatch, rows: int) -> None:
    """The numbers that say which memory is read, of CPU tensors."""
    # NumPy's calls cost a fraction of torch's on arrays as small as these, once a layer.
    table, cached, starts, lengths = (
        tensor.numpy()
        for tensor in (
            prefix.page_table,
            prefix.prefix_lengths,
            prefix.suffix_starts,
            prefix.suffix_lengths,
        )
    )
    num_pages, _, page_size, _ = prefix.value_pages.shape
    wrong = (cached < 0) | (cached > table.shape[1] * page_size)
    if wrong.any():
        b = wrong.argmax()
        raise ValueError(
            f"prefix_lengths[{b}] is {cached[b]}, but {table.shape[1]} pages of {page_size} tokens "
            "have room for the prefix"
        )
    counts = page_size * np.arange(table.shape[1]) < cached[:, None]
    wrong = counts & ((table < 0) | (table >= num_pages))
    if wrong.any():
        b, m = np.unravel_index(wrong.argmax(), wrong.shape)
        raise ValueError(f"page_table[{b}, {m}] is {table[b, m]}, but there are {num_pages} pages")
    wrong = (lengths < 0) | (lengths > prefix.max_suffix_length)
    if wrong.any():
        b = wrong.argmax()
        raise ValueError(
            f"suffix_lengths[{b}] is {lengths[b]}, but max_suffix_length is "
            f"{prefix.max_suffix_length}"
        )
    wrong = (lengths > 0) & ((starts < 0) | (starts.astype(np.int64) + lengths > rows))
    if wrong.any():
        b = wrong.argmax()
        raise ValueError(
            f"suffix {b} begins at row {starts[b]} and has {lengths[b]} tokens, but k has {rows} "
            "rows"
        )
    order = np.flatnonzero(lengths)
    order = order[starts[order].argsort()]
    overlap = starts[order[1:]] < (starts + lengths)[order[:-1]]
    if overlap.any():
        first = overlap.argmax()
        raise ValueError(f"suffixes {order[first]} and {order[first + 1]} overlap")


def _compiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: PrefixBatch,
    *,
    scale: float,
    sliding_window: int | None,
) -> Tensor:
    """csrc/prefix_attention.cpp."""
    out = q.new_zeros(q.shape)
    (batch, table_width), (_, kv_heads, page_size, _) = (
        prefix.page_table.shape,
        prefix.value_pages.shape,
    )
    run_compiled(
        "prefix_attention",
        q.device,
        threads=batch * kv_heads,
        q=view(q),
        k=view(k),
        v=view(v),
        **{name: getattr(prefix, name) for name in PAGE_TENSORS},
        page_table=prefix.page_table,
        prefix_lengths=prefix.prefix_lengths,
        suffix_starts=prefix.suffix_starts,
        suffix_lengths=prefix.suffix_lengths,
        out=out,
        batch=batch,
        heads=q.shape[1],
        kv_heads=kv_heads,
        dim=q.shape[2],
        page_size=page_size,
        table_width=table_width,
        sliding_window=sliding_window or 1 << 62,
        scale=scale,
        last_only=prefix.last_only,
        dtype=q.dtype,
    )
    return out


def _triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: PrefixBatch,
    *,
    scale: float,
    sliding_window: int | None,
) -> Tensor:
    """kernels/prefix_attention.py, imported where it is used since Triton is optional."""
    from ragvl.kernels.prefix_attention import prefix_attention_fwd

    out = q.new_zeros(q.shape)
    prefix_attention_fwd(q, k, v, prefix, scale, sliding_window, out)
    return out


_IMPLEMENTATIONS = {
    "reference": prefix_attention_reference,
    "cpu": _compiled,
    "triton": _triton,
}
