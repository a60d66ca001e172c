"""A model's products on a CPU: a row's bits must not depend on the rows beside it."""

from __future__ import annotations

import functools
import logging
from typing import TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ragvl.mllm.structure import decoder_layers
from ragvl.ops import bfloat16_linear
from ragvl.ops.bfloat16_linear import is_fast_here
from ragvl.torch_context import default_torch_context

logger = logging.getLogger(__name__)

_BLOCK_ROWS = 32
_BLOCKS = (2, 5, 20)  # that are tried together


class RowLinear(nn.Linear):
    """A product in bfloat16 by `bfloat16_linear`, where no gradient is wanted; the same weights."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., N) of x (..., K)."""
        tensors = (x, self.weight) if self.bias is None else (x, self.weight, self.bias)
        wants_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if wants_gradient or any(t.dtype != torch.bfloat16 or t.is_cuda for t in tensors):
            return super().forward(x)
        return bfloat16_linear(x, self.weight, self.bias)


def is_plain_product(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is torch's own product or a `RowLinear`, and none that is quantised."""
    return type(module) in (nn.Linear, RowLinear)


def keep_rows_apart(model: PreTrainedModel) -> None:
    """Makes each product in bfloat16 a `RowLinear`, in place, where torch's own mix rows."""
    if model.device.type != "cpu" or model.dtype != torch.bfloat16 or not is_fast_here():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = RowLinear


@default_torch_context
def warn_of_mixed_rows(model: PreTrainedModel) -> None:
    """Says, once a dtype, that a score's last bits may depend on what is scored beside it."""
    if model.device.type != "cpu":
        return
    kinds = {
        (type(module), module.weight.shape): module
        for module in decoder_layers(model)[0].modules()
        if is_plain_product(module)
    }
    if any(_mixes_rows(product) for product in kinds.values()):
        _warn_once(model.dtype)


@torch.inference_mode()
def _mixes_rows(product: nn.Linear) -> bool:
    """Whether blocks of rows give other bits together than alone."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn((max(_BLOCKS) * _BLOCK_ROWS, product.in_features), generator=draw)
    rows = rows.to(product.weight.dtype)
    alone = torch.cat([product(block) for block in rows.split(_BLOCK_ROWS)])
    sizes = [blocks * _BLOCK_ROWS for blocks in _BLOCKS]
    return any(not torch.equal(product(rows[:size]), alone[:size]) for size in sizes)


@functools.cache
def _warn_once(dtype: torch.dtype) -> None:
    logger.warning(
        "products in %s mix rows on this CPU: a score may differ in its last bits by what is "
        "scored beside it. Import ragvl before torch multiplies anything, or set "
        "MKL_CBWR=AUTO,STRICT",
        str(dtype).removeprefix("torch."),
    )
