"""Runs a server until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from ragvl.server.app import create_app
from ragvl.server.services import Services

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AT_ONCE = 130  # the exit code of a second signal


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: a port that is taken shows before models load.

    Raises:
        OSError: the address is not this machine's, or the port is taken.
    """
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def url_of(bound: socket.socket) -> str:
    """Where a server on that socket is found, as `http://host:port`."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT, or `stop`; then answers what was accepted, and ends.

    A second signal ends the process at once.

    Args:
        services: what is served.

    Attributes:
        listening: set once requests are answered.
        is_clean: whether all that was accepted was answered within the grace time.
    """

    def __init__(self, services: Services) -> None:
        settings = services.settings
        config = uvicorn.Config(
            create_app(services),
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=max(1, round(settings.keep_alive)),
        )
        super().__init__(config)
        self._services = services
        self._ending: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_clean = True
        self.listening = threading.Event()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves on bound sockets, and returns when it has ended."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        self.listening.set()

    def stop(self) -> None:
        """Begins to end, from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin_to_end)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Has signals end the server; unlike uvicorn's, without raising them again after it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for one in _SIGNALS:
            loop.add_signal_handler(one, self._on_signal)
        try:
            yield
        finally:
            for one in _SIGNALS:
                loop.remove_signal_handler(one)

    def _on_signal(self) -> None:
        if self._ending is not None:
            _log.warning("a second signal: ending at once")
            os._exit(_AT_ONCE)
        self._begin_to_end()

    def _begin_to_end(self) -> None:
        if self._ending is None:
            self._services.is_draining = True
            self._ending = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        grace = self._services.settings.grace
        _log.info("ending", extra={"fields": {"grace_s": grace}})
        started = time.monotonic()
        try:
            self.is_clean = await self._services.engine.drain(grace)
        finally:
            left = grace - (time.monotonic() - started)
            self.config.timeout_graceful_shutdown = max(1, round(left))
            self.should_exit = True


def serve(services: Services, bound: socket.socket) -> int:
    """Serves until a signal; the exit code: 0 where all that was accepted was answered."""
    server = Server(services)
    where = {"url": url_of(bound), "model": services.model_name}
    _log.info("listening", extra={"fields": where})
    server.run([bound])
    if not server.started:
        return 1
    _log.info("ended", extra={"fields": {"clean": server.is_clean}})
    return 0 if server.is_clean else 1
