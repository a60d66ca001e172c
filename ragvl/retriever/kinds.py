"""Searches an index that holds documents with pictures and documents of text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from itertools import chain, islice, zip_longest

import numpy as np

from ragvl.retriever.index import Selection, VectorIndex
from ragvl.retriever.store import Hits


class MixedIndex:
    """A FAISS index, of which it is known which documents are texts.

    Args:
        index: holds vectors; of no use here after it was added to or removed from.
        texts: ids of documents without a picture; there may be others among them.
    """

    def __init__(self, index: VectorIndex, texts: Collection[str]) -> None:
        self.index = index
        self._texts = texts

    @cached_property
    def _kinds(self) -> list[Selection]:
        return kinds_of(self.index, self.index.ids, self._texts)

    def search(
        self,
        queries: np.ndarray,
        k: int,
        among: Collection[str] | None = None,
        *,
        in_turn: bool = False,
    ) -> list[Hits]:
        """The `k` best for each query.

        Args:
            queries: (n, dim), floating.
            k: how many; past the end is fine.
            among: ids; search those of them only that the index holds.
            in_turn: where both kinds are there they take turns, see `taking_turns`.

        Raises:
            ValueError: see `VectorIndex.search`.
        """
        kinds = self._kinds if in_turn and among is None else []
        if among is not None:
            there = [id for id in among if id in self.index]
            kinds = kinds_of(self.index, there, self._texts) if in_turn else []
            kinds = kinds or [self.index.selection(there)]
        if not kinds:
            return self.index.search(queries, k)
        return taking_turns([self.index.search(queries, k, among=kind) for kind in kinds], k)


def kinds_of(index: VectorIndex, ids: Collection[str], texts: Collection[str]) -> list[Selection]:
    """Documents with pictures and documents of text, where there are both.

    Args:
        index: holds them.
        ids: which.
        texts: ids of documents without a picture; there may be others among them.
    """
    pictured = [id for id in ids if id not in texts]
    others = [id for id in ids if id in texts]
    both = [pictured, others] if pictured and others else []
    return [index.selection(some) for some in both]


def taking_turns(of_kinds: Iterable[Sequence[Hits]], k: int) -> list[Hits]:
    """The best of each kind, the second of each, ..., of several for each query.

    A dual encoder's texts lie closer to any text than its pictures do, so that by their cosines
    alone a question would find texts only.

    Args:
        of_kinds: what was found of each kind, in the order of their turns.
        k: how many for a query.
    """
    return [
        [hit for hit in islice(filter(None, chain(*zip_longest(*hits))), k)]
        for hits in zip(*of_kinds, strict=True)
    ]
