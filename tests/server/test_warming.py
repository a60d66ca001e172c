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
from ragvl.server.settings import TINY_RERANKER
from ragvl.server.stages import Stages
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
    documents = [Document(lost, id="lost"), *_pictures(demo, 9)]
    retriever = _retriever(demo, documents)
    lost.unlink()
    reranker = _reranker("64MiB")
    services = make_services(reranker=reranker, retriever=retriever)
    with caplog.at_level(logging.INFO):
        _warm(services)
    assert services.warming == (10, 10)
    assert all(reranker.is_warm(document) for document in documents[1:])
    assert "10 documents, of which 1 cannot be used" in caplog.text


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
    warm, refusals = services.engine.warm, [Overloaded("full", retry_after=1)]
    refusals[0].retry_after = 0  # it is never so little, and a test need not wait

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


@pytest.mark.parametrize("patience", [60, 0])
def test_requests_go_first_but_not_for_ever(
    patience: float, demo: Stages, make_services: MakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragvl.server.warming._PATIENCE", patience)
    services = make_services(
        reranker=_reranker("64MiB"), retriever=_retriever(demo, _pictures(demo, 3))
    )
    warm, asked = services.engine.warm, asyncio.Event()

    async def noted(documents: Sequence[Document]) -> object:
        asked.set()
        return await warm(documents)

    services.engine.warm = noted  # type: ignore[method-assign, assignment]

    async def in_company() -> None:
        with services.engine.accept():
            warming = asyncio.create_task(warm_index(services))
            for _ in range(9):
                await asyncio.sleep(0)
            assert asked.is_set() == (patience == 0)
        await warming
        assert services.warming == (3, 3)

    services.engine.start()
    try:
        asyncio.run(in_company())
    finally:
        services.close()
