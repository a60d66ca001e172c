"""Models, health, readiness, metrics."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from ragvl.server.app import create_app


def test_the_model_is_listed_by_its_name(client: httpx2.Client, tiny_reranker: Any) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert model["id"] == "tiny-reranker" and model["object"] == "model"
    assert model["threshold"] == tiny_reranker.threshold
    assert client.get("/v1/models/tiny-reranker").json() == model


def test_an_unknown_model_is_not_found(client: httpx2.Client) -> None:
    answer = client.get("/v1/models/other/one")
    assert answer.status_code == 404
    assert answer.json()["error_type"] == "not_found"
    assert "tiny-reranker" in answer.json()["detail"]


def test_health_and_ready(client: httpx2.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready", "warming": None}


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/metrics", "/v1/models", "/nowhere"])
def test_head_is_get_without_the_body(client: httpx2.Client, path: str) -> None:
    got, head = client.get(path), client.head(path)
    assert head.status_code == got.status_code
    assert head.headers["Content-Type"] == got.headers["Content-Type"]
    assert int(head.headers["Content-Length"]) > 0 and not head.content
    assert client.head("/v1/rerank").status_code == 405
    metrics = client.get("/metrics").text
    assert f'method="HEAD",route="{path if got.is_success else "other"}"' in metrics


def test_not_ready_once_it_is_about_to_end(make_services: Any) -> None:
    services = make_services(is_draining=True)
    with TestClient(create_app(services)) as client:
        answer = client.get("/ready")
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "shutting_down"
        assert client.get("/health").status_code == 200


def test_ready_says_how_far_warming_is(make_services: Any) -> None:
    with TestClient(create_app(make_services(warming=(3, 7)))) as client:
        assert client.get("/ready").json()["warming"] == {"done": 3, "total": 7}


def test_metrics_count_answers_by_route_and_status(client: httpx2.Client) -> None:
    client.get("/v1/models/no-such-model-at-all")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    counted = [line for line in lines if line.startswith("ragvl_requests_total{")]
    assert any('route="/v1/models/{model:path}"' in x and 'status="404"' in x for x in counted)
    assert "no-such-model-at-all" not in answer.text  # labels hold nothing of users


def test_metrics_tell_of_the_cache_the_queue_and_the_process(client: httpx2.Client) -> None:
    body = {"query": "Is it red?", "documents": ["metrics are red"]}
    for _ in range(2):
        client.post("/v1/rerank", json=body).raise_for_status()
    figures = dict(
        line.rsplit(" ", 1)
        for line in client.get("/metrics").text.splitlines()
        if not line.startswith("#")
    )
    assert float(figures['ragvl_cache_bytes{tier="device"}']) > 0
    assert float(figures['ragvl_cache_hits_total{tier="device"}']) >= 1
    assert float(figures["ragvl_pairs_total"]) >= 2
    assert float(figures["ragvl_queue_seconds_count"]) >= 2
    assert float(figures['ragvl_prompt_tokens_total{state="cached"}']) > 0
    assert figures["ragvl_queued_pairs"] == figures["ragvl_draining"] == "0.0"
    assert float(figures["process_open_fds"]) > 0
    assert not any("_created" in name for name in figures)
