"""A model's products on a CPU: a row's bits must not depend on the rows beside it."""

from __future__ import annotations

import functools
import logging
from typing import TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ragvl.mllm.experts import are_experts
from ragvl.mllm.quantized import is_plain
from ragvl.mllm.structure import decoder_layers
from ragvl.ops import bfloat16_linear
from ragvl.ops.bfloat16_linear import is_fast_here
from ragvl.runtime import is_slow_on_cpu
from ragvl.torch_context import default_torch_context

logger = logging.getLogger(__name__)

_BLOCK_ROWS = 32
_BLOCKS = (5, 20)  # that are tried together
_KEPT_APART: dict[tuple[object, ...], bool] = {}  # what was found, by a product's kind and size


class RowLinear(nn.Linear):
    """A product that `bfloat16_linear` computes where it can; the same weights.

    torch's own computes other dtypes, other devices, what wants a gradient and what is compiled.
    """

    stands_for = nn.Linear  # a model is named by its products as they were

    def forward(self, x: Tensor) -> Tensor:
        """(..., N) of x (..., K)."""
        tensors = (x, self.weight) if self.bias is None else (x, self.weight, self.bias)
        wants_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        is_ours = all(t.dtype == torch.bfloat16 and t.device.type == "cpu" for t in tensors)
        if wants_gradient or not is_ours or torch.compiler.is_compiling():
            return super().forward(x)
        return bfloat16_linear(x, self.weight, self.bias)


def is_plain_product(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is torch's own product or a `RowLinear`, of a weight that is plain."""
    return type(module) in (nn.Linear, RowLinear) and is_plain(module.weight)


def keep_rows_apart(model: PreTrainedModel) -> None:
    """Makes each plain product on a CPU a `RowLinear`, in place, where torch's own mix rows."""
    if model.device.type == "cpu" and is_fast_here():
        for module in model.modules():
            if is_plain_product(module):
                module.__class__ = RowLinear


@default_torch_context
def warn_of_mixed_rows(model: PreTrainedModel) -> None:
    """Says, once a dtype, that a score's last bits may depend on what is scored beside it."""
    if model.device.type != "cpu" or is_slow_on_cpu(model.dtype):
        return
    layer = decoder_layers(model)[0]
    in_tiles = model.dtype == torch.bfloat16 and is_fast_here()
    if in_tiles and any(map(are_experts, model.modules())):
        _warn_once(model.dtype)
        return
    products = [
        module
        for module in layer.modules()
        if is_plain_product(module) and not (in_tiles and type(module) is RowLinear)
    ]
    if not all(map(_keeps_rows_apart, products)):
        _warn_once(model.dtype)


def _keeps_rows_apart(product: nn.Linear) -> bool:
    """`_tried` once for each kind of product, size, dtype and number of threads."""
    weight = product.weight
    kind = (type(product), weight.shape, weight.dtype, torch.get_num_threads())
    if kind not in _KEPT_APART:
        _KEPT_APART[kind] = _tried(product)
    return _KEPT_APART[kind]


@torch.inference_mode()
def _tried(product: nn.Linear) -> bool:
    """Whether blocks of rows give the same bits together as alone."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn((max(_BLOCKS) * _BLOCK_ROWS, product.in_features), generator=draw)
    rows = rows.to(product.weight.dtype)
    alone = torch.cat([product(block) for block in rows.split(_BLOCK_ROWS)])
    sizes = [blocks * _BLOCK_ROWS for blocks in _BLOCKS]
    return all(torch.equal(product(rows[:size]), alone[:size]) for size in sizes)


@functools.cache
def _warn_once(dtype: torch.dtype) -> None:
    advice = (
        "; import ragvl before torch multiplies anything, or set MKL_CBWR=AUTO,STRICT"
        if dtype == torch.float32
        else ""
    )
    logger.warning(
        "products in %s mix rows on this CPU: a score may differ in its last bits by what is "
        "scored beside it%s",
        str(dtype).removeprefix("torch."),
        advice,
    )
