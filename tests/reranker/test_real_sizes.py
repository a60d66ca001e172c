"""Scores at the sizes of real models, on a GPU with its graphs; the tiny one runs anywhere."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from baselines import SerialGenerate
from models import build_model
from shapes import SHAPES
from torch import Tensor
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin
from workload import fitting_questions, write_documents

from ragvl import Document, Reranker
from ragvl.mllm import MLLM

SIZES = [
    "tiny",
    *(pytest.param(name, marks=pytest.mark.gpu) for name in ("internvl2-1b", "qwen3-vl-2b")),
]
HALF = torch.bfloat16


@dataclass(frozen=True)
class Setup:
    model: PreTrainedModel
    stock: PreTrainedModel
    processor: ProcessorMixin
    documents: list[Document]
    queries: list[str]

    def mllm(self, dtype: torch.dtype) -> MLLM:
        return MLLM(self.model.to(dtype), self.processor)

    @property
    def pairs(self) -> list[tuple[str, Document]]:
        return [(query, document) for query in self.queries for document in self.documents]


@pytest.fixture(scope="module", params=SIZES)
def setup(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Setup]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, processor = build_model(SHAPES[request.param], device=device, dtype=HALF)
    stock, _ = build_model(SHAPES[request.param], device=device, dtype=HALF)
    documents = write_documents(tmp_path_factory.mktemp("pictures"), 8)
    reranker = Reranker(MLLM(model, processor), prefix_cache=None)
    queries = fitting_questions(reranker, documents[0], 4, 30)
    yield Setup(model, stock, processor, documents, queries)
    del model, stock, reranker
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.slow
def test_scores_are_those_of_generate(setup: Setup) -> None:
    plain, ours = {}, {}
    for dtype in (HALF, torch.float32):
        mllm = setup.mllm(dtype)
        serial = SerialGenerate(setup.stock.to(dtype), Reranker(mllm, prefix_cache=None))
        scores = [serial.score(query, setup.documents) for query in setup.queries]
        plain[dtype] = torch.tensor(scores).flatten()
        ours[dtype] = Reranker(mllm).score(setup.pairs, progress=False)
    exact = plain[torch.float32]
    assert exact.std() > 1e-3, "scores that are all alike would agree in any case"
    torch.testing.assert_close(ours[torch.float32], exact, rtol=0, atol=1e-5)
    error, of_generate = ((scores[HALF] - exact).abs().max() for scores in (ours, plain))
    assert error <= 2 * of_generate + 1e-3


@pytest.mark.parametrize("dtype", [HALF, torch.float32], ids=str)
def test_company_and_cache_change_no_bit(setup: Setup, dtype: torch.dtype) -> None:
    mllm, pairs = setup.mllm(dtype), setup.pairs
    reranker = Reranker(mllm)
    cold = reranker.score(pairs, progress=False)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    shuffled = reranker.score([pairs[i] for i in order.tolist()], progress=False)
    assert torch.equal(reranker.score(pairs, progress=False), cold)
    assert torch.equal(shuffled, cold[order])
    assert torch.equal(torch.cat([reranker.score([pair]) for pair in pairs]), cold)
    assert torch.equal(Reranker(mllm, prefix_cache=None).score(pairs, progress=False), cold)


@pytest.mark.slow
def test_two_threads_get_the_scores_of_one(setup: Setup) -> None:
    mllm = setup.mllm(HALF)
    expected = Reranker(mllm).score(setup.pairs, progress=False)
    shared = Reranker(mllm)  # with nothing cached: both build
    scores: list[Tensor] = []

    def score() -> None:
        on_gpu = mllm.device.type == "cuda"
        with torch.cuda.stream(torch.cuda.Stream()) if on_gpu else nullcontext():
            for _ in range(3):
                scores.append(shared.score(setup.pairs, progress=False))

    threads = [threading.Thread(target=score) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(scores) == 6
    assert all(torch.equal(each, expected) for each in scores)


@pytest.mark.gpu
def test_memory_does_not_grow(setup: Setup) -> None:
    reranker = Reranker(setup.mllm(HALF))
    questions = itertools.cycle(fitting_questions(reranker, setup.documents[0], 1000, 30))

    def allocated_after(count: int) -> int:
        for _ in range(count):
            reranker.rank(next(questions), setup.documents)
        gc.collect()
        return torch.cuda.memory_allocated()

    before = allocated_after(50)
    assert allocated_after(2000) - before <= 2**20
