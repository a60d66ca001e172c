"""Calls into the extension module `ragvl._C`, which knows addresses and sizes, but no tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ragvl.ops.backends import compiled


def run_compiled(
    operation: str, device: torch.device, *, threads: int | None = None, **fields: object
) -> None:
    """Runs csrc/<operation>.cpp, or for CUDA tensors csrc/<operation>.cu on the current stream.

    Args:
        operation: its name.
        device: where its tensors are.
        threads: how many at most, of a CPU; None for as many as torch uses.
        fields: those of the params struct in csrc/<operation>.h. Tensors and dtypes are passed as
            they are, None for a tensor that is absent. They are alive here until the launch, copies
            made for the call among them. A `View` is what `view` returns; its tensor is the
            caller's to keep.
    """
    values = {name: _value(field) for name, field in fields.items()}
    if device.type == "cpu":
        limit = torch.get_num_threads()
        threads = limit if threads is None else max(1, min(threads, limit))
        getattr(compiled(), f"{operation}_cpu")(threads, **values)
    else:
        stream = torch.cuda.current_stream(device).cuda_stream
        getattr(compiled(), f"{operation}_cuda")(stream, **values)


def view(tensor: Tensor) -> tuple[int, ...]:
    """A field of type `View`: the address, and the strides of all dimensions but the last."""
    return tensor.data_ptr(), *tensor.stride()[:-1]


def _value(field: object) -> object:
    if field is None:
        return 0
    if isinstance(field, Tensor):
        return field.data_ptr()
    return str(field).removeprefix("torch.") if isinstance(field, torch.dtype) else field
