"""Makes one order of two: of what pictures show, and of what captions say."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ragvl.messages import quoted
from ragvl.retriever.store import Hits

Order = Literal["picture", "caption"]
"""By what documents are found: by their pictures, or by their captions and texts."""

ORDERS: tuple[Order, ...] = ("picture", "caption")
"""Both orders."""

FUSED: Literal["fused"] = "fused"
"""The name of the order that both make."""

FUSED_DEPTH = 1000
"""How many documents of each order are fused at least."""

_RRF = "rrf"
_WEIGHTS = tuple(step / 20 for step in range(21))  # that are tried on a dev split


@dataclass(frozen=True)
class OrderHits:
    """What one order found for a query.

    Attributes:
        hits: ids with their scores, the best first.
        size: how many documents were searched.
        holds: whether a document of that id was among them.
    """

    hits: Hits
    size: int
    holds: Callable[[str], bool]


@dataclass(frozen=True)
class Points:
    """What the documents of one order count.

    Attributes:
        of: by id, of those that were found.
        below: of one that was searched and not found.
        elsewhere: of one that was not searched, since the order has no place for it: as much as
            the middle of the order, which speaks neither for it nor against it.
    """

    of: Mapping[str, float]
    below: float
    elsewhere: float


class Fusion(Protocol):
    """Says what documents count in each order; the sums make one."""

    @property
    def name(self) -> str:
        """What names it: "rrf", or the weight of the picture's order."""

    def points(self, order: Order, found: OrderHits) -> Points:
        """What the documents of an order count, its share included."""


@dataclass(frozen=True)
class ReciprocalRank:
    """A document counts 1 / (k + its place) in each order (Cormack et al., SIGIR 2009).

    Attributes:
        k: how little the first places stand out.

    Raises:
        ValueError: `k` is below 0, or not finite.
    """

    k: float = 60

    def __post_init__(self) -> None:
        if not 0 <= self.k < math.inf:
            raise ValueError(f"k={self.k}: expected 0 or more")

    @property
    def name(self) -> str:
        """What names it."""
        return _RRF if self.k == ReciprocalRank.k else f"{_RRF}:{float(self.k)!r}"

    def points(self, order: Order, found: OrderHits) -> Points:  # noqa: ARG002
        """See `Fusion`."""
        return Points(
            {id: self._of(place) for place, (id, _) in enumerate(found.hits, start=1)},
            below=self._of(len(found.hits) + 1),
            elsewhere=self._of((found.size + 1) / 2),
        )

    def _of(self, place: float) -> float:
        return 1 / (self.k + place)


@dataclass(frozen=True)
class WeightedSum:
    """Cosines, less their mean and in units of their deviation, both of the query at hand.

    Attributes:
        weight: of the picture's order; the rest is the caption's.

    Raises:
        ValueError: `weight` is not between 0 and 1.
    """

    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight={self.weight}: expected a share from 0 to 1")

    @property
    def name(self) -> str:
        """What names it."""
        return repr(float(self.weight))

    def points(self, order: Order, found: OrderHits) -> Points:
        """See `Fusion`."""
        share = self.weight if order == "picture" else 1 - self.weight
        standard = share * _standardised([score for _, score in found.hits])
        ids = [id for id, _ in found.hits]
        return Points(
            dict(zip(ids, standard.tolist(), strict=True)),
            below=float(standard.min(initial=0)),
            elsewhere=0,
        )


def parse_fusion(text: str) -> Fusion:
    """A fusion by its name: "rrf", "rrf:K", or a weight of the picture's order from 0 to 1.

    Raises:
        ValueError: it is neither.
    """
    name, colon, k = text.partition(":")
    try:
        if name == _RRF:
            return ReciprocalRank(float(k)) if colon else ReciprocalRank()
        return WeightedSum(float(text))
    except ValueError:
        raise ValueError(
            f"{quoted(text)} is no fusion: expected rrf, or the weight of the pictures' order, "
            "from 0 to 1"
        ) from None


def fuse(found: Mapping[Order, OrderHits], fusion: Fusion, k: int) -> Hits:
    """The `k` best documents of several orders with what they count, the best first.

    Of documents that count alike, the one that the captions' order has first comes first.

    Args:
        found: by order; one alone stays as it is, and of none there is nothing.
        fusion: says what documents count.
        k: how many; past the end is fine.
    """
    if len(found) < 2:
        return [hit for only in found.values() for hit in only.hits[:k]]
    points = {order: fusion.points(order, of_order) for order, of_order in found.items()}
    ids = dict.fromkeys(id for order in reversed(ORDERS) for id in points[order].of)

    def count(id: str) -> float:
        return sum(_points(points[order], of_order, id) for order, of_order in found.items())

    fused = sorted(((id, count(id)) for id in ids), key=lambda hit: -hit[1])
    return fused[:k]


def estimate_weight(
    found: Sequence[Mapping[Order, OrderHits]], gold: Sequence[Collection[str]]
) -> WeightedSum:
    """The weight by which gold documents come first: the one of the highest mean reciprocal rank.

    Weights 0, 0.05, ..., 1 are tried. Of several that are as good, the one in their middle is
    taken, which is least likely to be so by luck.

    Args:
        found: for each question of a dev split, both orders.
        gold: for each question, ids of its gold documents.

    Raises:
        ValueError: there is no question with a gold document, or the lengths differ.
    """
    asked = [(of_one, set(ids)) for of_one, ids in zip(found, gold, strict=True) if ids]
    if not asked:
        raise ValueError("no question has a gold document to estimate the pictures' weight by")
    means = [
        np.mean([_reciprocal_rank(of_one, WeightedSum(weight), ids) for of_one, ids in asked])
        for weight in _WEIGHTS
    ]
    best = np.flatnonzero(np.isclose(means, max(means), rtol=0, atol=1e-9))
    return WeightedSum(_WEIGHTS[best[len(best) // 2]])


def _reciprocal_rank(
    found: Mapping[Order, OrderHits], fusion: Fusion, gold: Collection[str]
) -> float:
    hits = fuse(found, fusion, FUSED_DEPTH)
    return next((1 / place for place, (id, _) in enumerate(hits, start=1) if id in gold), 0.0)


def _points(points: Points, found: OrderHits, id: str) -> float:
    if (own := points.of.get(id)) is not None:
        return own
    return points.below if found.holds(id) else points.elsewhere


def _standardised(scores: Sequence[float]) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    if not len(values):
        return values
    deviation = values.std()
    centred = values - values.mean()
    return centred / deviation if deviation > 0 else np.zeros_like(centred)
