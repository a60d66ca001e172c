"""The model's thread: the same bits in any company, bounds, cancellation, drain, faults."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch
from plain import picture
from server.gated import WAIT, Gate, Pair, begun, pairs_of, run

from ragvl import Document, Query, Reranker
from ragvl.data.images import ImageError
from ragvl.reranker import ScoredPair
from ragvl.server.engine import Engine
from ragvl.server.errors import (
    DeadlineExceeded,
    OutOfMemory,
    Overloaded,
    ShuttingDown,
    TooLarge,
)
from ragvl.server.metrics import Metrics
from ragvl.server.settings import EngineLimits


@asynccontextmanager
async def running(reranker: Any, **limits: int) -> AsyncIterator[Engine]:
    """An engine at work, closed with the block."""
    engine = Engine(reranker, EngineLimits(**limits))
    engine.start()
    try:
        yield engine
    finally:
        if isinstance(reranker, Gate):
            reranker.let_all_pass()
        await asyncio.to_thread(engine.close)


def test_scores_have_the_same_bits_in_any_company(tiny_reranker: Reranker):
    requests = [
        [
            (Query(f"Which barn is {i}?"), Document(picture(k), caption=f"Barn {k}"))
            for k in range(i)
        ]
        for i in range(1, 8)
    ]
    alone = [tiny_reranker.score(pairs, raw=True).tolist() for pairs in requests]

    async def main() -> None:
        async with running(tiny_reranker, pass_pairs=5, turn_pairs=2) as engine:
            for order in (requests, requests[::-1]):
                scored = await asyncio.gather(*(engine.score(pairs) for pairs in order))
                raw = [[pair.raw for pair in one.pairs] for one in scored]
                assert raw == (alone if order is requests else alone[::-1])

    run(main())


def test_requests_share_passes_and_no_pass_waits_for_company(gate: Gate):
    async def main() -> None:
        async with running(gate, pass_pairs=8, turn_pairs=8) as engine:
            first = await begun(engine.score(pairs_of("a", 1)))
            await gate.wait_for_pass()
            others = [await begun(engine.score(pairs_of(name, 3))) for name in "bcd"]
            gate.let_all_pass()
            await asyncio.gather(first, *others)

    run(main())
    assert [len(one) for one in gate.passes] == [1, 8, 1]


def test_new_documents_do_not_hold_back_known_ones(gate: Gate):
    known = pairs_of("known", 6)
    gate.reranker.warm([document for _, document in known], progress=False)

    async def main() -> None:
        async with running(gate, pass_pairs=16, turn_pairs=8, pass_documents=2) as engine:
            held = await begun(engine.score(pairs_of("held", 1)))
            await gate.wait_for_pass()
            new = await begun(engine.score(pairs_of("new", 7)))
            answered = await begun(engine.score(known))
            gate.let_all_pass()
            await asyncio.gather(held, new, answered)

    run(main())
    assert [len(one) for one in gate.passes] == [1, 2 + 6, 2, 2, 1]


def test_one_new_document_of_many_queries_is_one_prefix(gate: Gate):
    documents = [Document(text=f"One of two: {i}") for i in range(2)]
    pairs = [(Query(f"What is {i}?"), documents[i % 2]) for i in range(10)]

    async def main() -> None:
        gate.let_all_pass()
        async with running(gate, pass_documents=2) as engine:
            await engine.score(pairs)

    run(main())
    assert [len(one) for one in gate.passes] == [10]


def test_each_pair_has_its_own_error(tiny_reranker: Reranker, tmp_path):
    broken = (Query("Why?"), Document(tmp_path / "nowhere.png", id="nowhere"))

    async def main() -> None:
        async with running(tiny_reranker) as engine:
            good = pairs_of("a", 2)
            scored = await engine.score([good[0], broken, good[1]])
            assert isinstance(scored.pairs[1], ImageError)
            expected = tiny_reranker.score(good, raw=True).tolist()
            assert [one.raw for one in (scored.pairs[0], scored.pairs[2])] == expected
            assert (await engine.score([])).pairs == []

    run(main())


def test_warming_says_what_was_built(tiny_reranker: Reranker):
    async def main() -> None:
        async with running(tiny_reranker, pass_documents=2) as engine:
            documents = [Document(text=f"Warmed ahead: {i}") for i in range(5)]
            assert await engine.warm(documents) == ["built"] * 5
            assert await engine.warm(documents[1:3]) == ["known"] * 2
            scored = await engine.score([(Query("Why?"), one) for one in documents])
            assert scored.built == 0 and all(pair.num_cached for pair in scored.pairs)

    run(main())


def test_what_is_cancelled_is_not_computed_and_frees_its_place(gate: Gate):
    async def main() -> None:
        async with running(gate, max_pairs=10, pass_pairs=4, turn_pairs=4) as engine:
            large = await begun(engine.score(pairs_of("large", 10)))
            await gate.wait_for_pass()
            with pytest.raises(Overloaded):
                engine.check_room(1)
            large.cancel()
            await asyncio.wait([large])
            engine.check_room(6)
            with pytest.raises(Overloaded):
                engine.check_room(7)  # four are being computed
            gate.let_all_pass()
            await engine.score(pairs_of("next", 2))
            engine.check_room(10)

    run(main())
    assert [len(one) for one in gate.passes] == [4, 2]


@pytest.mark.parametrize(
    ("count", "kind"),
    [
        (6, Overloaded),
        (9, TooLarge),
    ],
)
def test_a_full_queue_refuses_and_takes_what_fits(gate: Gate, count: int, kind: type[Exception]):
    async def main() -> None:
        async with running(gate, max_pairs=8) as engine:
            held = await begun(engine.score(pairs_of("a", 3)))
            await gate.wait_for_pass()
            with pytest.raises(kind):
                await engine.score(pairs_of("b", count))
            fits = await begun(engine.score(pairs_of("c", 5)))
            gate.let_all_pass()
            assert len((await held).pairs) == 3 and len((await fits).pairs) == 5

    run(main())


@pytest.mark.slow
def test_what_would_be_late_for_what_waits_before_it_is_refused(gate: Gate):
    """Estimates come from passes that took their time; none of the bounds is a timing of ours."""

    async def main() -> None:
        async with running(gate, pass_pairs=2, turn_pairs=2) as engine:
            slow = await begun(engine.score(pairs_of("slow", 2)))
            await gate.wait_for_pass()
            await asyncio.sleep(0.2)  # a tenth of a second a pair, or more
            gate.open.release()
            await slow
            queued = await begun(engine.score(pairs_of("queued", 40)))
            await gate.wait_for_pass()
            soon, late = time.monotonic() + 1, time.monotonic() + WAIT
            with pytest.raises(Overloaded) as refused:
                await engine.score(pairs_of("a", 20), deadline=soon)
            assert int(refused.value.headers["Retry-After"]) >= 1
            with pytest.raises(DeadlineExceeded):
                await engine.score(pairs_of("b", 1), deadline=time.monotonic())
            patient = await begun(engine.score(pairs_of("c", 1), deadline=late))
            gate.let_all_pass()
            await asyncio.gather(queued, patient)

    run(main())


def test_slow_work_alone_is_never_refused(gate: Gate):
    """Else one slow pass would have the server refuse for ever, since nothing is measured anew."""

    async def main() -> None:
        async with running(gate) as engine:
            slow = await begun(engine.score(pairs_of("slow", 1)))
            await gate.wait_for_pass()
            await asyncio.sleep(0.2)
            gate.let_all_pass()
            await slow
            more = await engine.score(pairs_of("more", 20), deadline=time.monotonic() + 1)
            assert all(isinstance(pair, ScoredPair) for pair in more.pairs)

    run(main())


def test_functions_run_in_the_model_s_thread_and_raise_in_theirs(tiny_reranker: Reranker):
    def fail() -> None:
        raise ZeroDivisionError("a fault")

    async def main() -> None:
        async with running(tiny_reranker) as engine:
            name = await engine.run(lambda: threading.current_thread().name, kind="name")
            assert name == "ragvl-model"
            with pytest.raises(ZeroDivisionError):
                await engine.run(fail, kind="fail")
            assert len((await engine.score(pairs_of("a", 1))).pairs) == 1

    run(main())


class Failing(Gate):
    """Fails as it is told to, and never waits."""

    def __init__(self, reranker: Reranker, error: Exception, max_pairs: int) -> None:
        super().__init__(reranker)
        self.error, self.max_pairs = error, max_pairs
        self.let_all_pass()

    def score_each(self, pairs: Sequence[Pair]) -> Any:
        if len(pairs) > self.max_pairs:
            raise self.error
        return super().score_each(pairs)


def test_memory_that_runs_out_costs_time_and_no_score(tiny_reranker: Reranker):
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    pairs = pairs_of("a", 20)
    expected = tiny_reranker.score(pairs, raw=True).tolist()

    async def main() -> None:
        async with running(Failing(tiny_reranker, full, 3)) as engine:
            scored = await engine.score(pairs)
            assert [pair.raw for pair in scored.pairs] == expected
        async with running(Failing(tiny_reranker, full, 0)) as engine:
            scored = await engine.score(pairs[:2])
            assert all(isinstance(one, OutOfMemory) for one in scored.pairs)
            assert engine.is_alive
            assert await engine.run(lambda: 1, kind="one") == 1

    run(main())


def test_a_fault_fails_its_requests_and_the_thread_goes_on(tiny_reranker: Reranker):
    async def main() -> None:
        async with running(Failing(tiny_reranker, RuntimeError("a fault"), 3)) as engine:
            outcomes = await asyncio.gather(
                *(engine.score(pairs_of("a", count)) for count in (2, 4, 3)),
                return_exceptions=True,
            )
            assert [isinstance(one, RuntimeError) for one in outcomes] == [False, True, False]
            assert engine.is_alive

    run(main())


def test_draining_answers_what_was_accepted_and_nothing_new(gate: Gate):
    async def main() -> None:
        async with running(gate, pass_pairs=2) as engine:

            async def call() -> list[Any]:
                with engine.accept():
                    first = await engine.score(pairs_of("first", 3))
                    second = await engine.score(pairs_of("second", 3))
                    return first.pairs + second.pairs

            accepted = await begun(call())
            await gate.wait_for_pass()
            draining = await begun(engine.drain(WAIT))
            with pytest.raises(ShuttingDown):
                await engine.score(pairs_of("new", 1))
            with pytest.raises(ShuttingDown), engine.accept():
                pass
            assert not draining.done()
            gate.let_all_pass()
            assert len(await accepted) == 6
            assert await draining

    run(main())


def test_a_drain_that_takes_too_long_says_so_and_closing_fails_what_waits(gate: Gate):
    async def main() -> None:
        async with running(gate, pass_pairs=2, turn_pairs=2) as engine:
            waiting = await begun(engine.score(pairs_of("a", 10)))
            await gate.wait_for_pass()
            assert not await engine.drain(0.02)
            closing = asyncio.ensure_future(asyncio.to_thread(engine.close))
            with pytest.raises(ShuttingDown):
                await waiting
            gate.let_all_pass()
            await closing
            assert not engine.is_alive

    run(main())


def test_figures_tell_what_waits(gate: Gate):
    metrics = Metrics()
    engine = Engine(gate, EngineLimits(pass_pairs=2), metrics)
    engine.start()

    async def main() -> None:
        scoring = await begun(engine.score(pairs_of("a", 5)))
        await gate.wait_for_pass()
        text = metrics.text().decode()
        assert "ragvl_queued_pairs 5.0" in text
        assert engine.pass_seconds > 0
        gate.let_all_pass()
        await scoring

    run(main())
    engine.close()
    text = metrics.text().decode()
    assert "ragvl_queued_pairs 0.0" in text and "ragvl_pairs_total 5.0" in text
    assert 'ragvl_prompt_tokens_total{state="computed"}' in text


@pytest.mark.slow
def test_the_process_ends_if_the_thread_does():
    """A server whose requests wait for ever is worse than one that is started anew."""
    program = """
import asyncio, sys, time
from ragvl.server.engine import Engine
from ragvl.server.settings import EngineLimits

engine = Engine(reranker=None, limits=EngineLimits())
engine.start()
try:
    asyncio.run(engine.run(lambda: sys.exit("the thread ends"), kind="fatal"))
except SystemExit:  # which may come here before the thread has ended the process
    pass
time.sleep(60)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=60, text=True
    )
    assert ended.returncode == 70
    assert "SystemExit" in ended.stderr
