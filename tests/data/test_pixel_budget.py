from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from interrupts import Interrupt

from ragvl.data.pixel_budget import PixelBudget


def test_what_is_worked_on_stays_within_the_budget() -> None:
    budget = PixelBudget(100)
    seen: list[int] = []

    def work(pixels: int) -> None:
        with budget.hold(pixels):
            seen.append(budget.used)

    sizes = [10, 60, 90, 100, 250, 30] * 40
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, sizes))
    assert len(seen) == len(sizes)
    assert all(used <= 100 or used == 250 for used in seen)
    assert budget.used == 0


def test_large_pictures_are_not_passed_over_for_good() -> None:
    budget = PixelBudget(100)
    order: list[int] = []
    waiting = threading.Event()

    def large() -> None:
        waiting.set()
        with budget.hold(100):
            order.append(100)

    def small() -> None:
        with budget.hold(10):
            order.append(10)

    with ThreadPoolExecutor(2) as pool:
        with budget.hold(50):
            first = pool.submit(large)
            waiting.wait()
            while len(budget._live()) < 2:
                time.sleep(1e-3)
            second = pool.submit(small)  # has room, and waits for its turn
        first.result()
        second.result()
    assert order == [100, 10]


def test_an_error_gives_the_room_back_and_a_thread_does_not_wait_for_itself() -> None:
    budget = PixelBudget(100)
    try:
        with budget.hold(80), budget.hold(80):
            raise ValueError
    except ValueError:
        pass
    assert budget.used == 0


def test_a_forked_child_begins_anew() -> None:
    budget = PixelBudget(100)
    with budget.hold(100):
        child = os.fork()
        if child == 0:
            with budget.hold(100):  # would wait for the parent's for good
                os._exit(0 if budget.used == 100 else 1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def work(budget: PixelBudget) -> None:
    with budget.hold(60), budget.hold(30):
        pass


def test_an_interrupt_at_any_time_loses_no_room() -> None:
    tries, ended = 0, False
    while not ended:
        budget = PixelBudget(100, wait_seconds=0.05)
        ended = not Interrupt("pixel_budget.py", 1 + tries).run(partial(work, budget))
        tries += 1
        assert budget.used == 0
        with budget.hold(100):  # whoever comes next need not wait
            assert budget.used == 100
    assert tries > 20


def test_a_wait_has_an_end() -> None:
    budget = PixelBudget(100, wait_seconds=0.05)
    with ThreadPoolExecutor(1) as pool, budget.hold(60):
        with pytest.raises(TimeoutError, match="for other pictures"):
            pool.submit(work, budget).result()
        assert budget.used == 60
