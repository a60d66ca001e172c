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
from ragvl.server.stages import Stages

callbacks = Later("llama_index.core.callbacks")
schema = Later("llama_index.core.schema")
integration = Later("ragvl.integrations.llama_index")


@pytest.fixture
def nodes(asked: Asked) -> list[schema.NodeWithScore]:
    return [
        schema.NodeWithScore(
            node=schema.ImageNode(
                id_=one.id, text=one.caption, image=b64encode(one.image).decode()
            ),
            score=0.5,
        )
        for one in asked.documents
    ]


def scores(nodes: list[schema.NodeWithScore]) -> list[tuple[str, float | None]]:
    return [(one.node_id, one.score) for one in nodes]


@pytest.mark.slow
def test_orders_image_nodes_by_ragvls_own_scores(
    asked: Asked, nodes: list[schema.NodeWithScore], demo: Stages
) -> None:
    reranker = integration.RagVLRerank(model=demo.reranker)
    found = reranker.postprocess_nodes(nodes, query_str=asked.question)
    assert scores(found) == asked.scores
    assert {one.score for one in nodes} == {0.5}
    assert {id(one.node) for one in found} == {id(one.node) for one in nodes}
    again = reranker.apostprocess_nodes(nodes, query_str=asked.question)
    assert scores(asyncio.run(again)) == asked.scores
    assert reranker.postprocess_nodes([], query_str=asked.question) == []


def test_top_n_threshold_and_what_callbacks_are_told(
    asked: Asked, nodes: list[schema.NodeWithScore], demo: Stages
) -> None:
    told = callbacks.LlamaDebugHandler(print_trace_on_end=False)
    reranker = integration.RagVLRerank(
        model=demo.reranker,
        top_n=3,
        threshold=0.5,
        callback_manager=callbacks.CallbackManager([told]),
    )
    found = reranker.postprocess_nodes(nodes, query_str=asked.question)
    assert scores(found) == [(id, score) for id, score in asked.scores[:3] if score >= 0.5]
    ((start, end),) = told.get_event_pairs(callbacks.CBEventType.RERANKING)
    assert start.payload["query_str"] == asked.question
    assert end.payload["nodes"] == found


def test_pictures_wherever_a_node_has_them(asked: Asked, demo: Stages, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", "red")
    data = path.read_bytes()
    nodes = [
        schema.ImageNode(text="a caption", image_path=str(path)),
        schema.ImageNode(text="a caption", image_url=path.as_uri()),
        schema.ImageNode(
            text="a caption", image=f"data:image/png;base64,{b64encode(data).decode()}"
        ),
        schema.ImageDocument(text="a caption", image_path=str(path)),
        schema.Document(text="a caption", image_resource=schema.MediaResource(data=data)),
        schema.TextNode(text="a caption", metadata={"image": data}),
    ]
    reranker = integration.RagVLRerank(model=demo.reranker)
    given = [schema.NodeWithScore(node=node) for node in nodes]
    found = reranker.postprocess_nodes(given, query_str=asked.question)
    (expected,) = demo.reranker.score([(asked.question, Ours(data, "a caption"))]).tolist()
    assert [one.score for one in found] == [expected] * len(nodes)


def test_texts_and_their_metadata(asked: Asked, demo: Stages) -> None:
    node = schema.TextNode(text="A red tower.", metadata={"town": "Velmora"})
    ours = [Ours(text="A red tower."), Ours(text="town: Velmora\n\nA red tower.")]
    expected = demo.reranker.score([(asked.question, one) for one in ours]).tolist()
    for mode, score in zip(
        (schema.MetadataMode.NONE, schema.MetadataMode.ALL), expected, strict=True
    ):
        reranker = integration.RagVLRerank(model=demo.reranker, metadata_mode=mode)
        (found,) = reranker.postprocess_nodes(
            [schema.NodeWithScore(node=node)], query_str=asked.question
        )
        assert found.score == score
    assert expected[0] != expected[1]


def test_refuses_by_name(asked: Asked, nodes: list[schema.NodeWithScore], demo: Stages) -> None:
    reranker = integration.RagVLRerank(model=demo.reranker)
    for node, reason in (
        (
            schema.ImageNode(id_="mine", image_url="https://example.org/a.png"),
            "URLs are not fetched",
        ),
        (schema.ImageNode(id_="mine", image="not base64!"), "not base64"),
        (schema.TextNode(id_="mine", text=""), "neither a text nor a picture"),
    ):
        with pytest.raises(ValueError, match=f"mine.*{reason}"):
            reranker.postprocess_nodes(
                [*nodes, schema.NodeWithScore(node=node)], query_str=asked.question
            )
    with pytest.raises(ValueError, match="no query"):
        reranker.postprocess_nodes(nodes)


@pytest.mark.slow
def test_retrieves_reranks_and_answers(
    run_example: Callable[[str], dict[str, Any]],
    demo: Stages,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = run_example("with_llama_index.py")
    response, question = example["response"], demo.examples[0]
    found = [
        demo.retriever.get(one.node_id) for one in example["engine"].retriever.retrieve(question)
    ]
    assert len(found) == 20
    ranked = demo.reranker.rank(question, found, top_k=2, threshold=0.5, progress=False)
    evidence = [one for one in ranked if one.kept]
    assert scores(response.source_nodes) == [(one.document.id, one.score) for one in evidence]
    assert str(response) == demo.generator.answer(question, [one.document for one in evidence])
    assert capsys.readouterr().out.splitlines()[-1] == str(response)
