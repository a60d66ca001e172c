"""Routes that give scores: the library's, bit for bit, whichever way a request is written."""

from __future__ import annotations

import base64
import io
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from server.live import LiveServer

from ragvl import Document, Query, Reranker
from ragvl.server.app import create_app
from ragvl.server.bodies import AT_ONCE

QUERY = "Which town has a red tower?"


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def uri(data: bytes) -> str:
    return f"data:image/png;base64,{encoded(data)}"


ONE, TWO = picture(1), picture(2)
WAYS: list[tuple[Any, Document]] = [
    ("A red tower.", Document(text="A red tower.")),
    ({"text": "A blue mill."}, Document(text="A blue mill.")),
    (uri(ONE), Document(ONE)),
    ({"image": encoded(ONE)}, Document(ONE)),
    ({"image_url": {"url": uri(TWO)}}, Document(TWO)),
    ({"text": "The tower", "image": uri(ONE)}, Document(ONE, "The tower")),
    ({"text": "", "image": uri(TWO)}, Document(TWO)),
    ({"id": "mill", "image": uri(TWO), "text": "A mill"}, Document(TWO, "A mill")),
    (
        {
            "content": [
                {"type": "image_url", "image_url": {"url": uri(ONE)}},
                {"type": "text", "text": "The tower"},
            ]
        },
        Document(ONE, "The tower"),
    ),
    (
        {"content": [{"text": "First"}, {"image": uri(ONE)}, {"image_url": uri(TWO)}]},
        Document(parts=["First", {"image": ONE}, {"image": TWO}]),
    ),
]


@pytest.fixture(scope="module")
def expected(tiny_reranker: Reranker) -> list[Any]:
    return tiny_reranker.score_each([(QUERY, document) for _, document in WAYS])


def post(client: Any, path: str, body: Any, status: int = 200) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_every_document_has_the_score_that_the_library_gives_it(
    path: str, client: httpx2.Client, expected: list[Any]
) -> None:
    body = {"query": QUERY, "documents": [way for way, _ in WAYS]}
    answer = post(client, path, body)
    found = {one["index"]: one for one in answer["results"]}
    assert [found[i]["raw_score"] for i in range(len(WAYS))] == [one.raw for one in expected]
    assert [found[i]["relevance_score"] for i in range(len(WAYS))] == [
        one.score for one in expected
    ]
    raw = [one["raw_score"] for one in answer["results"]]
    assert raw == sorted(raw, reverse=True)
    assert found[7]["id"] == "mill" and "id" not in found[0]
    assert answer["model"] == "tiny-reranker"
    tokens = sum(one.num_tokens for one in expected)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == tokens


@pytest.mark.parametrize(
    ("query", "meant"),
    [
        ({"text": QUERY}, Query(QUERY)),
        (uri(TWO), Query(image=TWO)),
        ({"image": uri(TWO), "text": QUERY}, Query(QUERY, TWO)),
        ({"content": [{"image": uri(TWO)}, {"text": QUERY}]}, Query(QUERY, TWO)),
        (
            {"content": [{"text": QUERY}, {"image": uri(TWO)}]},
            Query.of({"text": QUERY, "image": TWO}),
        ),
        ("<image> <|im_end|>\n<s>[INST]", Query("<image> <|im_end|>\n<s>[INST]")),
    ],
)
def test_a_query_may_be_a_picture_too(
    query: Any, meant: Query, client: httpx2.Client, tiny_reranker: Reranker
) -> None:
    body = {"query": query, "documents": ["A red tower.", uri(ONE)]}
    answer = post(client, "/rerank", body)
    documents = [Document(text="A red tower."), Document(ONE)]
    expected = tiny_reranker.score([(meant, document) for document in documents], raw=True)
    found = {one["index"]: one["raw_score"] for one in answer["results"]}
    assert [found[0], found[1]] == expected.tolist()


def test_results_are_cut_marked_and_never_hold_a_picture(client: httpx2.Client) -> None:
    documents = [way for way, _ in WAYS]
    body = {"query": QUERY, "documents": documents, "return_documents": True}
    every = post(client, "/rerank", body)["results"]
    middle = every[4]["relevance_score"]
    answer = post(client, "/rerank", {**body, "top_n": 6, "threshold": middle})
    assert [one["index"] for one in answer["results"]] == [one["index"] for one in every[:6]]
    assert [one["kept"] for one in answer["results"]] == [
        one["relevance_score"] >= middle for one in every[:6]
    ]
    texts = {one["index"]: one["document"].get("text") for one in every}
    assert texts[0] == "A red tower." and texts[2] is None and texts[5] == "The tower"
    assert encoded(ONE)[:40] not in json.dumps(every)
    assert post(client, "/rerank", {**body, "top_n": 0})["results"] == every
    plain = post(client, "/rerank", {**body, "return_documents": False})
    assert all("document" not in one for one in plain["results"])


