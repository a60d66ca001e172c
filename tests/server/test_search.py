"""Search and answers over HTTP are those of the pipeline in this process."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from ragvl import Document, Query, RagVL, Retriever
from ragvl.reranker import place_prior
from ragvl.server.app import create_app
from ragvl.server.services import Services
from ragvl.server.stages import Stages

MakeServices = Callable[..., Services]


@pytest.fixture(scope="module")
def services(demo: Stages, make_services: MakeServices) -> Services:
    return make_services(
        reranker=demo.reranker, retriever=demo.retriever, generator=demo.generator, max_documents=50
    )


@pytest.fixture(scope="module")
def client(services: Services) -> Iterator[TestClient]:
    with TestClient(create_app(services)) as client:
        yield client


def _asked(client: TestClient, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_search_is_retrieving_and_ranking(client: TestClient, demo: Stages) -> None:
    assert demo.retriever is not None
    for question in demo.examples[:3]:
        answer = _asked(client, "/v1/search", query=question, num_candidates=7, top_n=5)
        found = demo.retriever.retrieve(question, 7)
        ranked = demo.reranker.rank(question, [hit.document for hit in found], top_k=5)
        told = [(one["index"], one["relevance_score"], one["kept"]) for one in answer["results"]]
        assert told == [(one.index, one.score, one.kept) for one in ranked]
        for one in answer["results"]:
            hit = found[one["index"]]
            assert (one["id"], one["retrieval_score"]) == (hit.id, hit.score)
        assert answer["threshold"] == demo.reranker.threshold
        assert "retriever_weight" not in answer
        assert answer["timings"].keys() == {"queue", "retrieve", "score", "total"}


def test_the_indexs_order_counts_in_reranking(demo: Stages, make_services: MakeServices) -> None:
    assert demo.retriever is not None
    question = demo.examples[0]
    services = make_services(reranker=demo.reranker, retriever=demo.retriever, retriever_weight=2.5)
    with TestClient(create_app(services)) as client:
        answer = _asked(client, "/v1/search", query=question, num_candidates=8)
        given = _asked(client, "/v1/search", query=question, documents=["Red.", "Blue."])
    assert answer["retriever_weight"] == 2.5
    found = demo.retriever.retrieve(question, 8)
    documents = [hit.document for hit in found]
    ranked = demo.reranker.rank(question, documents, prior=place_prior(8, 2.5))
    told = [(one["index"], one["raw_score"], one["kept"]) for one in answer["results"]]
    assert told == [(one.index, one.raw, one.kept) for one in ranked]
    assert told != [
        (one.index, one.raw, one.kept) for one in demo.reranker.rank(question, documents)
    ]
    assert "retriever_weight" not in given, "what a request brings was not retrieved"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "body"),
    [
        ({}, {}),
        ({"threshold": "adaptive", "top_k": 1}, {"threshold": "adaptive", "top_k": 1}),
        ({"threshold": 1.0}, {"threshold": 1.0}),
        ({"num_candidates": 5}, {"num_candidates": 5, "top_n": 1}),
    ],
)
def test_an_answer_is_the_pipelines(
    settings: dict[str, Any], body: dict[str, Any], client: TestClient, demo: Stages
) -> None:
    assert demo.retriever is not None
    assert demo.generator is not None
    rag = RagVL(demo.retriever, demo.reranker, demo.generator, **settings)
    for question in demo.examples[4:6]:
        expected = rag.answer(question, max_new_tokens=4)
        answer = _asked(client, "/v1/answer", query=question, max_tokens=4, **body)
        assert answer["answer"] == expected.text
        assert answer["grounded"] == expected.grounded
        assert answer["evidence"] == [one.index for one in expected.evidence]
        ranked = [(one.index, one.score, one.raw) for one in expected.ranked]
        results = [
            (one["index"], one["relevance_score"], one["raw_score"]) for one in answer["results"]
        ]
        assert results == ranked[: body.get("top_n")]
        times = answer["timings"]
        assert times.keys() == {"queue", "retrieve", "score", "generate", "total"}
        assert sum(times.values()) - times["total"] <= times["total"]


def test_company_changes_nothing(client: TestClient, demo: Stages) -> None:
    def ask(question: str) -> dict[str, Any]:
        answer = _asked(client, "/v1/answer", query=question, max_tokens=4, num_candidates=6)
        return {name: answer[name] for name in ("answer", "evidence", "results")}

    questions = demo.examples[:4]
    alone = [ask(question) for question in questions]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, questions)) == alone


def test_metrics_tell_the_time_of_each_stage(client: TestClient, demo: Stages) -> None:
    _asked(client, "/v1/answer", query=demo.examples[0], max_tokens=1, num_candidates=2)
    metrics = client.get("/metrics").text
    assert "ragvl_queue_seconds_count 0.0" not in metrics
    for kind in ("retrieve", "score", "generate"):
        assert f'ragvl_pass_seconds_count{{kind="{kind}"}}' in metrics


def test_documents_of_a_request_are_all_reranked(client: TestClient, demo: Stages) -> None:
    assert demo.retriever is not None
    known = list(demo.retriever.documents.values())[:3]
    pictures = [
        {"image": base64.b64encode(one.image).decode(), "text": one.caption, "id": f"own {i}"}
        for i, one in enumerate(known)
        if isinstance(one.image, bytes)
    ]
    question = demo.examples[0]
    answer = _asked(client, "/v1/search", query=question, documents=pictures, return_documents=True)
    ranked = demo.reranker.rank(question, known)
    results = answer["results"]
    assert [(one["index"], one["relevance_score"]) for one in results] == [
        (one.index, one.score) for one in ranked
    ]
    assert [one["id"] for one in results] == [f"own {one.index}" for one in ranked]
    assert [one["document"] for one in results] == [{"text": o.document.caption} for o in ranked]
    assert all("retrieval_score" not in one for one in results)
    assert "retrieve" not in answer["timings"]


def test_a_picture_is_searched_for(client: TestClient, demo: Stages) -> None:
    assert demo.retriever is not None
    (id, document), *_ = demo.retriever.documents.items()
    assert isinstance(document.image, bytes)
    query = {"image": base64.b64encode(document.image).decode(), "text": "Where is this?"}
    answer = _asked(client, "/v1/search", query=query, num_candidates=3)
    found = demo.retriever.retrieve(Query("Where is this?", document.image), 3)
    assert id in [hit.id for hit in found]
    results = sorted(answer["results"], key=lambda one: one["index"])
    assert [one["id"] for one in results] == [hit.id for hit in found]
    error = _asked(client, "/v1/answer", 422, query=query)["error"]
    assert error["param"] == "query"
    query["image"] = base64.b64encode(document.image[: len(document.image) // 2]).decode()
    error = _asked(client, "/v1/search", 422, query=query)["error"]
    assert error["param"] == "query"


def test_a_broken_document_of_the_index_is_told_and_left_out(
    demo: Stages, make_services: MakeServices, tmp_path: Path
) -> None:
    assert demo.retriever is not None
    pictures = []
    for i, document in enumerate(list(demo.retriever.documents.values())[:4]):
        assert isinstance(document.image, bytes)
        (tmp_path / f"{i}.png").write_bytes(document.image)
        pictures.append(Document(tmp_path / f"{i}.png", document.caption, id=f"picture {i}"))
    retriever = Retriever(demo.retriever.encoder, pictures)
    question = demo.examples[0]
    services = make_services(reranker=demo.reranker, retriever=retriever, generator=demo.generator)
    with TestClient(create_app(services)) as client:
        whole = _asked(client, "/v1/search", query=question)
        assert "unusable" not in whole
        (tmp_path / "2.png").unlink()
        (tmp_path / "3.png").write_bytes(b"no picture")
        rest = _asked(client, "/v1/search", query=question)
        assert sorted(rest["unusable"]) == ["picture 2", "picture 3"]
        left = [one for one in whole["results"] if one["id"] not in rest["unusable"]]
        assert rest["results"] == left
        for i in range(2):
            (tmp_path / f"{i}.png").unlink()
        none = _asked(client, "/v1/search", 500, query=question)
        assert none["error_type"] == "unreadable_document"


@pytest.mark.parametrize(
    ("path", "body", "status", "place"),
    [
        ("/v1/search", {}, 422, "query"),
        ("/v1/search", {"query": " "}, 422, "query"),
        ("/v1/search", {"query": "a", "num_candidates": 0}, 422, "num_candidates"),
        ("/v1/search", {"query": "a", "num_candidates": 51}, 422, "num_candidates"),
        ("/v1/search", {"query": "a", "threshold": "no such"}, 422, "threshold"),
        ("/v1/search", {"query": "a", "threshold": 1.5}, 422, "threshold"),
        ("/v1/search", {"query": "a", "documents": []}, 422, "documents"),
        ("/v1/search", {"query": "a", "documents": [{"id": "no such"}]}, 404, "documents[0].id"),
        ("/v1/search", {"query": "a", "model": "another"}, 404, "model"),
        ("/v1/search", {"query": "a", "documents": ["b"], "num_candidates": 1}, 422, None),
        ("/v1/search", {"query": "a", "use_activation": False}, 422, "use_activation"),
        ("/v1/search", {"query": "a", "top_k": 2}, 422, "top_k"),
        ("/v1/search", {"query": {"image": "AAAA"}}, 422, "query.image"),
        ("/v1/answer", {"query": "a", "top_k": 0}, 422, "top_k"),
        ("/v1/answer", {"query": "a", "max_tokens": 0}, 422, "max_tokens"),
        ("/v1/answer", {"query": "a", "max_tokens": 257}, 422, "max_tokens"),
        ("/v1/search", {"query": "word " * 5000}, 413, "retrieved[0]"),
        ("/v1/answer", {"query": "word " * 5000, "documents": ["a"]}, 413, "documents[0]"),
    ],
)
def test_bad_requests(
    path: str, body: dict[str, Any], status: int, place: str | None, client: TestClient
) -> None:
    error = _asked(client, path, status, **body)["error"]
    assert error["param"] == place


def test_nothing_is_answered_after_its_deadline(client: TestClient, demo: Stages) -> None:
    for path in ("/v1/search", "/v1/answer"):
        answer = client.post(
            path, json={"query": demo.examples[0]}, headers={"X-Request-Timeout": "0.000001"}
        )
        assert answer.status_code == 504


def test_a_server_without_index_and_generator_says_so(make_services: MakeServices) -> None:
    with TestClient(create_app(make_services())) as client:
        error = _asked(client, "/v1/search", 404, query="a")
        assert "no index" in error["detail"]
        assert _asked(client, "/v1/search", query="a", documents=["b", "c"])["results"]
        error = _asked(client, "/v1/answer", 404, query="a", documents=["b"])
        assert "no generator" in error["detail"]
