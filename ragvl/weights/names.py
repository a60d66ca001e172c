"""Names for weights that cover every byte of their values."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ragvl.identity import UnnamedContentError, name_of

_PIECE_BYTES = 64 * 2**20  # hashed by one thread at a time; part of how names are made
_MAX_THREADS = 16
_MAX_DEPTH = 8  # of what a tensor subclass holds


class UnnamedWeightsError(TypeError):
    """A weight whose values cannot be read, so that no name could cover them."""


def weights_name(weights: Mapping[str, Tensor]) -> str:
    """Names weights by every byte of their values, their dtypes, shapes and names.

    Where they are makes no difference. A tensor that has several names is read once. Pieces of
    64 MiB are hashed in a few threads; those on a GPU come over one piece a thread.

    Args:
        weights: tensors by name, as `model_tensors` gives.

    Raises:
        UnnamedWeightsError: a tensor has no values that can be read, such as one on the "meta"
            device, or is of a kind that is not known here; the message names it.
    """
    leaves: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> _Leaf:
        leaves[id(tensor)] = tensor
        return _Leaf(id(tensor))

    described = {name: _described(name, tensor, note) for name, tensor in weights.items()}
    hashes = _hash_all(leaves)
    return name_of("weights", _resolved(described, hashes))


@dataclass(frozen=True)
class _Leaf:
    """Stands for a plain tensor's hash in the description of a weight."""

    tensor: int


def _described(name: str, value: Any, note: Callable[[Tensor], _Leaf], depth: int = 0) -> Any:
    """What `name_of` takes, with a leaf for each plain tensor."""
    if depth > _MAX_DEPTH:
        raise UnnamedWeightsError(f"weight {name!r} holds objects nested too deeply to be named")

    def inner(part: Any) -> Any:
        return _described(name, part, note, depth + 1)

    if isinstance(value, Tensor):
        return _described_tensor(name, value, note, inner)
    if isinstance(value, torch.dtype | torch.layout | torch.device | torch.memory_format):
        return str(value)
    if isinstance(value, nn.Module):  # bitsandbytes' weights know the layer that they are in
        return ["module", type(value).__qualname__]
    if isinstance(value, list | tuple):
        return [inner(part) for part in value]
    if isinstance(value, Mapping):
        return [(inner(key), inner(part)) for key, part in value.items()]
    try:
        name_of("", value)
    except UnnamedContentError:
        if callable(value) or not hasattr(value, "__dict__"):
            raise UnnamedWeightsError(
                f"weight {name!r} holds a {type(value).__qualname__}, and what is in that is not "
                "known here"
            ) from None
        return [type(value).__qualname__, inner(vars(value))]
    return value


def _described_tensor(
    name: str, tensor: Tensor, note: Callable[[Tensor], _Leaf], inner: Callable[[Any], Any]
) -> Any:
    if nn.parameter.is_lazy(tensor):
        raise UnnamedWeightsError(f"weight {name!r} has no values yet")
    kind = type(tensor)
    shape = (str(tensor.dtype), tuple(tensor.shape))
    if kind in (Tensor, nn.Parameter, nn.Buffer):
        _check_readable(name, tensor)
        return ["tensor", *shape, note(tensor)]
    # A subclass, such as torchao's int8: what it is made of
    if hasattr(tensor, "__tensor_flatten__"):
        names, context = tensor.__tensor_flatten__()
        parts: Any = {part: getattr(tensor, part) for part in names}
    else:
        plain = tensor.detach().as_subclass(Tensor)
        parts, context = {"data": plain}, vars(tensor)
    return [kind.__qualname__, *shape, inner(parts), inner(context)]


def _check_readable(name: str, tensor: Tensor) -> None:
    if tensor.device.type == "meta":
        raise UnnamedWeightsError(
            f"weight {name!r} is on the 'meta' device and has no values: load the model whole, or "
            "offload it to the CPU with accelerate's hooks"
        )
    if tensor.layout != torch.strided or tensor.is_quantized:
        what = "quantized" if tensor.is_quantized else str(tensor.layout)
        raise UnnamedWeightsError(f"weight {name!r} is a {what} tensor: convert it to a plain one")


def _resolved(described: Any, hashes: Mapping[int, list[bytes]]) -> Any:
    if isinstance(described, _Leaf):
        return hashes[described.tensor]
    if isinstance(described, list | tuple):
        return [_resolved(part, hashes) for part in described]
    if isinstance(described, dict):
        return {name: _resolved(part, hashes) for name, part in described.items()}
    return described


def _hash_all(tensors: Mapping[int, Tensor]) -> dict[int, list[bytes]]:
    """The hashes of each tensor's pieces, in order."""
    jobs = [job for key, tensor in tensors.items() for job in _jobs(key, tensor)]
    hashes: dict[int, list[bytes]] = {key: [] for key in tensors}
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        for (key, *_), piece_hashes in zip(jobs, pool.map(_hash, jobs), strict=True):
            hashes[key] += piece_hashes
    return hashes


def _jobs(key: int, tensor: Tensor) -> Iterator[tuple[int, Tensor, range]]:
    """What a thread does at a time: a tensor, and where the pieces of it begin that are meant."""
    length = _piece_length(tensor)
    starts = range(0, max(tensor.numel(), 1), length)
    if tensor.is_contiguous():
        for start in starts:
            yield key, tensor, range(start, start + 1, length)
    else:  # its values are put in order first, so one thread takes it all
        yield key, tensor, starts


def _hash(job: tuple[int, Tensor, range]) -> list[bytes]:
    _, tensor, starts = job
    flat = tensor.detach().as_subclass(Tensor).resolve_conj().resolve_neg().reshape(-1)
    length = _piece_length(tensor)
    pieces = (flat[start : start + length].cpu() for start in starts)
    return [
        hashlib.sha256(piece.view(torch.uint8).numpy()).digest()  # type: ignore[arg-type]
        for piece in pieces
    ]


def _piece_length(tensor: Tensor) -> int:
    return max(1, _PIECE_BYTES // tensor.element_size())