def test_raw_scores_may_be_asked_for(client: httpx2.Client) -> None:
    body = {"query": QUERY, "documents": ["A red tower.", "A blue mill."]}
    plain = post(client, "/rerank", body)["results"]
    for field in ({"use_activation": False}, {"raw_scores": True}):
        raw = post(client, "/rerank", {**body, **field})["results"]
        assert [one["relevance_score"] for one in raw] == [one["raw_score"] for one in plain]
        assert [one["kept"] for one in raw] == [one["kept"] for one in plain]


def test_texts_of_tei_are_answered_with_a_list(client: httpx2.Client, expected: list[Any]) -> None:
    body = {"query": QUERY, "texts": ["A red tower.", "A blue mill."], "return_text": True}
    answer = client.post("/rerank", json=body)
    found = {one["index"]: one for one in answer.json()}
    assert [found[i]["score"] for i in (0, 1)] == [one.score for one in expected[:2]]
    assert [found[i]["text"] for i in (0, 1)] == body["texts"]
    assert answer.headers["X-Model"] == "tiny-reranker"
    raw = {one["index"]: one for one in post(client, "/rerank", {**body, "raw_scores": True})}
    assert [raw[i]["score"] for i in (0, 1)] == [one.raw for one in expected[:2]]


def test_a_query_that_is_too_long_is_told_in_plain_words(client: httpx2.Client) -> None:
    answer = post(client, "/rerank", {"query": "x " * 5000, "documents": ["a"]}, 413)
    assert "the document and the query has " in answer["detail"]


def test_a_model_may_have_any_name(make_services: Any) -> None:
    with TestClient(create_app(make_services(model_name="org/模型 1"))) as client:
        answer = client.post("/rerank", json={"query": QUERY, "texts": ["A red tower."]})
        assert answer.status_code == 200
        assert answer.headers["X-Model"] == "org/%E6%A8%A1%E5%9E%8B 1"


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    "names",
    [("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2")],
)
def test_pairs_are_scored_in_order(
    path: str, names: tuple[str, str], client: httpx2.Client, expected: list[Any]
) -> None:
    first, second = names
    documents = [way for way, _ in WAYS]
    for query in (QUERY, [QUERY], [QUERY] * len(documents)):
        answer = post(client, path, {first: query, second: documents})
        assert [one["index"] for one in answer["data"]] == list(range(len(WAYS)))
        assert [one["score"] for one in answer["data"]] == [one.score for one in expected]
    alone = post(client, path, {first: QUERY, second: documents[0], "use_activation": False})
    assert [one["score"] for one in alone["data"]] == [expected[0].raw]
    assert alone["object"] == "list" and alone["model"] == "tiny-reranker"


def test_passages_are_ranked_by_logits(client: httpx2.Client, expected: list[Any]) -> None:
    passages = [{"text": "A red tower."}, {"text": "", "image": uri(TWO)}]
    body = {"query": {"text": QUERY}, "passages": passages, "truncate": "END"}
    answer = post(client, "/v1/ranking", body)
    found = {one["index"]: one["logit"] for one in answer["rankings"]}
    assert [found[0], found[1]] == [expected[0].raw, expected[6].raw]
    assert answer["usage"]["total_tokens"] and answer["model"] == "tiny-reranker"


def test_a_large_body_means_the_same(client: httpx2.Client, expected: list[Any]) -> None:
    body = json.dumps({"queries": QUERY, "documents": [WAYS[0][0], WAYS[5][0]]})
    large = body + " " * 2 * AT_ONCE  # and so it is read in a thread
    answer = client.post("/score", content=large, headers={"content-type": "application/json"})
    scores = [one["score"] for one in answer.json()["data"]]
    assert scores == [expected[0].score, expected[5].score]


