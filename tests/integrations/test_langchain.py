from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import pytest
from integrations.conftest import Asked
from later import Later
from pydantic import ValidationError

from ragvl import Document as Ours
from ragvl.server.settings import TINY_RERANKER
from ragvl.server.stages import Stages

langchain = Later("langchain_core.documents")
integration = Later("ragvl.integrations.langchain")


@pytest.fixture
def documents(asked: Asked) -> list[langchain.Document]:
    return [
        langchain.Document(one.caption, metadata={"image": one.image, "place": i}, id=one.id)
        for i, one in enumerate(asked.documents)
    ]


def scores(documents: list[langchain.Document]) -> list[tuple[str | None, float]]:
    return [(one.id, one.metadata["relevance_score"]) for one in documents]


def test_orders_copies_by_ragvls_own_scores(
    asked: Asked, documents: list[langchain.Document], demo: Stages
) -> None:
    before = copy.deepcopy(documents)
    found = integration.RagVLReranker(model=demo.reranker).compress_documents(
        documents, asked.question
    )
    assert scores(found) == asked.scores
    assert documents == before
    for one in found:
        given = documents[one.metadata["place"]]
        assert one.metadata == {
            **given.metadata,
            "relevance_score": one.metadata["relevance_score"],
        }
        assert one.page_content == given.page_content


def test_top_n_and_threshold(
    asked: Asked, documents: list[langchain.Document], demo: Stages
) -> None:
    reranker = integration.RagVLReranker(model=demo.reranker, top_n=5)
    assert scores(reranker.compress_documents(documents, asked.question)) == asked.scores[:5]
    relevant = integration.RagVLReranker(model=demo.reranker, threshold="natural")
    kept = [(id, score) for id, score in asked.scores if score >= 0.5]
    assert scores(relevant.compress_documents(documents, asked.question)) == kept
    assert 0 < len(kept) < len(documents)


def test_async_leaves_the_loop_free(
    asked: Asked, documents: list[langchain.Document], demo: Stages
) -> None:
    reranker = integration.RagVLReranker(model=demo.reranker)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def run() -> list[list[tuple[str | None, float]]]:
        counting = asyncio.create_task(count())
        both = [reranker.acompress_documents(documents, asked.question) for _ in range(2)]
        found = await asyncio.gather(*both)
        counting.cancel()
        return [scores(list(one)) for one in found]

    assert asyncio.run(run()) == [asked.scores] * 2
    assert turns > 2


def test_texts_and_another_key(asked: Asked, demo: Stages) -> None:
    picture = asked.documents[0].image
    documents = [
        langchain.Document("Velmora has a red tower."),
        langchain.Document("", metadata={"page": picture}),
    ]
    found = integration.RagVLReranker(model=demo.reranker, image_key="page").compress_documents(
        documents, asked.question
    )
    pairs = [
        (asked.question, Ours(text="Velmora has a red tower.")),
        (asked.question, Ours(picture)),
    ]
    expected = demo.reranker.score(pairs).tolist()
    assert sorted(one.metadata["relevance_score"] for one in found) == sorted(expected)


def test_a_folder_and_settings(asked: Asked, documents: list[langchain.Document]) -> None:
    settings = {"device": "cpu", "dtype": "float32", "prefix_cache": "16MiB"}
    reranker = integration.RagVLReranker(model=str(TINY_RERANKER), top_n=1, model_kwargs=settings)
    assert scores(reranker.compress_documents(documents, asked.question)) == asked.scores[:1]
    assert reranker.compress_documents([], asked.question) == []


def test_refuses_by_name(asked: Asked, documents: list[langchain.Document], demo: Stages) -> None:
    reranker = integration.RagVLReranker(model=demo.reranker)
    url = langchain.Document(
        "a caption", metadata={"image": "https://example.org/a.png"}, id="mine"
    )
    with pytest.raises(ValueError, match=r"mine.*URLs are not fetched"):
        reranker.compress_documents([*documents, url], asked.question)
    with pytest.raises(ValueError, match="query is empty"):
        reranker.compress_documents(documents, " ")
    for wrong in ({"top_n": 0}, {"topn": 3}, {"threshold": 2.0}):
        with pytest.raises((ValidationError, ValueError), match=next(iter(wrong))):
            integration.RagVLReranker(model=demo.reranker, **wrong)


@pytest.mark.slow
def test_retrieves_reranks_and_answers(
    run_example: Callable[[str], dict[str, Any]],
    demo: Stages,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = run_example("with_langchain.py")
    question = demo.examples[0]
    candidates = [hit.document for hit in demo.retriever.retrieve(question, 20)]
    ranked = demo.reranker.rank(question, candidates, top_k=2, threshold=0.5, progress=False)
    evidence = [one for one in ranked if one.kept]
    result = asyncio.run(example["chain"].ainvoke(question))
    assert scores(result["documents"]) == [(one.document.id, one.score) for one in evidence]
    assert result["answer"] == demo.generator.answer(question, [one.document for one in evidence])
    assert capsys.readouterr().out.splitlines()[-1] == result["answer"]
