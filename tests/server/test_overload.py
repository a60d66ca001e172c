"""Over HTTP: company changes no bit, a full queue refuses, who goes away leaves no work behind."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from server.gated import WAIT, Gate
from server.live import LiveServer, MakeServices, live

from ragvl import Document, Query, Reranker

TEXTS = [f"The barn number {i} stands on a hill." for i in range(6)]


def body(i: int = 0, count: int = 3) -> dict[str, Any]:
    documents = [TEXTS[(i + k) % len(TEXTS)] for k in range(count)]
    return {"query": f"Which barn is number {i}?", "documents": documents}


@pytest.fixture
def gated(make_services: MakeServices, gate: Gate) -> Iterator[LiveServer]:
    """A server whose queue has room for eight pairs, of which a pass has two."""
    services = make_services(gate, max_pairs=8, pass_pairs=2, turn_pairs=2)
    with live(services) as server:
        yield server
        gate.let_all_pass()


@pytest.mark.slow
def test_requests_that_come_together_have_the_bits_that_each_has_alone(
    server: LiveServer, tiny_reranker: Reranker
) -> None:
    bodies = [body(i, 1 + i % 5) for i in range(40)]
    with server.client() as client, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda one: client.post("/v1/rerank", json=one), bodies))
    for asked, answer in zip(bodies, answers, strict=True):
        assert answer.status_code == 200
        query = Query(asked["query"])
        pairs = [(query, Document(text=text)) for text in asked["documents"]]
        results = sorted(answer.json()["results"], key=lambda result: result["index"])
        raw = [result["raw_score"] for result in results]
        assert raw == tiny_reranker.score(pairs, raw=True).tolist()


def test_a_full_queue_refuses_with_a_time_to_come_again_and_goes_on(
    gated: LiveServer, gate: Gate
) -> None:
    with gated.client() as client, gated.client() as other, ThreadPoolExecutor(1) as pool:
        held = pool.submit(client.post, "/v1/rerank", json=body(0, 6))
        assert gate.arrived.acquire(timeout=WAIT)
        refused = other.post("/v1/rerank", json=body(1, 3))
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "overloaded"
        assert int(refused.headers["Retry-After"]) >= 1
        too_large = other.post("/v1/rerank", json=body(1, 9))
        assert too_large.status_code == 413  # it never fits: coming again is of no use
        gate.let_all_pass()
        assert held.result(WAIT).status_code == 200
        assert other.post("/v1/rerank", json=body(1, 3)).status_code == 200


def test_a_deadline_ends_in_504_and_frees_its_place(gated: LiveServer, gate: Gate) -> None:
    with gated.client() as client:
        headers = {"X-Request-Timeout": "0.2"}
        late = client.post("/v1/rerank", json=body(0, 8), headers=headers)
        assert late.status_code == 504
        assert late.json()["error"]["type"] == "deadline_exceeded"
        gate.let_all_pass()
        assert client.post("/v1/rerank", json=body(1, 6)).status_code == 200
    assert sum(map(len, gate.passes)) <= 2 + 6


def test_a_client_that_goes_away_takes_its_work_out_of_the_queue(
    gated: LiveServer, gate: Gate
) -> None:
    data = json.dumps(body(0, 8)).encode()
    head = (
        "POST /v1/rerank HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    where = urlsplit(gated.url)
    with socket.create_connection((where.hostname, where.port), timeout=WAIT) as client:
        client.sendall(head.encode() + data)
        assert gate.arrived.acquire(timeout=WAIT)
    with gated.client() as other:
        while "ragvl_queued_pairs 2.0" not in other.get("/metrics").text:
            pass  # until the server has noticed
        gate.let_all_pass()
        assert other.post("/v1/rerank", json=body(1, 6)).status_code == 200
    assert sum(map(len, gate.passes)) == 2 + 6


def test_far_too_many_requests_are_all_answered_or_refused(gated: LiveServer, gate: Gate) -> None:
    gate.let_all_pass()
    with gated.client() as client, ThreadPoolExecutor(20) as pool:

        def ask(i: int) -> httpx2.Response:
            return client.post("/v1/rerank", json=body(i, 2))

        statuses = [answer.status_code for answer in pool.map(ask, range(120))]
        assert set(statuses) == {200, 429}
        assert ask(0).status_code == 200
    text = gated.services.metrics.text().decode()
    assert f"ragvl_pairs_total {2.0 * (statuses.count(200) + 1)}" in text
    assert f'ragvl_refused_total{{reason="pairs"}} {float(statuses.count(429))}' in text
    assert "ragvl_queued_pairs 0.0" in text
