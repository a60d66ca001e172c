"""A pass: halved where memory runs out, and nobody has another's error."""

from __future__ import annotations

import pytest
import torch

from ragvl.mllm import PromptTooLongError
from ragvl.server.errors import OutOfMemory
from ragvl.server.passes import Passes
from ragvl.server.queue import Job, Piece

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
]


def pieces_of(*sizes: int) -> list[Piece]:
    """Pieces of jobs of numbers, no two of which are the same."""
    first = 0
    pieces = []
    for size in sizes:
        pieces.append(Piece(Job("score", range(first, first + size)), range(size)))
        first += size
    return pieces


def square(items: list[int]) -> list[int]:
    return [item**2 for item in items]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("room", [1, 2, 5])
def test_a_pass_that_memory_runs_out_in_is_halved_until_it_fits(error: Exception, room: int):
    sizes = []

    def compute(items: list[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > room:
            raise error
        return square(items)

    passes = Passes(16)
    pieces = pieces_of(3, 10, 3)
    passes.run(pieces, compute)
    assert [one for piece in pieces for one in piece.job.results] == square([*range(16)])
    assert sizes[0] == 16 and passes.limit <= max(room, 1) + 1
    assert all(piece.job.error is None for piece in pieces)


def test_an_item_that_does_not_fit_alone_is_refused_and_the_others_are_not():
    def compute(items: list[int]) -> list[int]:
        if 5 in items:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return square(items)

    pieces = pieces_of(4, 4)
    Passes(8).run(pieces, compute)
    results = [one for piece in pieces for one in piece.job.results]
    assert isinstance(results.pop(5), OutOfMemory)
    assert results == square([0, 1, 2, 3, 4, 6, 7])


def test_passes_become_larger_again_when_memory_suffices():
    has_memory = False

    def compute(items: list[int]) -> list[int]:
        if len(items) > 2 and not has_memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return square(items)

    passes = Passes(8)
    passes.run(pieces_of(8), compute)
    assert passes.limit < 8
    has_memory = True
    for _ in range(8):
        passes.run(pieces_of(passes.limit), compute)
    assert passes.limit == 8


def test_a_job_that_fails_takes_no_other_with_it():
    def compute(items: list[int]) -> list[int]:
        if 5 in items:
            raise ZeroDivisionError("a fault")
        return square(items)

    first, second, third = pieces = pieces_of(4, 4, 4)
    Passes(12).run(pieces, compute)
    assert (first.job.results, first.job.error) == (square([0, 1, 2, 3]), None)
    assert isinstance(second.job.error, ZeroDivisionError)
    assert (third.job.results, third.job.error) == (square([8, 9, 10, 11]), None)


def test_a_request_that_is_too_long_is_no_fault_of_the_server(caplog: pytest.LogCaptureFixture):
    def compute(_: list[int]) -> list[int]:
        raise PromptTooLongError("too long")

    job = Job("generate", [0], whole=True)
    Passes(8).run([Piece(job, [0])], compute)
    assert isinstance(job.error, PromptTooLongError)
    assert not caplog.records


def test_two_pieces_of_a_job_in_a_pass_fill_their_own_places():
    job = Job("score", range(6))
    Passes(6).run([Piece(job, [0, 1]), Piece(job, [4, 5])], square)
    assert job.results == [0, 1, None, None, 16, 25]
