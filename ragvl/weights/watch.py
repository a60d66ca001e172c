"""Notices, at next to no cost, that a model's weights may have changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain
from operator import is_
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from ragvl.identity import name_of
from ragvl.weights.model_state import (
    adapted_layers,
    adapter_state,
    model_tensors,
    offloaded_weights,
    outside_code,
    plain_fields,
)
from ragvl.weights.names import weights_name

_SAMPLES = 8  # values of each tensor that are looked at in every call
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Watch:
    """Names a model's weights, and notices that they may have changed.

    What is looked at in every `look`: which modules, parameters and buffers there are, the modules'
    own settings, and hooks and other code put around them; where values lie, their shapes and their
    versions, which torch counts; the adapters that are active; and 8 values of each tensor, for
    writes that torch does not count (`weight.data.mul_()`, a NumPy view, the step of a fused
    optimizer). Not noticed is a write that torch does not count to none of those values.

    Args:
        model: the model.

    Attributes:
        model: the model.
        form: another object after the modules, their settings or hooks, the dtypes or the adapters
            in use have changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._seen: _Snapshot | None = _Snapshot(model)
        self._seen_form = self._seen.form
        self.form = object()

    def look(self) -> bool:
        """Whether anything has changed since the last time."""
        before = self._seen
        if before is not None and before.is_current():
            return False
        new = _Snapshot(self.model)
        changed = before is None or not new.keep_names_of(before)
        if new.form != self._seen_form:
            self._seen_form, self.form = new.form, object()
        self._seen = new
        return changed

    def release(self) -> None:
        """Holds on to no weight until the next look, which takes all for changed."""
        self._seen = None

    @property
    def saved_name(self) -> str:
        """Names what is saved with the model; read to the last byte once, and after a change."""
        return self._now.saved.name

    @property
    def name(self) -> str:
        """Names everything: weights saved and computed, the modules, and how adapters stand.

        Code that somebody has put around modules cannot be named by what it does: then the name is
        this process's own, and another one while the code is.
        """
        now = self._now
        return name_of(
            "watched weights",
            now.saved.name,
            now.computed.name,
            now.adapters,
            now.structure,
            now.outside_name,
        )

    @property
    def _now(self) -> _Snapshot:
        if self._seen is None:
            self.look()
        assert self._seen is not None
        return self._seen

    def __getstate__(self) -> nn.Module:
        return self.model

    def __setstate__(self, model: nn.Module) -> None:
        self.__init__(model)  # type: ignore[misc]


class _Snapshot:
    """A model as it was at one time."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._tables: list[Mapping[Any, Any]] = []  # what must hold the same objects
        for module in self._modules:
            self._tables += (module._modules, module._forward_hooks, module._forward_pre_hooks)
            # Offloaded, hooks put other tensors there in every pass
            if offloaded_weights(module) is None:
                self._tables += (module._parameters, module._buffers)
        self._held = _values(self._tables)
        self.structure = [
            (path, kind.__module__, kind.__qualname__, plain_fields(module))
            for path, module in model.named_modules()
            for kind in [getattr(type(module), "stands_for", type(module))]
        ]
        self._places = [
            (vars(module), name)
            for module, (*_, fields) in zip(self._modules, self.structure, strict=True)
            for name in (*fields, "forward")
        ]
        self._settings = self._look_at_settings()
        self._outside = outside_code(model)
        self.outside_name = uuid4().hex if self._outside else ""
        self._adapted = adapted_layers(model)
        self.adapters = self._look_at_adapters()
        self.saved, self.computed = map(_Tensors, model_tensors(model))

    def is_current(self) -> bool:
        """Whether all is as it was, so far as a quick look can see."""
        return (
            _same(self._held, _values(self._tables))
            and _same(self._settings, self._look_at_settings())
            and self.adapters == self._look_at_adapters()
            and self.saved.are_current()
            and self.computed.are_current()
        )

    def keep_names_of(self, before: _Snapshot) -> bool:
        """Takes over what is known of weights and code that are as they were; whether all is."""
        if _same(before._outside, self._outside):
            self.outside_name = before.outside_name
        saved_same = self.saved.keep_name_of(before.saved)
        computed_same = self.computed.keep_name_of(before.computed)
        return saved_same and computed_same and self._rest == before._rest

    @property
    def form(self) -> tuple[object, ...]:
        """The modules and their settings, the adapters in use, each weight's dtype and device."""
        return self._modules, *self._rest, self.saved.kinds

    @property
    def _rest(self) -> tuple[object, ...]:
        return self.structure, self.adapters, self.outside_name

    def _look_at_settings(self) -> list[Any]:
        return [own.get(name) for own, name in self._places]

    def _look_at_adapters(self) -> list[tuple[Any, ...]]:
        return [(path, *adapter_state(layer)) for path, layer in self._adapted]


class _Tensors:
    """Named tensors, and what shows, without reading them, that they were written to."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self._named = named
        unique = {id(plain): plain for tensor in named.values() for plain in _plain(tensor)}
        self._tensors = list(unique.values())
        self._counted = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self.kinds = [(tensor.dtype, tensor.device) for tensor in self._tensors]
        self._marks = self._look()
        self._views = _sample_views(self._tensors)
        self._samples = [torch.cat(views) for views in self._views]

    @cached_property
    def name(self) -> str:
        """Names them; every byte is read for it."""
        return weights_name(self._named)

    def are_current(self) -> bool:
        """Whether nothing shows that they were written to."""
        return self._marks == self._look() and all(
            torch.equal(torch.cat(views), sample)
            for views, sample in zip(self._views, self._samples, strict=True)
        )

    def keep_name_of(self, before: _Tensors) -> bool:
        """Takes over the name of the same tensors, if they are as they were; whether they are."""
        same = (
            self._named.keys() == before._named.keys()
            and _same(list(self._named.values()), list(before._named.values()))
            and before.are_current()
        )
        if same and "name" in vars(before):
            self.name = before.name
        return same

    def _look(self) -> tuple[list[int], list[int], list[torch.Size]]:
        return (
            [tensor._version for tensor in self._counted],
            list(map(Tensor.data_ptr, self._tensors)),
            [tensor.shape for tensor in self._tensors],
        )


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that one is made of, as far as they can be looked at."""
    if hasattr(tensor, "__tensor_flatten__") and type(tensor) not in (Tensor, nn.Parameter):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from _plain(getattr(tensor, name))
    elif tensor.device.type != "meta" and tensor.layout == torch.strided:
        yield tensor


def _sample_views(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """A few evenly spaced values of each tensor, by the device and the size of a value."""
    groups: dict[tuple[torch.device, int], list[Tensor]] = {}
    for tensor in tensors:
        reach = 1 + sum(
            (n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
        size = tensor.element_size()
        if not tensor.numel() or size not in _INTEGERS:
            continue
        count = min(_SAMPLES, reach)
        step = reach // count
        start = tensor.storage_offset() + (step - 1) // 2
        view = tensor.detach().as_subclass(Tensor).as_strided((count,), (step,), start)
        # As whole numbers: NaN equals itself, and -0 is not 0
        groups.setdefault((tensor.device, size), []).append(view.view(_INTEGERS[size]))
    return list(groups.values())


def _values(tables: Iterable[Mapping[Any, Any]]) -> list[Any]:
    return list(chain.from_iterable(table.values() for table in tables))


def _same(before: list[Any], now: list[Any]) -> bool:
    """Whether two lists hold the same objects."""
    return len(before) == len(now) and all(map(is_, before, now))
