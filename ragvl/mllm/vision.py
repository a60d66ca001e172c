"""What a model's vision tower gives a forward pass, seen and replaced in one place.

Every model asks its own `get_image_features` for it, whose output has the model's own form. Here it
is named tensors: a path such as "pooler_output" or "deepstack_features/0" for each that a decoder
reads.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ragvl.mllm.loading import UnsupportedModelError

Features = dict[str, Tensor]

# Of what a vision tower returns, the parts that no decoder reads, and the largest
_NOT_READ = ("last_hidden_state", "hidden_states", "attentions")
_WRAPPED = "_ragvl_wrapped"  # marks a `get_image_features` that a `vision_pass` reaches


class VisionPass:
    """What the vision tower gives one forward pass.

    Args:
        given: features that take the tower's place; it does not run then.

    Attributes:
        requested: whether the model has asked for features.
    """

    def __init__(self, given: Features | None = None) -> None:
        self.requested = False
        self._output = None if given is None else SimpleNamespace(**_nested(given))

    def output(self, tower: Any, *args: Any, **kwargs: Any) -> Any:
        """What `get_image_features` returns; the tower runs once at most."""
        self.requested = True
        if self._output is None:
            self._output = tower(*args, **kwargs)
        return self._output

    @property
    def features(self) -> Features | None:
        """What the tower gave; None if it did not run."""
        return None if self._output is None else dict(_flat(self._output))


_current: ContextVar[VisionPass | None] = ContextVar("vision_pass", default=None)


@contextmanager
def vision_pass(given: Features | None = None) -> Iterator[VisionPass]:
    """Sees, or with `given` replaces, what the vision tower gives a forward pass of this thread.

    One pass a block, of a model that `wrap_image_features` was called for.
    """
    current = VisionPass(given)
    token = _current.set(current)
    try:
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
        for name, item in output.items():
            if name not in _NOT_READ:
                yield from _flat(item, f"{path}/{name}" if path else name)
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
