"""Names for a model's weights, every byte of them, and whether they may have changed since."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from ragvl.identity import UnnamedContentError, name_of

_PIECE_BYTES = 64 * 2**20  # hashed by one thread at a time; part of how names are made
_MAX_THREADS = 16
_SAMPLES = 8  # values of each tensor that are looked at in every call
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MAX_DEPTH = 8  # of what a tensor subclass holds
_PLAIN = (bool, int, float, str)
_IDLE_FIELDS = {"name_or_path", "training"}  # where it came from; and see `MLLM.environment`
_KNOWN_CODE = {"accelerate", "peft", "ragvl", "torch", "transformers"}


class UnnamedWeightsError(TypeError):
    """A weight whose values cannot be read, so that no name could cover them."""


# --- every byte ---------------------------------------------------------------------------------


def weights_name(weights: Mapping[str, Tensor]) -> str:
    """Names weights by every byte of their values, their dtypes, shapes and names.

    Where they are makes no difference. A tensor that has several names is read once. Pieces of
    64 MiB are hashed in a few threads; those on a GPU come over one piece a thread.

    Args:
        weights: tensors by name, as `saved_weights` gives.

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
        for (key, *_), found in zip(jobs, pool.map(_hash, jobs), strict=True):
            hashes[key] += found
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


# --- what a model holds -------------------------------------------------------------------------


def model_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model's tensors by name: those that are saved with it, and those that it computes itself.

    The first are its parameters and persistent buffers, the others buffers such as rotary
    frequencies, which follow from its configuration unless somebody changes them. What accelerate's
    hooks have offloaded to the CPU is taken from there.

    Raises:
        UnnamedWeightsError: a weight is offloaded to a disk.
    """
    saved: dict[str, Tensor] = {}
    computed: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        offloaded = _offloaded(module)
        for name, tensor in chain(module._parameters.items(), module._buffers.items()):
            if tensor is None:
                continue
            full = f"{path}.{name}" if path else name
            if tensor.device.type == "meta" and offloaded is not None:
                tensor = _in_memory(full, offloaded, name)
            group = computed if name in module._non_persistent_buffers_set else saved
            group[full] = tensor
    return saved, computed


def _in_memory(full: str, offloaded: Mapping[str, Tensor], name: str) -> Tensor:
    tensor = offloaded[name]
    if tensor is not offloaded[name]:  # read from a file each time, and it may be another then
        raise UnnamedWeightsError(
            f"weight {full!r} is offloaded to a disk: offload it to the CPU's memory instead"
        )
    return tensor


def _offloaded(module: nn.Module) -> Mapping[str, Tensor] | None:
    """A module's own weights where accelerate keeps them while they are not in use, if it does."""
    hook: Any = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        if (weights := getattr(one, "weights_map", None)) is not None:
            return weights
    return None


def adapters(model: nn.Module) -> list[tuple[Any, ...]]:
    """How PEFT's adapters stand: each layer's path, active and merged adapters and scaling."""
    return [(path, *_state(layer)) for path, layer in model.named_modules() if _is_adapted(layer)]


def _is_adapted(module: nn.Module) -> bool:
    return "_disable_adapters" in vars(module)


def _state(layer: nn.Module) -> tuple[Any, ...]:
    own = vars(layer)
    return (
        own["_disable_adapters"],
        str(own.get("_active_adapter")),
        str(own.get("merged_adapters")),
        str(own.get("scaling")),
    )


# --- what computes with them --------------------------------------------------------------------


