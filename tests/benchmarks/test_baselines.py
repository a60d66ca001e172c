from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from baselines import (
    CrossEncoderBaseline,
    PaddedBatch,
    SerialGenerate,
    StockCache,
    stock_model,
)
from models import write_model
from shapes import SHAPES
from workload import questions, write_documents

from ragvl import Document, Reranker

(QUESTION,) = questions(1, num_words=9)
ON_A_STOCK_MODEL = [SerialGenerate, PaddedBatch, StockCache]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    write_model(folder, SHAPES["tiny"])
    return folder


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """Ragged captions, one of them with what Jinja and str.format would read as their own."""
    drawn = write_documents(tmp_path_factory.mktemp("pictures"), 5)
    odd = Document(drawn[0].image, caption="A {{ mill }} {% at %} <image> 'noon'\n in {1950} ö ")
    return [*drawn, odd]


def assert_same_scores(
    baseline: type, folder: Path, documents: list[Document], query: str = QUESTION
) -> None:
    reranker = Reranker.from_pretrained(folder, device="cpu", dtype="float32")
    expected = reranker.score([(query, document) for document in documents], progress=False)
    assert expected.std() > 1e-3, "scores that are all alike would agree whatever was computed"
    runs = folder if baseline is CrossEncoderBaseline else stock_model(folder, reranker)
    scorer = baseline(runs, reranker)
    for _ in range(2):  # the second time from what it keeps, if it keeps anything
        scores = scorer.score(query, documents)
        torch.testing.assert_close(torch.tensor(scores), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("baseline", [*ON_A_STOCK_MODEL, CrossEncoderBaseline])
def test_same_scores_as_the_reranker(
    baseline: type, checkpoint: Path, documents: list[Document]
) -> None:
    assert_same_scores(baseline, checkpoint, documents)
    assert_same_scores(baseline, checkpoint, documents[::-1], query="Is {{ it }} <image> 'so'?")


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ON_A_STOCK_MODEL)
def test_of_several_spellings_of_an_answer_one_is_read(
    baseline: type, tiny_model: Callable[[str], Path], documents: list[Document]
) -> None:
    assert_same_scores(baseline, tiny_model("internvl"), documents)  # it has "Yes" and " Yes"


@pytest.mark.slow
@pytest.mark.parametrize("shape", [name for name in SHAPES if name.startswith("tiny-")])
def test_a_stock_cache_knows_each_family(
    shape: str, tmp_path: Path, documents: list[Document]
) -> None:
    write_model(tmp_path, SHAPES[shape])
    assert_same_scores(StockCache, tmp_path, documents)


def test_a_stock_cache_asks_several_questions(checkpoint: Path, documents: list[Document]) -> None:
    reranker = Reranker.from_pretrained(checkpoint, device="cpu", dtype="float32")
    scorer = StockCache(stock_model(checkpoint, reranker), reranker)
    for query in questions(3, num_words=7):
        expected = reranker.score([(query, document) for document in documents], progress=False)
        scores = torch.tensor(scorer.score(query, documents))
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_cross_encoder_batches_do_not_change_scores(
    checkpoint: Path, documents: list[Document]
) -> None:
    reranker = Reranker.from_pretrained(checkpoint, device="cpu", dtype="float32")
    alone, together = (
        CrossEncoderBaseline(checkpoint, reranker, batch_size=size).score(QUESTION, documents)
        for size in (1, 20)
    )
    assert alone == pytest.approx(together, abs=1e-5)
