"""Tensor arguments: checked once, at the public operation, since the kernels see only addresses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef


def check_tensor(
    name: str,
    tensor: Tensor,
    *,
    shape: tuple[int | str, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device | None = None,
) -> None:
    """Checks one tensor argument and names it in what it raises.

    Args:
        name: the argument's name.
        tensor: the argument.
        shape: a size each: a number must match, a letter such as "N" may be anything.
        dtypes: the dtypes allowed.
        device: where the tensor must be; anywhere if None.

    Raises:
        TypeError: it is no tensor, or of another dtype.
        ValueError: it has another shape or is on another device.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must be {allowed}, got {str(tensor.dtype).removeprefix('torch.')}")
    matches = tensor.ndim == len(shape) and all(
        isinstance(expected, str) or expected == size
        for expected, size in zip(shape, tensor.shape, strict=True)
    )
    if not matches:
        expected = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} must have shape ({expected}), got {tuple(tensor.shape)}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on {device} like the other tensors, got {tensor.device}")


def inference_only(name: str, operation: CustomOpDef) -> None:
    """Has `operation` refuse a gradient, in words that name its reference, which has one."""

    def refuse(*_: Any) -> None:
        raise RuntimeError(
            f"{name} has no gradient: it is for inference; ragvl.ops.{name}_reference is "
            "differentiable"
        )

    operation.register_autograd(refuse)