def _plain_fields(module: nn.Module) -> dict[str, Any]:
    """The settings that a module holds itself, such as a norm's epsilon."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, _PLAIN) and not name.startswith("_") and name not in _IDLE_FIELDS
    }


def _outside_code(model: nn.Module) -> list[Any]:
    """What somebody has put around modules' own `forward`: hooks, or another one in its place.

    That of known libraries is left out: it follows from the configuration and the adapters.
    """
    functions = chain.from_iterable(
        (
            vars(module).get("forward"),
            *module._forward_hooks.values(),
            *module._forward_pre_hooks.values(),
        )
        for module in model.modules()
    )
    return [one for one in functions if one is not None and not _is_known(one)]


def _is_known(function: Any) -> bool:
    function = getattr(function, "func", function)  # of a partial
    origin = getattr(function, "__module__", None) or type(function).__module__
    return origin.partition(".")[0] in _KNOWN_CODE


# --- whether they may have changed --------------------------------------------------------------


class Watch:
    """Names a model's weights, and notices at next to no cost that they may have changed.

    What is looked at in every `look`: which modules, parameters and buffers there are, the modules'
    own settings, and hooks and other code put around them; where values lie, their shapes and their
    versions, which torch counts; the adapters that are active; the steps of optimizers that hold
    one of them; and 8 values of each tensor, for writes that torch does not count
    (`weight.data.mul_()`, a NumPy view). Not noticed is a write that torch does not count to none
    of those values.

    Args:
        model: the model.

    Attributes:
        model: the model.
        form: another object after the modules, their settings or hooks, the dtypes or the adapters
            in use have changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._stepped = False
        self._seen: _Snapshot | None = _Snapshot(model)
        self._seen_form = self._seen.form
        self.form = object()
        _watches.append(weakref.ref(self, _watches.remove))

    def look(self) -> bool:
        """Whether anything has changed since the last time."""
        stepped, self._stepped = self._stepped, False
        before = None if stepped else self._seen
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
        return self._now.saved_name

    @property
    def name(self) -> str:
        """Names everything: weights saved and computed, the modules, and how adapters stand.

        Code that somebody has put around modules cannot be named by what it does: then the name is
        this process's own, and another one while the code is.
        """
        now = self._now
        return name_of(
            "watched weights",
            now.saved_name,
            now.computed_name,
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

    def note_step(self, parameters: Iterable[Tensor]) -> None:
        """Notes that an optimizer has changed some of `parameters`."""
        seen = self._seen
        if seen is not None and not seen.ids.isdisjoint(map(id, parameters)):
            self._stepped = True

    def __getstate__(self) -> nn.Module:
        return self.model

    def __setstate__(self, model: nn.Module) -> None:
        self.__init__(model)  # type: ignore[misc]


_watches: list[weakref.ref[Watch]] = []


def _note_step(optimizer: Optimizer, *_: object) -> None:
    for reference in list(_watches):
        if (watch := reference()) is not None:
            watch.note_step(chain.from_iterable(g["params"] for g in optimizer.param_groups))


# torch's fused optimizers write to weights without counting it in their versions
register_optimizer_step_post_hook(_note_step)


class _Snapshot:
    """A model's tensors as they were at one time."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._children = [module._modules for module in self._modules]
        self._tables: list[dict[str, Any]] = []
        for module in self._modules:
            if _offloaded(module) is None:  # else hooks put other tensors there in every pass
                self._tables += (module._parameters, module._buffers)
        self._held = _values(self._tables)
        self._held_modules = _values(self._children)
        self.structure = [
            (path, type(module).__module__, type(module).__qualname__, _plain_fields(module))
            for path, module in model.named_modules()
        ]
        self._places = [
            (vars(module), name)
            for module, (*_, fields) in zip(self._modules, self.structure, strict=True)
            for name in (*fields, "forward")
        ]
        self._settings = self._look_at_settings()
        self._hooks: list[Mapping[Any, Any]] = []
        for module in self._modules:
            self._hooks += (module._forward_hooks, module._forward_pre_hooks)
        self._held_hooks = _values(self._hooks)
        self._outside = _outside_code(model)
        self.outside_name = uuid4().hex if self._outside else ""
        self._adapted = [module for module in self._modules if _is_adapted(module)]
        self._adapters = [_state(module) for module in self._adapted]
        self._saved, self._computed = model_tensors(model)
        self.ids = {id(tensor) for tensor in self._saved.values()}
        self.adapters = adapters(model)
        self._saved_marks = _Marks(self._saved)
        self._computed_marks = _Marks(self._computed)
        self._names: dict[str, str] = {}

    def is_current(self) -> bool:
        """Whether all is as it was, so far as a quick look can tell."""
        return (
            _same(self._held, _values(self._tables))
            and _same(self._held_modules, _values(self._children))
            and _same(self._settings, self._look_at_settings())
            and _same(self._held_hooks, _values(self._hooks))
            and self._adapters == [_state(module) for module in self._adapted]
            and self._saved_marks.are_current()
            and self._computed_marks.are_current()
        )

    def keep_names_of(self, before: _Snapshot) -> bool:
        """Takes over what is known of weights and code that are as they were; whether all is."""
        if _same(before._outside, self._outside):
            self.outside_name = before.outside_name
        all_same = (self.structure, self.adapters, self.outside_name) == (
            before.structure,
            before.adapters,
            before.outside_name,
        )
        for kind, old, new in (
            ("saved", before._saved, self._saved),
            ("computed", before._computed, self._computed),
        ):
            marks = before._saved_marks if kind == "saved" else before._computed_marks
            same = old.keys() == new.keys() and _same(list(old.values()), list(new.values()))
            same = same and marks.are_current()
            if same and kind in before._names:
                self._names[kind] = before._names[kind]
            all_same = all_same and same
        return all_same

    @property
    def form(self) -> tuple[object, ...]:
        """The modules and their settings, the adapters in use, each weight's dtype and device."""
        marks = self._saved_marks
        return self._modules, self.structure, self.outside_name, self.adapters, marks.kinds

    def _look_at_settings(self) -> list[Any]:
        return [own.get(name) for own, name in self._places]

    @property
    def saved_name(self) -> str:
        return self._name("saved", self._saved)

    @property
    def computed_name(self) -> str:
        return self._name("computed", self._computed)

    def _name(self, kind: str, tensors: Mapping[str, Tensor]) -> str:
        if kind not in self._names:
            self._names[kind] = weights_name(tensors)
        return self._names[kind]


class _Marks:
    """What tells, without reading them, that tensors were written to."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        unique = {id(plain): plain for tensor in tensors.values() for plain in _plain(tensor)}
        self._tensors = list(unique.values())
        self._counted = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self.kinds = [(tensor.dtype, tensor.device) for tensor in self._tensors]
        self._marks = self._look()
        self._views = _sample_views(self._tensors)
        self._samples = [torch.cat(views) for views in self._views]

    def are_current(self) -> bool:
        return self._marks == self._look() and all(
            torch.equal(torch.cat(views), sample)
            for views, sample in zip(self._views, self._samples, strict=True)
        )

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


def _values(tables: Iterable[Mapping[str, Any]]) -> list[Any]:
    return list(chain.from_iterable(table.values() for table in tables))


def _same(before: list[Any], now: list[Any]) -> bool:
    """Whether two lists hold the same objects."""
    return len(before) == len(now) and all(map(is_, before, now))
