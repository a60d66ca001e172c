"""States of layers that carry one, as the bytes that a prefix's first pages hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ragvl.mllm import LayerState, StateShape

_ALIGNMENT = 16  # bytes: a multiple of every dtype's size


class _Place(NamedTuple):
    """Where a tensor lies among a prefix's bytes."""

    tensor: StateShape
    begin: int
    end: int


class StateBytes:
    """How the states of all layers lie one after the other.

    Args:
        layers: of each layer, what a prefix's state is.

    Attributes:
        size: bytes of one prefix.
    """

    def __init__(self, layers: Sequence[Sequence[StateShape]]) -> None:
        self._layers: list[list[_Place]] = []
        end = 0
        for tensors in layers:
            places = []
            for tensor in tensors:
                begin = -(-end // _ALIGNMENT) * _ALIGNMENT
                end = begin + math.prod(tensor.shape) * tensor.dtype.itemsize
                places.append(_Place(tensor, begin, end))
            self._layers.append(places)
        self.size = end

    def join(self, states: Sequence[LayerState], size: int) -> Tensor:
        """(size,) uint8 on the states' device, which must be of one prefix: (1, ...) each."""
        pieces = []
        end = 0
        for places, state in zip(self._layers, states, strict=True):
            for (name, _, _), begin, after in places:
                x = state[name]
                pieces += [x.new_zeros(begin - end, dtype=torch.uint8)] if begin > end else []
                pieces.append(x.contiguous().flatten().view(torch.uint8))
                end = after
        pieces.append(pieces[0].new_zeros(size - end))
        return torch.cat(pieces)

    def span(self, layer: int) -> tuple[int, int]:
        """Where a layer's bytes begin and end."""
        places = self._layers[layer]
        return places[0].begin, places[-1].end

    def split(self, data: Tensor, layer: int, begin: int = 0) -> LayerState:
        """A layer's state (B, ...) from bytes (B, n) uint8 of B prefixes, which are not copied.

        Args:
            data: the bytes.
            layer: the layer's place among those that carry a state.
            begin: which of a prefix's bytes `data` begins with.
        """
        return {
            tensor.name: data[:, place - begin : end - begin]
            .view(tensor.dtype)
            .unflatten(1, tensor.shape)
            for tensor, place, end in self._layers[layer]
        }

    def named(self, data: Tensor) -> dict[str, Tensor]:
        """Every tensor of one prefix, from its bytes (n,) uint8, by names for a record."""
        return {
            f"states/{layer}/{name}": x[0]
            for layer in range(len(self._layers))
            for name, x in self.split(data[None], layer).items()
        }

    def from_named(self, tensors: Mapping[str, Tensor]) -> list[LayerState]:
        """The states that `named` gave.

        Raises:
            ValueError: one is not there, or has another shape or dtype.
        """
        states: list[LayerState] = []
        for layer, places in enumerate(self._layers):
            state = {}
            for (name, shape, dtype), _, _ in places:
                x = tensors.get(f"states/{layer}/{name}")
                if x is None or tuple(x.shape) != shape or x.dtype != dtype:
                    raise ValueError(f"states/{layer}/{name}: expected {shape} {dtype}")
                state[name] = x[None]
            states.append(state)
        return states
