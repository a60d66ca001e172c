"""prefix_write: a layer's keys and values of new prefixes go into the pages that hold them.

What `prefix_attention` reads later. A prefill calls it once a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ragvl.ops.arguments import check_tensor
from ragvl.ops.backends import KERNEL_DTYPES, Backend, choose, on_device
from ragvl.ops.compiled import run_compiled, view
from ragvl.ops.pages import PAGE_TENSORS, check_pages, compression_of

_LARGEST = 127  # number of int8
_STEPS = 15  # from the smallest number of int4 to the largest


class Arguments(NamedTuple):
    """Those of `prefix_write`, in the order of the registered operator."""

    k: Tensor
    v: Tensor
    key_pages: Tensor
    value_pages: Tensor
    page_table: Tensor
    prefix_lengths: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None
    key_minima: Tensor | None
    value_minima: Tensor | None


def prefix_write(
    k: Tensor,
    v: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    prefix_lengths: Tensor,
    *,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    key_minima: Tensor | None = None,
    value_minima: Tensor | None = None,
    backend: Backend = "auto",
) -> None:
    """key_pages[p, g, :, s] = k[b, g, t], and value_pages[p, g, s] = v[b, g, t].

    ```
    p, s = page_table[b, t // S], t % S                   # the page and the place of token t
    x    = k[b, g, t] if t < prefix_lengths[b] else 0     # to the end of the last page
    int8: scale  = max(abs(x)) / 127                      # of a token and head, in float32
          number = round(x / max(scale, tiny))            # half to even; tiny: the least normal
    int4: group  = of keys a page's tokens in one channel, of values a token's channels in one head
          minimum, scale = min(group), (max(group) - min(group)) / 15  # in float32, then float16
          number = clamp(round((x - minimum) / max(scale, tiny)), 0, 15)
          byte   = number of dimension i + 16 * number of dimension i + D / 2
    ```

    Equivalent to padding k and v to whole pages and assigning them to `key_pages[table].mT` and
    `value_pages[table]`. Every backend writes the same bits, whatever is written beside them; what
    lies in other pages stays. A group of int4 is what of it is there: a token past the prefix's
    length has no part in it. `number * scale + minimum` is within half a scale of x, beside what
    float16 rounds: 2^-11 of the minimum and of the group's width. Of a token or group that holds
    NaN or infinity, or in int4 what float16 does not hold, a scale or minimum is not finite.
    Nothing is differentiated.

    Args:
        k: (B, G, T, D) float32, bfloat16, float16 or (reference only) float64, of any strides; the
            kernels copy where the elements of a head are not adjacent.
        v: (B, G, T, D) of k's dtype.
        key_pages: (P, G, D, S), written to; contiguous, of k's dtype or int8, S a multiple of 16.
            uint8 (P, G, D / 2, S) is int4, for an even D of at least 8.
        value_pages: (P, G, S, D), or in int4 (P, G, S, D / 2), of the same dtype, likewise.
        page_table: (B, M) int32, each prefix's pages in order; no page comes twice. What lies past
            a prefix's length is ignored.
        prefix_lengths: (B,) int32, at most T.
        key_scales: written to; of int8 (P, G, S) float32, of int4 (P, G, D) float16; else None.
        value_scales: (P, G, S), likewise.
        key_minima: written to; of int4 (P, G, D) float16; else None.
        value_minima: (P, G, S), likewise.
        backend: "auto" for the fastest that is present, or a name; see `ragvl.ops.backends`.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or layout; pages that do not exist or come twice, or a
            wrong length (of CPU tensors: a GPU's cannot be read without waiting, and must be
            right).
        BackendUnavailableError: the backend named is not available here.

    Examples:
        >>> kv = torch.tensor([[3.0, 4.0]]).view(1, 1, 1, 2)  # one prefix of one token, one head
        >>> pages = torch.full((1, 1, 16, 2), torch.nan)
        >>> table, length = torch.zeros(1, 1).int(), torch.ones(1).int()
        >>> prefix_write(kv, kv, pages.mT.contiguous(), pages, table, length)
        >>> pages[0, 0, :3]
        tensor([[3., 4.],
                [0., 0.],
                [0., 0.]])
    """
    arguments = Arguments(
        *(k, v, key_pages, value_pages, page_table, prefix_lengths),
        *(key_scales, value_scales, key_minima, value_minima),
    )
    _check(arguments)
    _prefix_write(*arguments, backend)


def prefix_write_reference(
    k: Tensor,
    v: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    prefix_lengths: Tensor,
    *,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    key_minima: Tensor | None = None,
    value_minima: Tensor | None = None,
) -> None:
    """`prefix_write` in plain PyTorch: what every other backend must equal."""
    page_size, compression = value_pages.shape[2], compression_of(key_pages.dtype)
    rows = zip(k, v, page_table, prefix_lengths.tolist(), strict=True)
    for keys, values, table, length in rows:
        pages = table[: -(-length // page_size)]
        there = torch.arange(len(pages) * page_size, device=k.device) < length
        there = there.view(len(pages), 1, page_size, 1)
        for x, target, scales, minima, is_key in (
            (keys, key_pages, key_scales, key_minima, True),
            (values, value_pages, value_scales, value_minima, False),
        ):
            paged = x.new_zeros(len(x), len(pages) * page_size, x.shape[-1])
            paged[:, :length] = x[:, :length]
            paged = paged.unflatten(1, (len(pages), page_size)).transpose(0, 1)
            if compression == "int8":
                assert scales is not None
                paged, scales[pages] = _to_int8(paged)
            if compression == "int4":
                assert scales is not None and minima is not None
                # A token that is not there has no part in a group of keys
                paged = torch.where(there, paged, paged[:, :, :1]) if is_key else paged
                numbers, scales[pages], minima[pages] = _to_int4(paged, -2 if is_key else -1)
                paged = numbers.where(there, 0)
            target[pages] = paged.mT if is_key else paged


def _to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., D) int8 numbers, and (...) float32 scales: x is about number * scale."""
    x = x.float()
    scales = x.abs().amax(-1) / _LARGEST
    divisor = scales.clamp_min(torch.finfo(torch.float32).tiny)
    return (x / divisor[..., None]).round().to(torch.int8), scales


