"""Work done ahead in threads comes in order, is bounded, and ends with its block."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from ragvl.workers import Workers, ahead, in_passing_thread


def test_results_come_in_order_and_an_error_in_its_place() -> None:
    last_has_run = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert last_has_run.wait(10), "the others need not wait for the first"
        if number == 3:
            last_has_run.set()
            raise ValueError("the fourth")
        return number

    with Workers() as workers:
        results = ahead((workers.submit(partial(work, i)) for i in range(6)), 4)
        assert [next(results).result() for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="the fourth"):
            next(results).result()
        assert [one.result() for one in results] == [4, 5]


@pytest.mark.parametrize("length", [0, 1, 5, 6, 20])
def test_no_more_is_begun_than_is_ahead(length: int) -> None:
    begun = 0

    def begin(number: int) -> int:
        nonlocal begun
        begun += 1
        return number

    for place, item in enumerate(ahead(map(begin, range(length)), 5)):
        assert item == place
        assert begun == min(length, place + 6)
    assert begun == length


def test_a_block_that_ends_drops_what_has_not_begun() -> None:
    begun = []
    release = threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        release.wait(10)

    with pytest.raises(KeyboardInterrupt), Workers(1) as workers:
        for i in range(20):
            workers.submit(partial(work, i))
        threading.Timer(0.5, release.set).start()  # while the end of the block waits for the first
        raise KeyboardInterrupt
    assert len(begun) <= 1
    assert not [thread for thread in threading.enumerate() if thread.name == "ragvl-worker"]


def test_a_passing_thread_is_gone_with_its_result() -> None:
    threads = []

    def work() -> str:
        threads.append(threading.current_thread())
        return "done"

    assert in_passing_thread(work) == "done"
    assert threads[0] is not threading.current_thread() and not threads[0].is_alive()
    with pytest.raises(ZeroDivisionError):
        in_passing_thread(lambda: 1 // 0)