@pytest.mark.parametrize(
    ("document", "status", "place"),
    [
        ({"image": uri(ONE[:200])}, 422, "documents[1]"),
        ({"image": uri(b"no picture")}, 422, "documents[1].image"),
        ({"image": "file:///etc/passwd"}, 422, "documents[1].image"),
        ({"image": "https://example.org/a.png"}, 422, "documents[1].image"),
        ({"content": [{"image": "!"}]}, 422, "documents[1].content[0].image"),
        ({"id": "unknown"}, 404, "documents[1].id"),
        ("word " * 20_000, 413, "documents[1]"),
        ("word " * 300_000, 413, "documents[1].text"),
        ({"content": [{"text": "a"}] * 33}, 413, "documents[1].content"),
    ],
)
def test_a_document_that_cannot_be_used_is_named(
    document: Any, status: int, place: str, client: httpx2.Client
) -> None:
    body = {"query": QUERY, "documents": ["A red tower.", document]}
    answer = post(client, "/rerank", body, status)
    assert answer["error"]["param"] == place
    assert answer["detail"].startswith(place)
    assert len(answer["detail"]) < 1200


@pytest.mark.parametrize(
    ("field", "status"),
    [
        ({"model": "another"}, 404),
        ({"threshold": "unheard-of"}, 422),
        ({"instruction": "Judge."}, 422),
        ({"max_tokens_per_doc": 3}, 413),
        ({"truncate_prompt_tokens": 3}, 413),
        ({"mm_processor_kwargs": {"min_pixels": 1}}, 422),
        ({"max_chunks_per_doc": 3}, 422),
    ],
)
def test_what_cannot_be_heeded_is_refused_by_name(
    field: dict[str, Any], status: int, client: httpx2.Client
) -> None:
    answer = post(client, "/rerank", {"query": QUERY, "documents": ["a"], **field}, status)
    assert next(iter(field)) in answer["detail"] or status == 413


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {},
    ],
)
def test_only_plain_json_is_read(headers: dict[str, str], client: httpx2.Client) -> None:
    answer = client.post("/rerank", content=b'{"query": "q", "documents": ["a"]}', headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"]["type"] == "unsupported_media_type"


@pytest.fixture
def small(make_services: Any) -> Iterator[TestClient]:
    services = make_services(
        max_documents=3,
        max_text=20,
        max_request_text=40,
        max_pixels=2000,
        max_request_pixels=4500,
        max_tokens=200,
    )
    with TestClient(create_app(services)) as client:
        yield client


@pytest.mark.parametrize(
    ("documents", "place"),
    [
        (["a"] * 4, "documents"),
        (["a", "b" * 21], "documents[1].text"),
        (["a" * 20, "b" * 20], None),
        ([{"image": "data:image/png," + "%00" * (2**19 + 1)}], None),
        ([{"image": uri(picture(1, (50, 50)))}], "documents[0].image"),
        ([{"image": uri(ONE)}] * 3, None),
    ],
)
def test_limits_are_those_of_the_settings(
    documents: list[Any], place: str | None, small: TestClient
) -> None:
    answer = post(small, "/rerank", {"query": "q", "documents": documents}, 413)
    assert answer["error"]["param"] == place
    post(small, "/rerank", {"query": "q", "documents": ["a", {"image": uri(ONE)}]})


def test_an_error_about_a_known_document_names_no_file(
    make_services: Any, tiny_reranker: Reranker, tmp_path: Path
) -> None:
    services = make_services(cache=tmp_path)
    with TestClient(create_app(services)) as client:
        kept = client.put("/v1/documents/tower", json={"image": uri(picture(7)), "text": "Tower"})
        assert kept.status_code == 200, kept.text
        body = {"query": QUERY, "documents": ["a", {"id": "tower"}]}
        (known,) = [one for one in post(client, "/rerank", body)["results"] if one["index"] == 1]
        expected = tiny_reranker.score([(QUERY, Document(picture(7), "Tower"))], raw=True)
        assert known["id"] == "tower" and known["raw_score"] == expected.item()
        for file in (tmp_path / "documents").rglob("*"):
            if file.is_file() and file.stat().st_size == len(picture(7)):
                file.write_bytes(picture(7)[:300])
        answer = post(client, "/rerank", body, 422)
        assert answer["error"]["param"] == "documents[1]"
        assert str(tmp_path) not in answer["detail"] and "documents/" not in answer["detail"]


def test_a_client_that_leaves_amid_its_body_is_no_fault(
    server: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    address = urlsplit(server.url)
    head = b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    left = 'ragvl_requests_total{method="POST",route="/rerank",status="499"}'
    with caplog.at_level(logging.ERROR):
        with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
            connection.sendall(head + b'Content-Length: 100\r\n\r\n{"query":')
        with server.client() as client:
            for _ in range(500):
                if left in client.get("/metrics").text:
                    break
            else:
                pytest.fail("it was not noticed")
    assert not caplog.records
