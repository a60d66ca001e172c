"""Layers that carry a state from token to token, and what they know of a prefix: that state.

Gated DeltaNet, state-space layers and short convolutions look at no earlier token. What they know
of those is a few tensors of fixed size, however long the prefix is. Their modules (mixers) stay
Hugging Face's own: they take their state from a cache and leave it there, so a sequence gets a
cache of its own. Which modules do so is seen by what they call, not by a list of models.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, LinearAttentionLayer

LayerState = dict[str, Tensor]
"""One layer's state of some sequences: tensors (B, ...) by names such as "conv_states/0"."""

_KINDS = ("conv_states", "recurrent_states")
_UPDATES = {"conv_states": "update_conv_state", "recurrent_states": "update_recurrent_state"}
_CACHE_ARGUMENTS = ("cache_params", "past_key_values")


class StateShape(NamedTuple):
    """One tensor of a layer's state of one sequence."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class Group(NamedTuple):
    """Suffixes whose tokens pass through a mixer together, each a sequence of T tokens.

    Attributes:
        slots: which suffixes.
        rows: (B, T) int64, the packed rows of their tokens, and any rows past their ends.
        targets: (B, T) int64, where each token's result goes: its row, or past all rows.
    """

    slots: slice
    rows: Tensor
    targets: Tensor


def alone(starts: Tensor, lengths: Tensor) -> list[Group]:
    """A group for each suffix, no token more: what it gives depends on no other.

    Of tensors on the CPU, for their numbers are looked at.
    """
    groups = []
    for slot, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        if length:
            rows = torch.arange(start, start + length)[None]
            groups.append(Group(slice(slot, slot + 1), rows, rows))
    return groups


def together(starts: Tensor, lengths: Tensor, num_rows: int, longest: int) -> list[Group]:
    """One group of one shape, whatever the suffixes are: nothing waits for a GPU."""
    # A single token would take another path, which rounds differently
    steps = torch.arange(max(longest, 2), device=starts.device)
    rows = starts.long()[:, None] + steps
    targets = rows.masked_fill(steps >= lengths[:, None], num_rows)
    return [Group(slice(None), rows.clamp(max=num_rows - 1), targets)]


class MixerPass(Protocol):
    """A forward pass that sees to states itself."""

    def mix(self, mixer: Mixer, hidden: Tensor) -> Tensor:
        """(B, T, D): what `mixer` gives for `hidden` (B, T, D)."""


class Mixer:
    """A module that carries a state, and what computes it.

    Args:
        module: the module.
        layer: the number of its layer.
        cache_argument: what its `forward` calls the cache.
        current: gives the pass that is under way in this thread, None for ordinary calls.
    """

    def __init__(
        self,
        module: nn.Module,
        layer: int,
        cache_argument: str,
        current: Callable[[], MixerPass | None],
    ) -> None:
        self.layer = layer
        self._own: Callable[..., Tensor] = module.forward
        self._cache_argument = cache_argument
        self._current = current
        self._last: _Product | None = None  # whose result is the mixer's, as last seen

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What stands in the place of the module's `forward`."""
        run = self._current()
        if run is None:
            return self._own(hidden_states, *args, **kwargs)
        return run.mix(self, hidden_states)

    def prefill(self, hidden: Tensor) -> tuple[Tensor, LayerState]:
        """What it gives for a sequence (1, T, D) from its first token on, and its state behind."""
        seen = _Seen()
        with _products(seen):
            output, state = self._run(hidden, {})
        self._last = seen.product if seen.output is output else None
        return output, state

    def extend(
        self, hidden: Tensor, groups: Sequence[Group], states: Callable[[slice], LayerState]
    ) -> Tensor:
        """(1, R, D): what it gives for packed suffixes (1, R, D) that go on from their states.

        Its products that read `hidden`, and one whose result is its own, are computed for all rows
        at once; what lies between, group by group.

        Args:
            hidden: the suffixes' rows, and any that belong to none.
            groups: of suffixes.
            states: gives the states of some of them.
        """
        last = self._last
        packed = _Packed(hidden, last)
        parts = []
        with _products(packed):
            for group in groups:
                output, _ = self._run(packed.enter(group), states(group.slots))
                if last is not None and output is not packed.left:
                    # It is no longer the mixer's result: an adapter was put around it, or turned on
                    self._last = None
                    return self.extend(hidden, groups, states)
                parts.append((group.targets.flatten(), output.flatten(0, 1)))
        width = parts[0][1].shape[-1]
        gathered = hidden.new_zeros(hidden.shape[1] + 1, width)  # and a row for what is none's
        for targets, output in parts:
            gathered[targets] = output
        gathered = gathered[None, :-1]
        return gathered if last is None else last.own(gathered)

    def _run(self, hidden: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        layer = LinearAttentionLayer()
        for name, x in state.items():
            kind, _, number = name.partition("/")
            getattr(layer, _UPDATES[kind])(x, int(number))
        # The module asks for its own layer's alone
        cache = Cache(layers=[layer] * (self.layer + 1))
        output = self._own(hidden, **{self._cache_argument: cache})
        return output, {
            f"{kind}/{number}": x
            for kind in _KINDS
            for number, x in getattr(layer, kind).items()
            if x is not None
        }


def wrap_mixers(layers: nn.ModuleList, current: Callable[[], MixerPass | None]) -> list[Mixer]:
    """The mixers in a decoder's layers, in order, each wrapped once however often this is done.

    Args:
        layers: the decoder's.
        current: gives the pass that is under way in this thread, None for ordinary calls.
    """
    mixers = []
    for number, layer in enumerate(layers):
        for module in layer.modules():
            kind: Any = type(module)
            argument = _cache_argument(kind)
            if argument is None:
                continue
            mixer = vars(module).get("forward")
            if not isinstance(mixer, Mixer):
                mixer = Mixer(module, number, argument, current)
                setattr(module, "forward", mixer)  # noqa: B010 (a method, to mypy)
            mixers.append(mixer)
            for child in module.children():
                if isinstance(child, nn.Linear) and not isinstance(child.forward, _Product):
                    setattr(child, "forward", _Product(child))  # noqa: B010
    return mixers


def shapes_of(states: Sequence[LayerState]) -> tuple[tuple[StateShape, ...], ...]:
    """What one sequence's states are, a layer each."""
    return tuple(
        tuple(StateShape(name, tuple(x.shape[1:]), x.dtype) for name, x in state.items())
        for state in states
    )


@functools.cache
def _cache_argument(kind: Any) -> str | None:
    """What a module's `forward` calls the cache that holds its state; None if it has none."""
    functions = [inspect.unwrap(x) for x in vars(kind).values() if inspect.isfunction(x)]
    if not any(set(_UPDATES.values()) & set(x.__code__.co_names) for x in functions):
        return None
    parameters = inspect.signature(kind.forward).parameters
    return next((name for name in _CACHE_ARGUMENTS if name in parameters), None)


# --- products -----------------------------------------------------------------------------------


class _Product:
    """A projection inside a mixer, which a pass over packed rows may compute for all at once."""

    def __init__(self, module: nn.Linear) -> None:
        self.own: Callable[[Tensor], Tensor] = module.forward

    def __call__(self, x: Tensor) -> Tensor:
        observer = _observer.get()
        return self.own(x) if observer is None else observer.multiply(self, x)


class _Seen:
    """Notes which product was the last."""

    product: _Product | None = None
    output: Tensor | None = None

    def multiply(self, product: _Product, x: Tensor) -> Tensor:
        self.product, self.output = product, product.own(x)
        return self.output


class _Packed:
    """Products of packed rows.

    Args:
        hidden: (1, R, D) the mixer's input.
        last: the product whose result is the mixer's; it is left to be computed at the end.

    Attributes:
        left: what stands for the result of `last`: its input.
    """

    def __init__(self, hidden: Tensor, last: _Product | None) -> None:
        self._hidden = hidden
        self._last = last
        self._results: dict[_Product, Tensor] = {}
        self._rows = self._part = hidden
        self.left: Tensor | None = None

    def enter(self, group: Group) -> Tensor:
        """The group's part of the input, (B, T, D)."""
        self._rows = group.rows
        self._part = self._taken(self._hidden)
        return self._part

    def multiply(self, product: _Product, x: Tensor) -> Tensor:
        if product is self._last:
            self.left = x
            return x
        if x is not self._part:
            return product.own(x)
        if product not in self._results:
            self._results[product] = product.own(self._hidden)
        return self._taken(self._results[product])

    def _taken(self, packed: Tensor) -> Tensor:
        return packed[0].index_select(0, self._rows.flatten()).unflatten(0, self._rows.shape)


_observer: ContextVar[_Seen | _Packed | None] = ContextVar("observer", default=None)


@contextmanager
def _products(observer: _Seen | _Packed) -> Iterator[None]:
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)
