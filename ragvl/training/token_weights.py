"""How much the answers' tokens weigh in a training with a noised pass."""

from __future__ import annotations

import torch
from torch import Tensor


class TokenWeights:
    """How the noised pass weighs the answers' tokens: what tells whether it does anything.

    Where every gap is below the floor, all tokens weigh the same and training is plain training.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._total = torch.zeros(6, dtype=torch.float64)

    def add(self, gap: Tensor, weight: Tensor, low: float, high: float) -> None:
        """Adds a batch's labelled tokens; nothing is read from the device.

        Args:
            gap: (N,) how far each label's logit fell.
            weight: (N,) what each weighs.
            low: gaps up to here are on the floor.
            high: gaps from here on are on the ceiling.
        """
        terms = (torch.ones_like(gap), gap <= low, gap >= high, gap, weight, weight.square())
        sums = torch.stack([term.sum(dtype=torch.float32) for term in terms])
        self._sums = sums if self._sums is None else self._sums + sums

    def recent(self) -> dict[str, float]:
        """Of the tokens since the last call: see `total`."""
        return _summary(self._taken())

    def total(self) -> dict[str, float]:
        """Of all tokens; empty if there were none.

        Returns:
            `weighted_tokens`, how many; `weights_at_floor` and `weights_at_ceiling`, the share of
            them whose gap is not between the clamp's ends; `visual_gap`, the mean fall of a label's
            logit before the clamp; `token_weight`, the mean; `token_weight_spread`, the weights'
            standard deviation over their mean: 0 is plain training.
        """
        self._taken()
        return _summary(self._total)

    def _taken(self) -> Tensor:
        recent = torch.zeros_like(self._total)
        if self._sums is not None:
            recent, self._sums = self._sums.double().cpu(), None
        self._total = self._total + recent
        return recent


def _summary(sums: Tensor) -> dict[str, float]:
    tokens, *others = sums.tolist()
    if not tokens:
        return {}
    floor, ceiling, gap, weight, squared = (value / tokens for value in others)
    return {
        "weighted_tokens": tokens,
        "weights_at_floor": floor,
        "weights_at_ceiling": ceiling,
        "visual_gap": gap,
        "token_weight": weight,
        "token_weight_spread": max(0.0, squared - weight**2) ** 0.5 / weight,
    }
