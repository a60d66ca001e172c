from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_files import write_picture
from integrations.conftest import Asked
from later import Later

from ragvl import Document as Ours
from ragvl.server.settings import TINY_RERANKER
from ragvl.server.stages import Stages

rerankers = Later("rerankers")
integration = Later("ragvl.integrations.rerankers")


@pytest.fixture
def documents(asked: Asked) -> list[Any]:
    return [
        rerankers.Document(
            text=one.caption,
            doc_id=one.id,
            document_type="image",
            base64=b64encode(one.image).decode(),
            metadata={"place": i},
        )
        for i, one in enumerate(asked.documents)
    ]


def scores(ranking: Any) -> list[tuple[Any, float]]:
    return [(one.doc_id, one.score) for one in ranking]


def test_orders_pictures_by_ragvls_own_scores(
    asked: Asked, documents: list[Any], demo: Stages
) -> None:
    ranker = integration.RagVLRanker(demo.reranker)
    ranking = ranker.rank(asked.question, documents)
    assert scores(ranking) == asked.scores
    assert [one.rank for one in ranking] == list(range(1, len(documents) + 1))
    assert ranking.query == asked.question and ranking.has_scores
    assert scores(ranking.top_k(2)) == asked.scores[:2]
    assert {one.doc_id: one.place for one in ranking} == {
        one.id: i for i, one in enumerate(asked.documents)
    }
    again = asyncio.run(ranker.rank_async(asked.question, documents))
    assert scores(again) == asked.scores
    id, score = asked.scores[0]
    (best,) = (one for one in documents if one.doc_id == id)
    assert ranker.score(asked.question, best) == score
    assert ranker.rank(asked.question, []).results == []


def test_ids_and_metadata_leave_what_was_given_as_it_is(
    asked: Asked, documents: list[Any], demo: Stages
) -> None:
    ranker = integration.RagVLRanker(demo.reranker)
    names = [f"new {i}" for i in range(len(documents))]
    ranking = ranker.rank(asked.question, documents, names, [{"name": name} for name in names])
    assert {one.doc_id for one in ranking} == {one.name for one in ranking} == set(names)
    assert [one.doc_id for one in documents] == [one.id for one in asked.documents]
    assert documents[0].metadata == {"place": 0}
    with pytest.raises(ValueError, match="8 documents, and 1 doc_ids"):
        ranker.rank(asked.question, documents, ["one"])


def test_texts_and_files_by_its_own_factory(asked: Asked, tmp_path: Path) -> None:
    ranker = rerankers.Reranker(
        str(TINY_RERANKER), model_type="RagVLRanker", verbose=0, device="cpu", dtype="float32"
    )
    path = write_picture(tmp_path / "a.png", "red")
    page = rerankers.Document(document_type="image", image_path=str(path))
    ranking = ranker.rank(asked.question, ["Velmora has a red tower.", page])
    ours = [Ours(text="Velmora has a red tower."), Ours(path)]
    expected = ranker._ranking.reranker.score([(asked.question, one) for one in ours]).tolist()
    assert dict(scores(ranking)) == dict(enumerate(expected))
    assert ranker.score(asked.question, "Velmora has a red tower.") == expected[0]


def test_refuses_by_name(asked: Asked, documents: list[Any], demo: Stages) -> None:
    ranker = integration.RagVLRanker(demo.reranker)
    for page, reason in (
        (rerankers.Document(document_type="image", doc_id="mine"), "neither a text nor a picture"),
        (rerankers.Document(document_type="image", doc_id="mine", base64="???"), "not base64"),
        (
            rerankers.Document(document_type="image", doc_id="mine", image_path="https://a/b.png"),
            "URL",
        ),
    ):
        with pytest.raises(ValueError, match=f"mine.*{reason}"):
            ranker.rank(asked.question, [*documents, page])


def test_retrieves_reranks_and_answers(
    run_example: Callable[[str], dict[str, Any]],
    demo: Stages,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = run_example("with_rerankers.py")
    question = demo.examples[0]
    found = [hit.document for hit in demo.retriever.retrieve(question, 20)]
    ranked = demo.reranker.rank(question, found, top_k=2, threshold=0.5, progress=False)
    evidence = [one for one in ranked if one.kept]
    assert scores(example["best"]) == [(one.document.id, one.score) for one in evidence]
    answer = demo.generator.answer(question, [one.document for one in evidence])
    assert capsys.readouterr().out.splitlines()[-1] == answer
