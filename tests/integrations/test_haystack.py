from __future__ import annotations

import asyncio
import copy
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

haystack = Later("haystack")
dataclasses = Later("haystack.dataclasses")
integration = Later("ragvl.integrations.haystack")


@pytest.fixture
def documents(asked: Asked) -> list[haystack.Document]:
    return [
        haystack.Document(
            id=one.id,
            content=one.caption,
            blob=dataclasses.ByteStream(one.image, mime_type="image/png"),
            meta={"place": i},
            score=0.5,
        )
        for i, one in enumerate(asked.documents)
    ]


def scores(documents: list[haystack.Document]) -> list[tuple[str, float | None]]:
    return [(one.id, one.score) for one in documents]


def test_orders_copies_by_ragvls_own_scores(
    asked: Asked, documents: list[haystack.Document], demo: Stages
) -> None:
    before = copy.deepcopy(documents)
    ranker = integration.RagVLRanker(demo.reranker)
    found = ranker.run(asked.question, documents)["documents"]
    assert scores(found) == asked.scores
    assert documents == before
    for one in found:
        given = documents[one.meta["place"]]
        assert (one.content, one.blob, one.meta) == (given.content, given.blob, given.meta)
    again = asyncio.run(ranker.run_async(asked.question, documents))["documents"]
    assert scores(again) == asked.scores
    assert ranker.run(asked.question, []) == {"documents": []}


def test_what_a_call_asks_for_goes_first(
    asked: Asked, documents: list[haystack.Document], demo: Stages
) -> None:
    ranker = integration.RagVLRanker(demo.reranker, top_k=1, score_threshold=1.0)
    assert ranker.run(asked.question, documents) == {"documents": []}
    found = ranker.run(asked.question, documents, top_k=3, score_threshold=0.0)["documents"]
    assert scores(found) == asked.scores[:3]
    found = ranker.run(asked.question, documents, top_k=8, score_threshold=0.5)["documents"]
    assert scores(found) == [(id, score) for id, score in asked.scores if score >= 0.5]
    for wrong in ({"top_k": 0}, {"score_threshold": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[-1]):
            ranker.run(asked.question, documents, **wrong)
        with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[-1]):
            integration.RagVLRanker(demo.reranker, **wrong)


def test_a_pipeline_is_written_and_read(asked: Asked, documents: list[haystack.Document]) -> None:
    pipeline = haystack.Pipeline()
    settings = {"device": "cpu", "dtype": "float32"}
    ranker = integration.RagVLRanker(
        TINY_RERANKER, top_k=2, score_threshold="natural", model_kwargs=settings
    )
    pipeline.add_component("ranker", ranker)
    text = pipeline.dumps()
    assert "prefix_cache" not in text
    read = haystack.Pipeline.loads(text, allowed_modules=["ragvl.integrations.haystack"])
    assert read.get_component("ranker").to_dict() == ranker.to_dict()
    result = read.run({"ranker": {"query": asked.question, "documents": documents}})
    kept = [(id, score) for id, score in asked.scores[:2] if score >= 0.5]
    assert scores(result["ranker"]["documents"]) == kept


def test_a_loaded_reranker_is_not_written(demo: Stages) -> None:
    with pytest.raises(ValueError, match="loaded Reranker"):
        integration.RagVLRanker(demo.reranker).to_dict()


def test_pictures_wherever_a_document_has_them(asked: Asked, demo: Stages, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", "red")
    data = path.read_bytes()
    documents = [
        haystack.Document(content="a caption", blob=dataclasses.ByteStream(data)),
        haystack.Document(content="a caption", meta={"page": str(path)}),
        haystack.Document(
            content="a caption", blob=dataclasses.ByteStream(b"%PDF", mime_type="application/pdf")
        ),
    ]
    ranker = integration.RagVLRanker(demo.reranker, image_meta_field="page")
    found = ranker.run(asked.question, documents)["documents"]
    ours = [Ours(data, "a caption"), Ours(text="a caption")]
    picture, text = demo.reranker.score([(asked.question, one) for one in ours]).tolist()
    by_id = {one.id: one.score for one in found}
    assert [by_id[one.id] for one in documents] == [picture, picture, text]


def test_refuses_by_name(asked: Asked, documents: list[haystack.Document], demo: Stages) -> None:
    ranker = integration.RagVLRanker(demo.reranker)
    for document, reason in (
        (haystack.Document(id="mine", meta={"image": "missing.png"}), "there is no such file"),
        (
            haystack.Document(id="mine", blob=dataclasses.ByteStream(b"", mime_type="text/plain")),
            "neither a text nor",
        ),
        (
            haystack.Document(id="mine", blob=dataclasses.ByteStream(b"?", mime_type="image/png")),
            "picture",
        ),
    ):
        with pytest.raises(ValueError, match=f"mine.*{reason}"):
            ranker.run(asked.question, [*documents, document])


@pytest.mark.slow
def test_retrieves_reranks_and_answers(
    run_example: Callable[[str], dict[str, Any]],
    demo: Stages,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = run_example("with_haystack.py")
    result, question = example["result"], demo.examples[0]
    found = [demo.retriever.get(one.id) for one in result["retriever"]["documents"]]
    assert len(found) == 20
    ranked = demo.reranker.rank(question, found, top_k=2, threshold=0.5, progress=False)
    evidence = [one for one in ranked if one.kept]
    best = [(one.document.id, one.score) for one in evidence]
    assert scores(result["ranker"]["documents"]) == best
    answer = demo.generator.answer(question, [one.document for one in evidence])
    assert capsys.readouterr().out.splitlines()[-1] == answer
    pipeline = haystack.Pipeline()
    pipeline.add_component(
        "ranker", integration.RagVLRanker(demo.reranker, top_k=2, score_threshold=0.5)
    )
    asked = {"query": question, "documents": result["retriever"]["documents"]}
    again = asyncio.run(pipeline.run_async({"ranker": asked}))
    assert scores(again["ranker"]["documents"]) == best
