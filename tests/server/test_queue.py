"""The queue before the model: fair turns, bounds that add up, and nothing lost or done twice."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from ragvl.server.queue import Job, Lane, Piece, Queue

TURN = 4
LANES = st.sampled_from(["score", "warm"])


def job(size: int, lane: Lane = "score", **others) -> Job:
    return Job(lane, range(size), lane=lane, **others)


def take(queue: Queue, pairs: int = 8, documents: int = 2) -> list[Piece]:
    return queue.take({"score": pairs, "warm": documents})


def taken(queue: Queue, **most: int) -> list[Job]:
    """The jobs of the next pass, one for each item; the pass is finished."""
    pieces = take(queue, **most)
    queue.finish(pieces)
    return [piece.job for piece in pieces for _ in piece.places]


def test_a_large_job_does_not_hold_back_a_small_one():
    queue = Queue(TURN)
    large, small = job(1000), job(3)
    queue.add(large)
    assert taken(queue) == [large] * 8
    queue.add(small)
    assert taken(queue) == [large] * 4 + [small] * 3 + [large]
    assert small.num_left == 0


def test_jobs_of_one_turn_run_in_the_order_in_which_they_came():
    queue = Queue(TURN)
    jobs = [job(3) for _ in range(6)]
    for one in jobs:
        queue.add(one)
    order = [one for _ in range(3) for one in taken(queue)]
    assert order == [one for one in jobs for _ in range(3)]


def test_many_large_jobs_take_turns():
    queue = Queue(TURN)
    jobs = [job(100) for _ in range(5)]
    for one in jobs:
        queue.add(one)
    counts = Counter(one for _ in range(10) for one in taken(queue))
    assert max(counts.values()) - min(counts.values()) <= TURN


def test_scoring_goes_before_warming_which_is_not_starved():
    queue = Queue(TURN)
    scoring, warming = job(10_000), job(4, "warm")
    queue.add(warming)
    queue.add(scoring)
    passes = []
    while warming.num_left:
        passes.append(taken(queue)[0])
    assert passes[0] is scoring
    assert passes.count(warming) == 2
    assert 2 < len(passes) < 100


def test_a_function_has_a_pass_of_its_own_in_its_turn():
    queue = Queue(TURN)
    first, function, last = job(2), Job("generate", [print], whole=True), job(2)
    for one in (first, function, last):
        queue.add(one)
    assert [taken(queue) for _ in range(3)] == [[first] * 2, [function], [last] * 2]


def test_what_is_cancelled_leaves_at_once_and_what_runs_counts_until_it_is_done():
    queue = Queue(TURN)
    gone, stays = job(12), job(1)
    queue.add(gone)
    queue.add(stays)
    pieces = take(queue, pairs=4)
    queue.cancel(gone)
    assert queue.num_items["score"] == 5
    assert queue.finish(pieces) == []
    assert queue.num_items["score"] == 1
    assert taken(queue) == [stays]
    assert queue.is_idle


def test_what_is_put_back_comes_first_of_its_job():
    queue = Queue(TURN)
    new, other = job(6), job(2)
    queue.add(new)
    queue.add(other)
    (piece,) = take(queue, pairs=4)
    queue.put_back([Piece(new, piece.places[2:])])
    queue.finish([Piece(new, piece.places[:2])])
    assert [(p.job, list(p.places)) for p in take(queue)] == [(other, [0, 1]), (new, [2, 3, 4, 5])]


def test_what_is_put_back_of_a_job_whose_turn_was_over_has_another():
    queue = Queue(TURN)
    new, function = job(TURN), Job("generate", [print], whole=True)
    queue.add(new)
    (piece,) = take(queue)
    queue.put_back([Piece(new, piece.places[1:])])
    queue.finish([Piece(new, piece.places[:1])])
    queue.add(function)
    assert [taken(queue) for _ in range(2)] == [[new] * (TURN - 1), [function]]


def test_a_job_with_an_error_is_over_at_once():
    queue = Queue(TURN)
    fails = job(12)
    queue.add(fails)
    pieces = take(queue)
    fails.error = ValueError("broken")
    assert queue.finish(pieces) == [fails]
    assert not queue and queue.is_idle


@settings(max_examples=60, stateful_step_count=40)
class QueueMachine(RuleBasedStateMachine):
    """Jobs come, run, fail and are cancelled, in any order."""

    jobs = Bundle("jobs")
    passes = Bundle("passes")

    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue(TURN)
        self.left: dict[Job, set[int]] = {}  # places that were in no pass, of jobs that go on
        self.running: list[list[Piece]] = []

    @rule(
        target=jobs,
        size=st.integers(1, 30),
        lane=LANES,
        whole=st.booleans(),
    )
    def add(self, size: int, lane: Lane, whole: bool) -> Job:
        new = job(1 if whole else size, lane, whole=whole)
        self.queue.add(new)
        self.left[new] = set(range(len(new.items)))
        return new

    @rule(target=passes, pairs=st.integers(1, 10), documents=st.integers(1, 3))
    def take(self, pairs: int, documents: int):
        waiting = any(self.left.values())
        assert bool(self.queue) == waiting
        if not waiting:
            return multiple()
        pieces = take(self.queue, pairs, documents)
        lanes = {piece.job.lane for piece in pieces}
        assert len(lanes) == 1
        count = sum(len(piece.places) for piece in pieces)
        assert 0 < count <= {"score": pairs, "warm": documents}[lanes.pop()]
        assert len(pieces) == 1 or not any(piece.job.whole for piece in pieces)
        for piece in pieces:
            assert piece.items == [piece.job.items[place] for place in piece.places]
            assert self.left[piece.job] >= set(piece.places)
            self.left[piece.job] -= set(piece.places)
        self.running.append(pieces)
        return pieces

    @rule(pieces=passes, fails=st.booleans())
    def finish(self, pieces: list[Piece], fails: bool) -> None:
        if not any(pieces is one for one in self.running):
            return
        self.running = [one for one in self.running if one is not pieces]
        if fails:
            pieces[0].job.error = ValueError("broken")
        over = self.queue.finish(pieces)
        for one in dict.fromkeys(piece.job for piece in pieces):
            is_over = one in self.left and (
                one.error is not None or (not self.left[one] and not self.runs(one))
            )
            assert (one in over) == is_over
            if is_over:
                del self.left[one]

    @rule(pieces=passes, some=st.data())
    def put_back(self, pieces: list[Piece], some: st.DataObject) -> None:
        """Part of a pass waits again, and runs later."""
        if not any(pieces is one for one in self.running) or pieces[0].job.whole:
            return
        kept, back = [], []
        for piece in pieces:
            count = some.draw(st.integers(0, len(piece.places)))
            now, later = piece.places[:count], piece.places[count:]
            kept += [Piece(piece.job, now)] if now else []
            back += [Piece(piece.job, later)] if later else []
        if not kept:
            return
        self.queue.put_back(back)
        for piece in back:
            if piece.job in self.left:
                self.left[piece.job] |= set(piece.places)
        pieces[:] = kept

    @rule(one=jobs)
    def cancel(self, one: Job) -> None:
        self.queue.cancel(one)
        self.left.pop(one, None)

    def runs(self, one: Job) -> int:
        return sum(len(p.places) for pieces in self.running for p in pieces if p.job is one)

    @invariant()
    def all_adds_up(self) -> None:
        in_passes = {piece.job for pieces in self.running for piece in pieces}
        held = {*self.left, *in_passes}
        for lane in ("score", "warm"):
            here = [one for one in held if one.lane == lane]
            waiting = sum(len(self.left.get(one, ())) for one in here)
            assert self.queue.num_items[lane] == waiting + sum(map(self.runs, here))
            assert self.queue.num_waiting[lane] == waiting
        assert self.queue.is_idle == (not self.left)


TestQueueMachine = QueueMachine.TestCase
