"""A server in a thread of the tests' process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from ragvl.server.run import Server, bind, url_of
from ragvl.server.services import Services

MODEL_NAME = "tiny-reranker"
MakeServices = Callable[..., Services]
_START_SECONDS, _ANSWER_SECONDS = 30, 300  # bounds, not waits


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
        return httpx2.Client(base_url=self.url, timeout=_ANSWER_SECONDS, **settings)


@contextmanager
def live(services: Services) -> Iterator[LiveServer]:
    """A live server over `services`, ended with the block."""
    bound = bind("127.0.0.1", 0)
    server = Server(services)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        assert server.listening.wait(_START_SECONDS)
        yield LiveServer(url_of(bound), services, server, thread)
    finally:
        server.stop()
        thread.join(_START_SECONDS)
        bound.close()
        assert not thread.is_alive()
