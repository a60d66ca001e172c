"""Names for weights that cover every byte of their values."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from ragvl.identity import UnnamedContentError, name_of

_PIECE_BYTES = 64 * 2**20  # hashed by one thread at a time; part of how names are made
_MAX_THREADS = 16
_MAX_DEPTH = 8  # of what a tensor subclass holds

Hashes = list[bytes]  # of a tensor's pieces, in order


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
    plain: dict[int, tuple[Tensor, Hashes]] = {}

    def hashes_of(tensor: Tensor) -> Hashes:
        return plain.setdefault(id(tensor), (tensor, []))[1]

    described = {name: _described(name, tensor, hashes_of) for name, tensor in weights.items()}
    _hash_all(plain.values())  # fills the lists that stand in the descriptions
    return name_of("weights", described)


def _described(name: str, value: Any, hashes_of: Callable[[Tensor], Hashes], depth: int = 0) -> Any:
    """What `name_of` takes, with the hashes of each plain tensor in it."""
    if depth > _MAX_DEPTH:
        raise UnnamedWeightsError(f"weight {name!r} holds objects nested too deeply to be named")

    def inner(part: Any) -> Any:
        return _described(name, part, hashes_of, depth + 1)

    if isinstance(value, Tensor):
        return _described_tensor(name, value, hashes_of, inner)
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
    name: str, tensor: Tensor, hashes_of: Callable[[Tensor], Hashes], inner: Callable[[Any], Any]
) -> Any:
    if nn.parameter.is_lazy(tensor):
        raise UnnamedWeightsError(f"weight {name!r} has no values yet")
    kind = type(tensor)
    shape = (str(tensor.dtype), tuple(tensor.shape))
    if kind in (Tensor, nn.Parameter, nn.Buffer):
        _check_readable(name, tensor)
        return ["tensor", *shape, hashes_of(tensor)]
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


def _hash_all(tensors: Iterable[tuple[Tensor, Hashes]]) -> None:
    """Adds the hashes of each tensor's pieces to its list, in order."""
    jobs = [(part, hashes) for tensor, hashes in tensors for part in _parts(tensor)]
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        for (_, hashes), done in zip(
            jobs, pool.map(_hash, [part for part, _ in jobs]), strict=True
        ):
            hashes += done


def _parts(tensor: Tensor) -> Iterator[tuple[Tensor, range]]:
    """What a thread does at a time: a tensor, and where the pieces of it begin that are meant."""
    length = _piece_length(tensor)
    starts = range(0, max(tensor.numel(), 1), length)
    if tensor.is_contiguous():
        for start in starts:
            yield tensor, range(start, start + 1, length)
    else:  # its values are put in order first, so one thread takes it all
        yield tensor, starts


def _hash(part: tuple[Tensor, range]) -> Hashes:
    tensor, starts = part
    flat = tensor.detach().as_subclass(Tensor).resolve_conj().resolve_neg().reshape(-1)
    length = _piece_length(tensor)
    pieces = (flat[start : start + length].cpu() for start in starts)
    return [
        hashlib.sha256(piece.view(torch.uint8).numpy()).digest()  # type: ignore[arg-type]
        for piece in pieces
    ]


def _piece_length(tensor: Tensor) -> int:
    return max(1, _PIECE_BYTES // tensor.element_size())
