"""Cuts work into blocks of a few seconds each, whatever a piece of it costs on this machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Generic, TypeVar

Item = TypeVar("Item")

BLOCK_SECONDS = 5.0
"""What a block is to take."""

_GROWTH = 4  # times as large as the block before, at most: one measurement may be luck


class Pace(Generic[Item]):
    """Chooses how much is done at a time, by how long the block before took.

    Where a group costs so much and each item of it so much more (a document's prefix, and its
    pairs), a block takes at most twice `BLOCK_SECONDS`: it holds no more groups, and no more items,
    than would take one time that by the last block's seconds a group and an item. What takes longer
    by itself is a block of one. Blocks may be taken ahead of those whose time is known.

    Args:
        group: what neighbours have in common; a group is divided only if it fills a block alone.
            By default each item is one.
        most: so many groups at a time at most.
    """

    def __init__(self, group: Callable[[Item], object] | None = None, *, most: int) -> None:
        self._group = group
        self._most = most
        self._num_items = self._num_groups = 1
        self._taken: deque[tuple[int, int]] = deque()  # items and new groups of each block

    def blocks(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        """All items in order."""
        group = self._group
        groups = deque(
            [[item] for item in items]
            if group is None
            else [list(of_one) for _, of_one in groupby(items, group)]
        )
        continued = False
        while groups:
            block, taken = groups.popleft(), 1
            rest = block[self._num_items :]
            del block[self._num_items :]
            while (
                groups
                and taken < self._num_groups
                and len(block) + len(groups[0]) <= self._num_items
                and not rest
            ):
                block += groups.popleft()
                taken += 1
            self._taken.append((len(block), taken - continued))
            continued = bool(rest)
            if rest:
                groups.appendleft(rest)
            yield block

    def learn(self, seconds: float) -> None:
        """Says how long a block took: the first of those of which that was not said."""
        num_items, num_new_groups = self._taken.popleft()
        self._num_items = _as_many(num_items, seconds)
        if num_new_groups:  # what is left of a group does not tell what a group costs
            self._num_groups = min(self._most, _as_many(num_new_groups, seconds))


def _as_many(number: int, seconds: float) -> int:
    """How many would fill a block, where so many took so long."""
    if seconds * _GROWTH <= BLOCK_SECONDS:
        return number * _GROWTH
    return max(1, int(number * BLOCK_SECONDS / seconds))
