"""Suffixes are packed in order, without padding between them, into chunks of bounded size."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ragvl.mllm import MLLM
from ragvl.prefix_cache import CachedPrefix, PagePool
from ragvl.reranker.answer_head import AnswerHead
from ragvl.reranker.chunks import Chunk, ChunkRunner, Shape, Suffix


def suffix(index: int, length: int, *, prefix: int = 20, dropped: int = 0) -> Suffix:
    pages = [3 * index, 3 * index + 1]
    entry = CachedPrefix(f"{index}", list(range(prefix)), "", 100 * index, pages)
    return Suffix(index, entry, prefix - dropped, [1000 * index + i for i in range(length)])


@pytest.fixture(scope="module")
def runner(tiny_mllm: Callable[[str], MLLM]) -> ChunkRunner:
    mllm = tiny_mllm("llava")
    pool = PagePool(mllm.kv_layout, 1, mllm.device)
    head = AnswerHead(mllm, *mllm.prompting.answer_token_ids("Yes", "No"))
    return ChunkRunner(mllm, head, pool, deterministic=True)


@given(st.lists(st.integers(1, 2000), max_size=80), st.none() | st.integers(1, 50))
@settings(max_examples=100)
def test_chunks_are_in_order_and_bounded(
    runner: ChunkRunner, lengths: list[int], batch_size: int | None
) -> None:
    suffixes = [suffix(i, length) for i, length in enumerate(lengths)]
    chunks = list(runner.chunks(suffixes, batch_size))
    assert [s for chunk in chunks for s in chunk] == suffixes
    for chunk in chunks:
        assert 1 <= len(chunk) <= min(batch_size or 32, 32)
        assert len(chunk) == 1 or sum(len(s.input_ids) for s in chunk) <= 1024
    for one, following in itertools.pairwise(chunks):  # none is cut before it is full
        rows = sum(len(s.input_ids) for s in [*one, following[0]])
        assert rows > 1024 or len(one) == min(batch_size or 32, 32)


def test_a_chunk_says_which_rows_are_whose() -> None:
    chunk = Chunk.pack([suffix(0, 3), suffix(1, 2, dropped=4), suffix(2, 1)], Shape(8, 4, 3, 3))
    assert chunk.input_ids.tolist() == [0, 1, 2, 1000, 1001, 2000, 0, 0]
    # a suffix goes on where its prefix ends, or sooner if some of that was not shared
    assert chunk.position_ids.tolist() == [0, 1, 2, 96, 97, 200, 0, 0]
    assert chunk.last_rows.tolist() == [2, 4, 5, 0]
    assert chunk.suffix_starts.tolist() == [0, 3, 5, 0]
    assert chunk.suffix_lengths.tolist() == [3, 2, 1, 0]
    assert chunk.prefix_lengths.tolist() == [20, 16, 20, 0]
    assert chunk.page_table.tolist() == [[0, 1, 0], [3, 4, 0], [6, 7, 0], [0, 0, 0]]
    dtypes = {name: getattr(chunk, name).dtype for name in ("input_ids", "page_table")}
    assert dtypes == {"input_ids": torch.int64, "page_table": torch.int32}


class Graphs:
    """In the place of `_Graph`: raises what is given, in turn, then captures."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self, *_: object) -> str:
        if not self.errors:
            return "a graph"
        error = self.errors.pop(0)
        try:
            raise error.__context__ or error
        except Exception:
            raise error  # noqa: B904 - as the end of a capture does, that fails for its own reason


def during(error: Exception) -> Exception:
    invalid = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    invalid.__context__ = error
    return invalid


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    "error", [OUT, during(OUT), MemoryError(), RuntimeError("CUDA error: out of memory")]
)
def test_memory_that_runs_out_is_not_taken_for_a_model_that_cannot_be_captured(
    error: Exception, runner: ChunkRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = Shape(32, 1, 2, 3)
    monkeypatch.setattr("ragvl.reranker.chunks._Graph", Graphs(error))
    with pytest.raises(type(error)):
        runner._capture(shape)
    # where other graphs hold memory they go, and it is tried once more
    monkeypatch.setattr(runner, "_graphs", {Shape(1, 1, 1, 1): lambda _: torch.zeros(1)})
    monkeypatch.setattr("ragvl.reranker.chunks._Graph", Graphs(error))
    assert runner._capture(shape) == "a graph"
    assert runner._graphs == {}


def test_a_model_that_cannot_be_captured_runs_without(
    runner: ChunkRunner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ragvl.reranker.chunks._Graph", Graphs(RuntimeError("no such luck")))
    chunk = Chunk.pack([suffix(0, 3, prefix=0, dropped=0)], Shape(32, 1, 2, 3))
    monkeypatch.setattr(runner, "_relevance", lambda chunk: chunk.last_rows)
    assert runner._capture(chunk.shape)(chunk).tolist() == [2]
    assert "cannot be captured as a CUDA graph and runs without: no such luck" in caplog.text


def test_graphs_are_captured_ahead_for_questions_of_usual_length(
    runner: ChunkRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_graphs", {})
    runner.prepare(19, 20)  # there are none on a CPU
    assert runner._graphs == {}
    monkeypatch.setattr(runner, "_on_gpu", True)
    monkeypatch.setattr("ragvl.reranker.chunks._Graph", Graphs())
    runner.prepare(19, 20)
    assert [shape[2:] for shape in runner._graphs] == [(32, 32), (32, 64)]