def _to_int4(x: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers (..., D / 2) uint8, two in each, and the scales and minima of groups in float16.

    x (..., D) is about number * scale + minimum; a group lies along dimension `group` of x.
    """
    x = x.float()
    # + 0.0: of two zeros the one without a sign, whichever comes first
    least, largest = x.amin(group, keepdim=True) + 0.0, x.amax(group, keepdim=True) + 0.0
    scales, minima = ((largest - least) / _STEPS).half(), least.half()
    divisor = scales.float().clamp_min(torch.finfo(torch.float32).tiny)
    numbers = ((x - minima.float()) / divisor).clamp(0, _STEPS).round()
    low, high = numbers.to(torch.uint8).chunk(2, dim=-1)
    return low | high << 4, scales.squeeze(group), minima.squeeze(group)


def _check(a: Arguments) -> None:
    """Everything that can be checked without reading a tensor's values."""
    check_tensor("k", a.k, shape=("B", "G", "T", "D"), dtypes=(*KERNEL_DTYPES, torch.float64))
    batch, kv_heads, _, dim = a.k.shape
    if kv_heads == 0 or dim == 0:
        raise ValueError(f"k must have at least one head and one column, got {tuple(a.k.shape)}")
    check = partial(check_tensor, device=a.k.device)
    check("v", a.v, shape=tuple(a.k.shape), dtypes=(a.k.dtype,))
    check("page_table", a.page_table, shape=(batch, "M"), dtypes=(torch.int32,))
    check("prefix_lengths", a.prefix_lengths, shape=(batch,), dtypes=(torch.int32,))

    pages = {name: getattr(a, name) for name in PAGE_TENSORS}
    check_pages(pages, dtype=a.k.dtype, kv_heads=kv_heads, dim=dim, device=a.k.device)


def _run(*inputs: Any) -> None:
    """The operation as torch.compile sees it: one node, whatever backend runs it."""
    a, backend = Arguments(*inputs[:-1]), inputs[-1]
    if a.k.device.type == "cpu":
        _check_values(a)
    # The kernels read prefixes, heads and tokens at any stride, elements within a head side by side
    k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (a.k, a.v))
    a = a._replace(
        k=k,
        v=v,
        page_table=a.page_table.contiguous(),
        prefix_lengths=a.prefix_lengths.contiguous(),
    )
    name, _ = choose("prefix_write", backend, k.device, k.dtype)
    with on_device(k.device):
        _IMPLEMENTATIONS[name](a)


