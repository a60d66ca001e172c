"""Retrieve, rerank, answer: the stages are wired in order and say what they did."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ragvl import Document, Generator, RagVL, Reranker, Retriever
from ragvl.data.synthetic import Places, write_world
from ragvl.data.webqa import WebQA
from ragvl.reranker import THRESHOLDS_FILE, SavedThresholds
from ragvl.retriever import DualEncoder

ASSETS = Path(__file__).parent.parent / "ragvl" / "assets"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> WebQA:
    folder = write_world(tmp_path_factory.mktemp("world"), Places(), counts={"test": 12}, seed=3)
    return WebQA(folder, split="test")


@pytest.fixture(scope="module")
def stages(dataset: WebQA) -> tuple[Retriever, Reranker, Generator]:
    encoder = DualEncoder.from_pretrained(ASSETS / "tiny-retriever", device="cpu")
    return (
        Retriever(encoder, list(dataset.documents())),
        Reranker.from_pretrained(ASSETS / "tiny-reranker", device="cpu"),
        Generator.from_pretrained(ASSETS / "tiny-generator", device="cpu"),
    )


@pytest.mark.slow
def test_an_answer_carries_every_stage(
    dataset: WebQA, stages: tuple[Retriever, Reranker, Generator]
) -> None:
    retriever, reranker, generator = stages
    question = dataset.questions[0]
    answer = RagVL(retriever, reranker, generator, num_candidates=10, threshold=0.0).answer(
        question.text
    )
    result = retriever.retrieve(question.text, 10)
    assert [r.id for r in answer.retrieved] == [r.id for r in result]
    expected = reranker.rank(question.text, [r.document for r in result], threshold=0.0)
    assert [r.index for r in answer.ranked] == [r.index for r in expected]
    assert answer.evidence == answer.ranked[:2]
    assert answer.grounded
    assert answer.text == generator.answer(question.text, [r.document for r in expected[:2]])
    assert set(answer.timings) == {"retrieve", "rerank", "generate"}
    assert all(milliseconds > 0 for milliseconds in answer.timings.values())


@pytest.mark.slow
def test_the_retrievers_order_counts_as_estimated(
    dataset: WebQA, stages: tuple[Retriever, Reranker, Generator], tmp_path: Path
) -> None:
    retriever, _, generator = stages
    question = dataset.questions[0].text
    saved = SavedThresholds.of_model(ASSETS / "tiny-reranker")
    assert saved is not None
    folder = shutil.copytree(ASSETS / "tiny-reranker", tmp_path / "reranker")
    estimated = replace(saved, encoder=retriever.name, retriever_weight=1e6)
    estimated.save(folder / THRESHOLDS_FILE)
    reranker = Reranker.from_pretrained(folder, device="cpu")
    weighed = RagVL(retriever, reranker, generator, num_candidates=6).answer(question)
    assert [one.index for one in weighed.ranked] == list(range(6)), "in the retriever's order"
    alone = RagVL(retriever, reranker, generator, num_candidates=6, retriever_weight=0)
    replace(estimated, encoder="another").save(folder / THRESHOLDS_FILE)
    other = Reranker.from_pretrained(folder, device="cpu")
    unlike = RagVL(retriever, other, generator, num_candidates=6)
    for rag in (alone, unlike):
        raw = [one.raw for one in rag.answer(question).ranked]
        assert raw == sorted(raw, reverse=True)
    with pytest.raises(ValueError, match="retriever_weight=-1"):
        RagVL(*stages, retriever_weight=-1)


def test_nothing_left_is_answered_without_a_picture_and_says_so(
    dataset: WebQA, stages: tuple[Retriever, Reranker, Generator]
) -> None:
    retriever, reranker, generator = stages
    question = dataset.questions[0].text
    answer = RagVL(retriever, reranker, generator, threshold=1.0).answer(question)
    assert answer.evidence == []
    assert not answer.grounded
    assert answer.text == generator.answer(question, [])


def test_bad_input(stages: tuple[Retriever, Reranker, Generator]) -> None:
    rag = RagVL(*stages)
    with pytest.raises(ValueError, match="empty"):
        rag.answer("  ")
    with pytest.raises(ValueError, match="top_k=0"):
        RagVL(*stages, top_k=0)
    empty = Retriever(stages[0].encoder, [])
    with pytest.raises(ValueError, match="no documents"):
        RagVL(empty, *stages[1:]).answer("What color is it?")


def test_the_shipped_reranker_tells_twins_apart(dataset: WebQA, stages: tuple) -> None:
    """Half of these distractors differ from the right picture by one syllable of the caption."""
    _, reranker, _ = stages
    pairs: list[tuple[str, Document]] = []
    is_gold: list[bool] = []
    for question in dataset.questions:
        for ids, gold in ((question.gold, True), (question.negatives, False)):
            pairs += [(question.text, dataset.document(document_id)) for document_id in ids]
            is_gold += [gold] * len(ids)
    said_yes = (reranker.score(pairs) >= 0.5).tolist()
    right = [said == gold for said, gold in zip(said_yes, is_gold, strict=True)]
    assert sum(right) / len(right) > 0.8
