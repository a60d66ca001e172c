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
from ragvl.reranker.chunks import Chunk, Shape, Suffix
from ragvl.reranker.graphs import Graphs
from ragvl.reranker.heads import AnswerHead
from ragvl.reranker.runner import ChunkRunner


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


def test_suffixes_share_a_chunk_with_equally_long_ones_where_that_decides_bits(
    runner: ChunkRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_by_length", True)  # as on a GPU, where layers carry states
    suffixes = [suffix(i, length) for i, length in enumerate([17, 33, 32, 5, 64, 20, 8])]
    chunks = [[s.index for s in chunk] for chunk in runner.chunks(suffixes, None)]
    assert chunks == [[3, 6], [0, 2, 5], [1, 4]]
    assert list(runner.chunks([], None)) == []


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


def fail(*errors: Exception) -> Callable[..., str]:
    """In the place of a capture: raises what is given, in turn, then captures."""
    coming = iter(errors)

    def capture(*_: object) -> str:
        error = next(coming, None)
        if error is None:
            return "a graph"
        try:
            raise error.__context__ or error
        except Exception:
            raise error  # noqa: B904 - as the end of a capture does, that fails for its own reason

    return capture


def during(error: Exception) -> Exception:
    invalid = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    invalid.__context__ = error
    return invalid


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    "error", [OUT, during(OUT), MemoryError(), RuntimeError("CUDA error: out of memory")]
)
def test_memory_that_runs_out_is_not_taken_for_a_model_that_cannot_be_captured(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs, shape = Graphs(torch.device("cpu"), "llava"), Shape(32, 1, 2, 3)
    monkeypatch.setattr(graphs, "_capture", fail(error))
    with pytest.raises(type(error)):
        graphs.of(shape, last_rows)
    # where other graphs hold memory they go, and it is tried once more
    monkeypatch.setattr(graphs, "_runs", {Shape(1, 1, 1, 1): last_rows})
    monkeypatch.setattr(graphs, "_capture", fail(error))
    assert graphs.of(shape, last_rows) == "a graph"
    assert list(graphs._runs) == [shape]


def last_rows(chunk: Chunk) -> torch.Tensor:
    return chunk.last_rows


def test_a_model_that_cannot_be_captured_runs_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = Graphs(torch.device("cpu"), "llava")
    monkeypatch.setattr(graphs, "_capture", fail(RuntimeError("no such luck")))
    chunk = Chunk.pack([suffix(0, 3, prefix=0, dropped=0)], Shape(32, 1, 2, 3))
    assert graphs.of(chunk.shape, last_rows)(chunk).tolist() == [2]
    assert "llava cannot be captured as a CUDA graph and runs without: no such" in caplog.text


def test_graphs_are_captured_ahead_for_questions_of_usual_length(
    runner: ChunkRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = runner._graphs
    runner.prepare(19, 20)  # there are none on a CPU
    assert graphs._runs == {}
    monkeypatch.setattr(runner, "_on_gpu", True)
    monkeypatch.setattr(graphs, "_capture", fail())
    runner.prepare(19, 20)
    assert [shape[2:] for shape in graphs._runs] == [(32, 32), (32, 64)]
    graphs._runs.clear()
