"""A server to ask: in this process for the application alone, and live on 127.0.0.1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from server.gated import Gate
from server.live import LiveServer, MakeServices, live

from ragvl import Reranker
from ragvl.server.app import create_app
from ragvl.server.run import build_services
from ragvl.server.services import Services
from ragvl.server.settings import TINY_RERANKER, ServerSettings
from ragvl.server.stages import Stages


@pytest.fixture(scope="session")
def make_services(tiny_reranker: Reranker) -> Iterator[MakeServices]:
    """`make_services(max_pairs=8, keys=...)`: services over the tiny reranker.

    Arguments that are fields of `ServerSettings` are settings; others are fields of `Services`.
    Requests have all the time that one may have, so that on a slow machine none is refused for it.
    """
    made: list[Services] = []

    def make(reranker: Reranker | None = None, **given: Any) -> Services:
        names = ServerSettings.model_fields
        settings = ServerSettings(
            **{"port": 0, "timeout": 600}
            | {key: value for key, value in given.items() if key in names}
        )
        others = {key: value for key, value in given.items() if key not in names}
        stages = Stages(
            tiny_reranker if reranker is None else reranker,
            others.pop("retriever", None),
            others.pop("generator", None),
            others.pop("examples", ()),
        )
        services = build_services(stages, settings, model=str(TINY_RERANKER))
        if "documents" in others:
            services.documents.close()
        for key, value in others.items():
            setattr(services, key, value)
        made.append(services)
        return services

    yield make
    for services in made:
        services.close()


@pytest.fixture(scope="session")
def server(make_services: MakeServices) -> Iterator[LiveServer]:
    """A live server with the defaults; change nothing in it that another test could see."""
    with live(make_services()) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx2.Client]:
    """A client of the live server."""
    with server.client() as client:
        yield client


@pytest.fixture
def app(make_services: MakeServices) -> FastAPI:
    """An application of its own, for starlette's TestClient."""
    return create_app(make_services())


@pytest.fixture
def gate(tiny_reranker: Reranker) -> Iterator[Gate]:
    """The tiny reranker behind a gate, opened at the end."""
    gate = Gate(tiny_reranker)
    yield gate
    gate.let_all_pass()
