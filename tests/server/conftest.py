"""A server to ask: in this process for the application alone, and live on 127.0.0.1."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from server.gated import Gate

from ragvl import Reranker
from ragvl.server.app import create_app
from ragvl.server.metrics import Metrics
from ragvl.server.run import Server, bind, url_of
from ragvl.server.services import Services
from ragvl.server.settings import ServerSettings
from ragvl.server.stages import Stages, load_demo

TINY_RERANKER = Path(str(files("ragvl") / "assets" / "tiny-reranker"))
MODEL_NAME = "tiny-reranker"
_START_SECONDS = 30  # a bound, not a wait


@pytest.fixture(scope="session")
def tiny_reranker() -> Reranker:
    """The reranker that comes along, in float32 on the CPU; do not change it."""
    return Reranker.from_pretrained(
        TINY_RERANKER, device="cpu", dtype="float32", prefix_cache="64MiB"
    )


@pytest.fixture(scope="session")
def demo() -> Stages:
    """The demo's drawn world, indexed, and its models; do not change them."""
    return load_demo(device="cpu", prefix_cache="64MiB")


MakeServices = Callable[..., Services]


@pytest.fixture(scope="session")
def make_services(tiny_reranker: Reranker) -> MakeServices:
    """`make_services(max_pairs=8, keys=...)`: services over the tiny reranker.

    Arguments that are fields of `ServerSettings` are settings; others are fields of `Services`.
    """

    def make(reranker: Reranker | None = None, **given: Any) -> Services:
        names = ServerSettings.model_fields
        settings = ServerSettings(
            **{"port": 0, **{key: value for key, value in given.items() if key in names}}
        )
        others = {key: value for key, value in given.items() if key not in names}
        model = tiny_reranker if reranker is None else reranker
        Engine = pytest.importorskip("ragvl.server.engine").Engine
        metrics = Metrics()
        return Services(
            settings=settings,
            reranker=model,
            engine=Engine(model, settings, metrics),
            model_name=settings.model_name or MODEL_NAME,
            metrics=metrics,
            **others,
        )

    return make


@dataclass(frozen=True)
class LiveServer:
    """A server that runs in a thread of this process.

    Attributes:
        url: `http://127.0.0.1:PORT`.
        services: what it works with.
        server: uvicorn's; `server.stop()` is what SIGTERM does.
        thread: in which it runs.
    """

    url: str
    services: Services
    server: Server
    thread: threading.Thread

    def client(self, **settings: Any) -> httpx2.Client:
        """A client of it; the caller closes it."""
        return httpx2.Client(base_url=self.url, timeout=30, **settings)


@contextmanager
def live(services: Services) -> Iterator[LiveServer]:
    """A live server over `services`, ended with the block."""
    bound = bind("127.0.0.1", 0)
    server = Server(services)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
    thread.start()
    try:
        assert server.listening.wait(_START_SECONDS)
        yield LiveServer(url_of(bound), services, server, thread)
    finally:
        server.stop()
        thread.join(_START_SECONDS)
        bound.close()
        assert not thread.is_alive()


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
