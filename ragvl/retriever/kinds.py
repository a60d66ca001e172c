"""Searches an index that holds documents with pictures and documents of text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain, islice, zip_longest

import numpy as np

from ragvl.retriever.index import Selection, VectorIndex

Hits = list[tuple[str, float]]
"""Documents' ids with their similarity, the most similar first."""


def kinds_of(index: VectorIndex, texts: Collection[str]) -> list[Selection]:
    """Documents with pictures and documents of text, where an index holds both.

    Args:
        index: holds them.
        texts: ids of documents without a picture; there may be others among them.
    """
    pictured = [id for id in index.ids if id not in texts]
    others = [id for id in index.ids if id in texts]
    both = [pictured, others] if pictured and others else []
    return [index.selection(ids) for ids in both]


def search_in_turn(
    index: VectorIndex, queries: np.ndarray, k: int, kinds: Sequence[Selection]
) -> list[Hits]:
    """The `k` best of several kinds for each query: the best of each, the second of each, ...

    A dual encoder's texts lie closer to any text than its pictures do, so that by their cosines
    alone a question would find texts only.

    Args:
        index: holds all of them.
        queries: (n, dim), floating.
        k: how many; past the end is fine.
        kinds: what to search apart, in the order of their turns; one or none is an ordinary search.

    Raises:
        ValueError: see `VectorIndex.search`.
    """
    if len(kinds) < 2:
        return index.search(queries, k)
    of_kinds = [index.search(queries, k, among=kind) for kind in kinds]
    return [
        [hit for hit in islice(filter(None, chain(*zip_longest(*hits))), k)]
        for hits in zip(*of_kinds, strict=True)
    ]
