"""Work on blocks of items in order: in this process, or wherever a `MapBlocks` has it done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

Works = Mapping[str, Callable[[Any], Any]]
"""What a process can do with a block, by name."""


class Done(NamedTuple):
    """What was made of a block, and how many seconds that took."""

    result: Any
    seconds: float


class MapBlocks(Protocol):
    """Does one of `Works` with each block.

    Results come in the blocks' order, each once. Blocks are taken as there is room for them, so
    that few are held at a time.
    """

    def __call__(self, work: str, blocks: Iterable[Any]) -> Iterator[Done]:
        """What `work` makes of each block."""


def timed(work: Callable[[Any], Any], block: Any) -> Done:
    """What `work` makes of a block, and the time that it takes."""
    began = time.monotonic()
    result = work(block)
    return Done(result, time.monotonic() - began)


def here(works: Works) -> MapBlocks:
    """Works in this process, on a block when its result is asked for."""

    def map_blocks(work: str, blocks: Iterable[Any]) -> Iterator[Done]:
        return (timed(works[work], block) for block in blocks)

    return map_blocks
