"""Estimates of how long work takes."""

from __future__ import annotations

import time

import pytest

from ragvl.server.estimates import Rates, late_jobs
from ragvl.server.queue import Job


def test_nothing_is_claimed_of_what_was_never_measured():
    rates = Rates()
    assert rates.seconds("score", 10) == rates.most_seconds("score", 10) == 0


def test_steady_work_is_estimated_as_it_was():
    rates = Rates()
    for count in (1, 5, 20):
        rates.note("score", count, 0.5 * count)
    assert rates.seconds("score", 4) == pytest.approx(2.0)
    assert rates.most_seconds("score", 4) == pytest.approx(2.0)
    assert rates.seconds("warm") == 0


def test_a_change_shows_within_a_few_passes_and_unsteady_work_is_estimated_with_care():
    rates = Rates()
    rates.note("score", 10, 1.0)
    for _ in range(10):
        rates.note("score", 10, 3.0)
    assert rates.seconds("score") == pytest.approx(0.3, rel=0.05)
    unsteady = Rates()
    for seconds in (1.0, 3.0) * 5:
        unsteady.note("score", 10, seconds)
    assert unsteady.most_seconds("score") > 0.3 > unsteady.seconds("score")


SLOW = 100.0  # seconds a pair, so that the moments of this test do not matter


@pytest.fixture
def rates() -> Rates:
    rates = Rates()
    rates.note("score", 1, SLOW)
    return rates


def job(pairs: int, due: float | None, *, begun: bool = False) -> Job:
    """A job that is due in the time of so many pairs."""
    deadline = None if due is None else time.monotonic() + due * SLOW
    made = Job("score", range(pairs), deadline=deadline)
    made.started = made.submitted if begun else None
    return made


def late(jobs: list[Job], rates: Rates, most: int = 1) -> list[int]:
    """The places of those that are."""
    return [jobs.index(one) for one, _ in late_jobs(jobs, rates, most)]


def test_what_cannot_be_done_in_time_behind_others_is_late(rates: Rates):
    assert late([job(2, None), job(2, 3.5), job(2, 4.5)], rates) == [1]


def test_what_is_shed_makes_room_for_those_behind_it(rates: Rates):
    assert late([job(2, None), job(3, 3.5), job(2, 4.5), job(1, 4.5)], rates) == [1, 3]


def test_a_job_is_over_with_its_pass(rates: Rates):
    assert late([job(1, 1.5), job(2, None)], rates, most=4) == [0]
    assert late([job(1, 1.5), job(2, None)], rates, most=1) == []


def test_what_has_begun_or_is_late_by_itself_goes_on(rates: Rates):
    assert late([job(2, None), job(2, 3.5, begun=True), job(5, 4.5), job(1, None)], rates) == []


def test_nothing_is_late_before_anything_was_measured():
    assert late([job(2, 0.1), job(2, 0.1)], Rates()) == []
