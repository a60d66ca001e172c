"""Mixtures of experts that compute a token alike in any company.

A token is multiplied with the weights of the few experts that its router chose, together with all
tokens that chose the same. How many those are depends on the company, and with it how a product
rounds: a row gets the same bits whatever stands beside it only among whole blocks of rows. So each
expert's rows are filled up to whole blocks. The experts' own code computes them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_BLOCK_ROWS = 32
_WRAPPED = "_ragvl_wrapped"  # marks experts that are wrapped already
_ARGUMENTS = ("hidden_states", "top_k_index", "top_k_weights")


def wrap_experts(layers: Iterable[nn.Module], packed: Callable[[], bool]) -> None:
    """Wraps all experts in `layers`, once however often this is done.

    On a GPU they stay as they are: there one kernel computes all experts, whatever their rows.

    Args:
        layers: a decoder's.
        packed: whether the pass that is under way in this thread mixes rows of several prompts.
    """
    for layer in layers:
        for module in layer.modules():
            if are_experts(module) and not hasattr(module.forward, _WRAPPED):
                setattr(module, "forward", _Experts(module, packed))  # noqa: B010 (a method, to mypy)


class _Experts:
    """The `forward` of experts, whose rows come in whole blocks in a packed pass."""

    def __init__(self, module: Any, packed: Callable[[], bool]) -> None:
        self._own: Callable[..., Tensor] = module.forward
        self._num_experts: int = module.num_experts
        self._packed = packed
        setattr(self, _WRAPPED, True)

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(N, D) from `hidden_states` (N, D), and K experts and weights of each, (N, K)."""
        if not self._packed() or hidden_states.device.type != "cpu":
            return self._own(hidden_states, top_k_index, top_k_weights)
        (num_tokens, num_chosen), width = top_k_index.shape, hidden_states.shape[-1]
        filling = self._filling(top_k_index)
        # Each choice of an expert is a row by itself, so that any number can be added
        rows = hidden_states.repeat_interleave(num_chosen, 0)
        results = self._own(
            torch.cat([rows, rows.new_zeros(len(filling), width)]),
            torch.cat([top_k_index.flatten(), filling])[:, None],
            torch.cat([top_k_weights.flatten(), top_k_weights.new_zeros(len(filling))])[:, None],
        )
        return results[: len(rows)].view(num_tokens, num_chosen, width).sum(1)

    def _filling(self, chosen: Tensor) -> Tensor:
        """The experts of so many more rows that each has whole blocks."""
        # Each of torch's threads gets whole rows, too
        block = math.lcm(_BLOCK_ROWS, torch.get_num_threads())
        missing = -chosen.flatten().bincount(minlength=self._num_experts) % block
        return torch.arange(len(missing)).repeat_interleave(missing)


def are_experts(module: nn.Module) -> bool:
    """Whether a module is a mixture's experts, of which a router chooses some for each token."""
    parameters = inspect.signature(type(module).forward).parameters
    return all(name in parameters for name in _ARGUMENTS) and hasattr(module, "num_experts")
