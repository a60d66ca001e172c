"""What a model's vision tower gives a forward pass, seen and replaced in one place.

Every model asks its own `get_image_features` for it, whose output has the model's own form. Here it
is named tensors: a path such as "pooler_output" or "deepstack_features/0" for each that a decoder
reads. How features of several pictures become those of one pass is learned by comparing (`Join`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ragvl.mllm.head import same
from ragvl.mllm.inputs import Features
from ragvl.model_files import UnsupportedModelError

# Of what a vision tower returns, the parts that no decoder reads, and the largest
_OF_ITSELF = "last_hidden_state"  # read where there is nothing else, as by Llama 4
_NOT_READ = (_OF_ITSELF, "hidden_states", "attentions")
_WRAPPED = "_ragvl_wrapped"  # marks a `get_image_features` that a `vision_pass` reaches


class TowerDone(Exception):
    """Leaves a forward pass of which only the vision tower's part is wanted."""


class VisionPass:
    """What the vision tower gives one forward pass.

    Args:
        given: features that take the tower's place; it does not run then.
        only: the pass ends with the tower, in a `TowerDone`.

    Attributes:
        requested: whether the model has asked for features.
    """

    def __init__(self, given: Features | None = None, *, only: bool = False) -> None:
        self.requested = False
        self._only = only
        self._output = None if given is None else SimpleNamespace(**_nested(given))

    def output(self, tower: Any, *args: Any, **kwargs: Any) -> Any:
        """What `get_image_features` returns; the tower runs once at most."""
        self.requested = True
        if self._output is None:
            self._output = tower(*args, **kwargs)
        if self._only:
            raise TowerDone
        return self._output

    @property
    def features(self) -> Features | None:
        """What the tower gave; None if it did not run."""
        return None if self._output is None else dict(_flat(self._output))


_current: ContextVar[VisionPass | None] = ContextVar("vision_pass", default=None)


@contextmanager
def vision_pass(given: Features | None = None, *, only: bool = False) -> Iterator[VisionPass]:
    """Sees, or with `given` replaces, what the vision tower gives a forward pass of this thread.

    One pass a block, of a model that `wrap_image_features` was called for. With `only` the block
    ends when the tower has run.
    """
    current = VisionPass(given, only=only)
    token = _current.set(current)
    try:
        with contextlib.suppress(TowerDone):
            yield current
    finally:
        _current.reset(token)


def wrap_image_features(base: Any) -> None:
    """Lets a `vision_pass` reach a model's `get_image_features`; once, however often it is called.

    Args:
        base: the model without its head.
    """
    tower = base.get_image_features
    if hasattr(tower, _WRAPPED):
        return

    @functools.wraps(tower)  # Hugging Face looks at the names of its arguments
    def get_image_features(*args: Any, **kwargs: Any) -> Any:
        current = _current.get()
        if current is None:
            return tower(*args, **kwargs)
        return current.output(tower, *args, **kwargs)

    setattr(get_image_features, _WRAPPED, True)
    base.get_image_features = get_image_features


# --- several pictures ---------------------------------------------------------------------------

# What joins features, part by part: "rows" concatenates tensors along their first dimension,
# "items" sequences that have an item for each picture (or several), "one" takes what is the same
# for all; tuples and dicts go on inside.
Join: TypeAlias = "str | tuple[Join, ...] | dict[str, Join]"


def learn_join(first: Features, second: Features, both: Features, tolerance: float) -> Join | None:
    """How two pictures' features become what the tower gives for both; None if in no way known.

    Args:
        first: of one picture alone.
        second: of another.
        both: of the two in one pass.
        tolerance: see `same`.
    """
    return _learn(_nested(first), _nested(second), _nested(both), tolerance)


def join_features(join: Join, features: Sequence[Features]) -> Features:
    """The features of pictures that stand in one pass, in this order, from those of each alone."""
    return dict(_flat(_joined(join, [_nested(one) for one in features])))


def _joined(join: Join, parts: Sequence[Any]) -> Any:
    match join:
        case "rows":
            return torch.cat(list(parts))
        case "items":
            return tuple(item for part in parts for item in part)
        case dict():
            return {
                name: _joined(one, [part[name] for part in parts]) for name, one in join.items()
            }
        case tuple():
            return tuple(_joined(one, [part[i] for part in parts]) for i, one in enumerate(join))
    return parts[0]


def _learn(first: Any, second: Any, both: Any, tolerance: float) -> Join | None:
    if isinstance(both, dict):
        if not first.keys() == second.keys() == both.keys():
            return None
        trios = {name: (first[name], second[name], both[name]) for name in both}
        named = {name: _learn(*trio, tolerance) for name, trio in trios.items()}
        known = {name: join for name, join in named.items() if join is not None}
        return known if len(known) == len(named) else None
    if isinstance(both, tuple) and len(both) == len(first) == len(second):
        items = [_learn(*trio, tolerance) for trio in zip(first, second, both, strict=True)]
        joins = tuple(join for join in items if join is not None)
        return joins if len(joins) == len(items) else None
    for join in ("rows", "items", "one"):
        with contextlib.suppress(RuntimeError, TypeError):  # of shapes, or kinds, that do not fit
            if _alike(_joined(join, [first, second]), both, tolerance):
                return join
    return None


def _alike(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two trees have the same tensors, within rounding."""
    one, other = dict(_flat(one)), dict(_flat(other))
    return one.keys() == other.keys() and all(
        one[path].shape == other[path].shape and same(one[path], other[path], tolerance)
        for path in other
    )


# --- paths --------------------------------------------------------------------------------------


def _flat(output: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested outputs and sequences that a decoder reads, by their paths."""
    if isinstance(output, Tensor):
        yield path, output
    elif isinstance(output, list | tuple):
        for i, item in enumerate(output):
            yield from _flat(item, f"{path}/{i}")
    elif isinstance(output, SimpleNamespace):
        yield from _flat(vars(output), path)
    elif isinstance(output, Mapping):  # as Hugging Face's outputs are
        read = [name for name in output if name not in _NOT_READ and output[name] is not None]
        if not read and _OF_ITSELF in output:
            read = [_OF_ITSELF]
        for name in read:
            yield from _flat(output[name], f"{path}/{name}" if path else name)
    elif isinstance(output, int):  # such as the layer that Granite Vision adds features before
        yield path, torch.tensor(output)
    elif output is not None:
        raise UnsupportedModelError(f"its vision tower gives a {type(output).__name__}")


def _nested(features: Features) -> dict[str, Any]:
    """Turns paths back into nested tuples under names."""
    tree: dict[str, Any] = {}
    for path, x in features.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = x
    return {name: _as_tuples(node) for name, node in tree.items()}


def _as_tuples(node: Any) -> Any:
    if isinstance(node, Tensor):
        return node if node.ndim or node.is_floating_point() else int(node)
    return tuple(_as_tuples(node[key]) for key in sorted(node, key=int))
