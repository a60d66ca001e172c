"""Work is cut into blocks of a few seconds, whatever it costs."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import chain

import pytest

from ragvl.evaluation.pace import BLOCK_SECONDS, Pace

Pair = tuple[int, int]


class Worker:
    """Takes so long for a document that it has not just had, and for each pair."""

    def __init__(self, document: Callable[[int], float], pair: float) -> None:
        self._document, self._pair = document, pair
        self._last: int | None = None

    def work(self, block: Sequence[Pair]) -> float:
        """Does it, and says how long it took."""
        seconds = 0.0
        for document, _ in block:
            seconds += self._pair + (document != self._last) * self._document(document)
            self._last = document
        return seconds


def run(pairs: list[Pair], worker: Worker, most: int = 256) -> list[tuple[list[Pair], float]]:
    pace: Pace[Pair] = Pace(lambda pair: pair[0], most=most)
    blocks = []
    for block in pace.blocks(pairs):
        blocks.append((block, worker.work(block)))
        pace.learn(blocks[-1][1])
    return blocks


def pairs_of(counts: Sequence[int]) -> list[Pair]:
    return [(document, number) for document, count in enumerate(counts) for number in range(count)]


MIXED = [20] * 40 + [700] * 3 + [1] * 200 + [5, 300, 1, 1, 1, 900, 2] * 3


@pytest.mark.parametrize(
    ("document", "pair"),
    [(0.0, 1e-4), (0.01, 1e-3), (0.3, 0.02), (0.5, 0.1), (3.0, 0.1), (0.0, 4.0), (4.0, 3.0)],
)
def test_no_block_takes_more_than_twice_as_long_as_it_should(document: float, pair: float) -> None:
    pairs = pairs_of(MIXED)
    blocks = run(pairs, Worker(lambda _: document, pair))
    assert [one for block, _ in blocks for one in block] == pairs
    assert max(seconds for _, seconds in blocks) <= 2 * BLOCK_SECONDS


def test_blocks_are_no_shorter_than_need_be() -> None:
    blocks = run(pairs_of([20] * 2000), Worker(lambda _: 0.1, 0.005))
    lengths = [seconds for _, seconds in blocks[5:-1]]
    assert min(lengths) > 0.7 * BLOCK_SECONDS


def test_a_document_is_divided_only_where_it_fills_a_block_alone() -> None:
    blocks = run(pairs_of(MIXED), Worker(lambda _: 0.3, 0.02))
    parts = Counter(document for block, _ in blocks for document in {one for one, _ in block})
    for document, number in parts.items():
        if document > 0 and MIXED[document] * 0.02 < BLOCK_SECONDS / 3:
            assert number == 1, f"document {document} is in {number} blocks"


def test_work_that_becomes_slower_is_cut_smaller() -> None:
    """As when another process takes the cores."""
    blocks = run(pairs_of([1] * 3000), Worker(lambda one: 0.01 if one < 2000 else 0.1, 0.0))
    slow = [seconds for block, seconds in blocks if block[0][0] >= 2000]
    assert slow[0] <= 10 * BLOCK_SECONDS
    assert max(slow[1:]) <= 2 * BLOCK_SECONDS


def test_what_takes_no_time_is_done_by_the_most_at_once() -> None:
    sizes = [len(block) for block, _ in run(pairs_of([1] * 2000), Worker(lambda _: 0.0, 0.0))]
    assert max(sizes) == 256
    assert len(sizes) < 14


def test_what_takes_longer_by_itself_is_done_alone() -> None:
    blocks = run(pairs_of([3, 2, 1]), Worker(lambda _: 0.0, 60.0))
    assert [len(block) for block, _ in blocks] == [1] * 6


def test_there_may_be_nothing_to_do() -> None:
    assert list(Pace[str](most=3).blocks([])) == []


def test_blocks_that_are_taken_ahead_are_cut_by_what_is_known() -> None:
    """As where several processes work on them."""
    pairs = pairs_of([1] * 400)
    pace: Pace[Pair] = Pace(lambda pair: pair[0], most=256)
    worker = Worker(lambda _: 0.5, 0.0)
    at_work: deque[list[Pair]] = deque()
    seconds, done = [], []
    for block in pace.blocks(pairs):
        at_work.append(block)
        if len(at_work) == 4:
            done += at_work[0]
            seconds.append(worker.work(at_work.popleft()))
            pace.learn(seconds[-1])
    assert [one for one in (*done, *chain.from_iterable(at_work))] == pairs
    assert max(seconds) <= 2 * BLOCK_SECONDS
    assert min(seconds[20:]) > 0.7 * BLOCK_SECONDS
