"""`dtype="int8"`: a model's products in 8 bits, on a CPU that multiplies those fastest."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ragvl.mllm.products import is_plain_product
from ragvl.ops import Int8Weight, int8_linear
from ragvl.ops.int8_linear import slow_products_problem
from ragvl.runtime import multiplies_bfloat16, resolve_dtype

logger = logging.getLogger(__name__)

INT8 = "int8"
FASTEST = "fastest"

# Whether products of this thread round what they multiply
_rounds: ContextVar[bool] = ContextVar("rounds", default=True)


def resolve_model_dtype(dtype: str | torch.dtype, device: torch.device) -> tuple[torch.dtype, bool]:
    """The dtype that a model is loaded in, and whether its products are then rounded to 8 bits.

    Args:
        dtype: as `MLLM.from_pretrained` takes it.
        device: where the model will be.

    Raises:
        ValueError: it is unknown, or cannot be used there.
    """
    if dtype == FASTEST:
        dtype = _fastest(device)
    if dtype != INT8:
        try:
            return resolve_dtype(dtype, device), False
        except ValueError as error:
            raise ValueError(f"{error}, or of a model {INT8!r} or {FASTEST!r}") from None
    if device.type != "cpu":
        raise ValueError(
            f"dtype={INT8!r} is for a CPU: on {device} load a checkpoint whose weights are "
            "quantised, or give 'bfloat16'"
        )
    if (problem := slow_products_problem()) is not None:
        raise ValueError(f"dtype={INT8!r}: {problem}; give 'float32' or 'bfloat16'")
    return (torch.bfloat16 if multiplies_bfloat16() else torch.float32), True


def _fastest(device: torch.device) -> str:
    """What a model computes fastest with, by what the device has in hardware."""
    chosen, cost = "float32", "costs nothing"
    if device.type != "cpu" or multiplies_bfloat16():
        chosen, cost = "bfloat16", "rounds every number to 8 bits of mantissa"
    if device.type == "cpu" and slow_products_problem() is None:
        chosen, cost = INT8, "rounds what is multiplied to 8 bits"
    logger.warning("dtype=%r is %r here, which %s (docs/performance.md)", FASTEST, chosen, cost)
    return chosen


@contextmanager
def unrounded() -> Iterator[None]:
    """Products multiply what they are given by the weights as rounded, with no rounding of it.

    For comparing two ways to compute the same thing: a number that differs in its last bit may be
    rounded to another of 8 bits, so that small differences become large.
    """
    token = _rounds.set(False)
    try:
        yield
    finally:
        _rounds.reset(token)


class Int8Linear(nn.Linear):
    """A product with `int8_linear` in the place of one of floating point.

    Attributes:
        weight: (N, K) int8; times `scales` it is the nearest to the weight that was there.
        scales: (N,) float32.
        bias: (N,) as it was, or None.
    """

    scales: Tensor

    def __init__(self, product: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = product.in_features, product.out_features
        rounded = Int8Weight.of(product.weight.detach())
        self.weight = nn.Parameter(rounded.codes, requires_grad=False)
        self.register_buffer("scales", rounded.scales)
        self.bias = product.bias
        self._multiplied: tuple[tuple[object, ...], Int8Weight] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., N) of x (..., K)."""
        if _rounds.get():
            return int8_linear(x, self._current(), self.bias)
        weight = (self.weight * self.scales[:, None]).to(x.dtype)
        return F.linear(x, weight, self.bias)

    def _current(self) -> Int8Weight:
        """The weight as it is multiplied, made anew after it has changed."""
        version = self.weight.data_ptr(), self.weight._version, self.scales._version
        if self._multiplied is None or self._multiplied[0] != version:
            self._multiplied = version, Int8Weight(self.weight.detach(), self.scales)
        return self._multiplied[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_multiplied": None}  # the packed form is not copied


def round_products(model: PreTrainedModel) -> None:
    """Puts an `Int8Linear` in the place of each product of a model but its head's, in place.

    Left as they are: products of other classes, such as experts that are multiplied together, and
    those that choose experts, whose choice may turn on the last bit.

    Raises:
        ValueError: there is none.
    """
    rounded = 0
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, product in list(parent.named_children()):
            if is_plain_product(product) and product is not head and not hasattr(parent, "experts"):
                setattr(parent, name, Int8Linear(product))
                rounded += product.weight.numel()
    if not rounded:
        raise ValueError(
            f"dtype={INT8!r}: {type(model).__name__} has no product that can be rounded to 8 bits"
        )
    rows = [getattr(module, "weight", None) for module in (model.get_input_embeddings(), head)]
    left = sum(
        weight.numel()
        for weight in model.parameters()
        if weight.is_floating_point() and not any(weight is table for table in rows)
    )
    if left > rounded:
        logger.warning(
            "dtype=%r rounds %d of %d weights: the others are not multiplied by plain products",
            INT8,
            rounded,
            rounded + left,
        )


def is_rounded(model: nn.Module) -> bool:
    """Whether products of a model are in 8 bits."""
    return any(isinstance(module, Int8Linear) for module in model.modules())