# `torch.library.custom_op` would add 40 us to each call of an operation that writes into its
# arguments, more than the rest of it takes, once a layer in every prefill.
torch.library.define(
    "ragvl::prefix_write",
    "(Tensor k, Tensor v, Tensor(a!) key_pages, Tensor(b!) value_pages, Tensor page_table, "
    "Tensor prefix_lengths, Tensor(c!)? key_scales, Tensor(d!)? value_scales, "
    "Tensor(e!)? key_minima, Tensor(f!)? value_minima, str backend) -> ()",
)
torch.library.impl("ragvl::prefix_write", "default", _run)
torch.library.register_fake("ragvl::prefix_write", lambda *_: None)
_prefix_write = torch.ops.ragvl.prefix_write.default


def _check_values(a: Arguments) -> None:
    """The numbers that say which memory is written, of CPU tensors."""
    table, lengths, tokens = a.page_table.numpy(), a.prefix_lengths.numpy(), a.k.shape[2]
    num_pages, _, page_size, _ = a.value_pages.shape
    wrong = (lengths < 0) | (lengths > min(tokens, table.shape[1] * page_size))
    if wrong.any():
        b = wrong.argmax()
        raise ValueError(
            f"prefix_lengths[{b}] is {lengths[b]}, but k has {tokens} tokens and "
            f"{table.shape[1]} pages of {page_size} tokens have room for them"
        )
    used = table[page_size * np.arange(table.shape[1]) < lengths[:, None]]
    wrong = (used < 0) | (used >= num_pages)
    if wrong.any():
        raise ValueError(f"page_table names page {used[wrong][0]}, but there are {num_pages} pages")
    if len(np.unique(used)) < len(used):
        raise ValueError("page_table names a page twice: two prefixes would be written into it")


def _reference(a: Arguments) -> None:
    given = a._asdict()
    compressed = {name: given.pop(name) for name in PAGE_TENSORS[2:]}
    prefix_write_reference(*given.values(), **compressed)


def _compiled(a: Arguments) -> None:
    """csrc/prefix_write.cpp."""
    (batch, kv_heads, _, dim), (_, table_width) = a.k.shape, a.page_table.shape
    run_compiled(
        "prefix_write",
        a.k.device,
        threads=batch * table_width * kv_heads,
        **{**a._asdict(), "k": view(a.k), "v": view(a.v)},
        batch=batch,
        kv_heads=kv_heads,
        dim=dim,
        page_size=a.value_pages.shape[2],
        table_width=table_width,
        dtype=a.k.dtype,
    )


def _triton(a: Arguments) -> None:
    """kernels/prefix_write.py, imported where it is used since Triton is optional."""
    from ragvl.kernels.prefix_write import prefix_write_fwd

    prefix_write_fwd(*a)


_IMPLEMENTATIONS: dict[str, Callable[[Arguments], None]] = {
    "reference": _reference,
    "cpu": _compiled,
    "triton": _triton,
}
