"""The index's prefixes are computed behind the work of requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ragvl import Document, Reranker, Retriever
from ragvl.server.app import create_app
from ragvl.server.errors import Overloaded
from ragvl.server.services import Services
from ragvl.server.stages import TINY_RERANKER, Stages
from ragvl.server.warming import warm_index

MakeServices = Callable[..., Services]


def _retriever(demo: Stages, documents: Sequence[Document]) -> Retriever:
    assert demo.retriever is not None
    return Retriever(demo.retriever.encoder, documents)


def _pictures(demo: Stages, count: int) -> list[Document]:
    assert demo.retriever is not None
    return list(demo.retriever.documents.values())[:count]


def _warm(services: Services) -> None:
    services.engine.start()
    try:
        asyncio.run(warm_index(services))
    finally:
        services.close()


def _reranker(size: str) -> Reranker:
    return Reranker.from_pretrained(TINY_RERANKER, device="cpu", dtype="float32", prefix_cache=size)


def test_the_whole_index_becomes_warm(
    demo: Stages, make_services: MakeServices, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = _pictures(demo, 1)[0].image
    assert isinstance(picture, bytes)
    lost = tmp_path / "lost.png"
    lost.write_bytes(picture)
    documents = [Document(lost, id="lost"), *_pictures(demo, 40)]
    retriever = _retriever(demo, documents)
    lost.unlink()
    services = make_services(reranker=_reranker("64MiB"), retriever=retriever)
    with caplog.at_level(logging.INFO):
        _warm(services)
    assert services.warming == (41, 41)
    assert all(services.reranker.is_warm(document) for document in documents[1:])
    assert "41 documents, of which 1 cannot be used" in caplog.text


def test_it_ends_where_the_cache_is_full(
    demo: Stages, make_services: MakeServices, caplog: pytest.LogCaptureFixture
) -> None:
    services = make_services(reranker=_reranker("2MiB"), retriever=demo.retriever)
    _warm(services)
    assert services.warming is not None
    done, total = services.warming
    assert 0 < done < total
    assert f"{done} of the index's {total} documents" in caplog.text


def test_it_waits_for_room(demo: Stages, make_services: MakeServices) -> None:
    services = make_services(
        reranker=_reranker("64MiB"), retriever=_retriever(demo, _pictures(demo, 5))
    )
    warm, refusals = services.engine.warm, [Overloaded("full", retry_after=0)]

    async def refused_at_first(documents: Sequence[Document]) -> object:
        if refusals:
            raise refusals.pop()
        return await warm(documents)

    services.engine.warm = refused_at_first  # type: ignore[method-assign, assignment]
    _warm(services)
    assert services.warming == (5, 5)


def test_a_server_that_ends_stops_it(demo: Stages, make_services: MakeServices) -> None:
    services = make_services(
        reranker=_reranker("64MiB"), retriever=demo.retriever, warm=True, grace=5
    )
    with TestClient(create_app(services)) as client:
        told = client.get("/ready").json()
    assert told["warming"]["total"] == 300
    assert services.warming is not None
    assert services.warming[0] < 300
