"""Runs a server until it is told to end."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any

import uvicorn

from ragvl.prefix_cache import PrefixCache
from ragvl.retriever import DocumentRetriever
from ragvl.server.access import ApiKeys
from ragvl.server.app import create_app
from ragvl.server.backend import Backend
from ragvl.server.connections import Connection
from ragvl.server.documents import DocumentStore
from ragvl.server.engine import Engine
from ragvl.server.fetch import PictureFetcher
from ragvl.server.metrics import Metrics
from ragvl.server.services import Services
from ragvl.server.settings import ServerSettings
from ragvl.server.stages import Stages

_log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LAST_SECONDS = 5.0  # after the grace time, for a pass that goes on
_OTHER_FILES = 256  # beside connections: models, documents, pictures, threads
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
            http=partial(Connection, settings=settings),  # type: ignore[arg-type]
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
        for one in sockets or ():
            where = {"url": url_of(one), "model": self._services.model_name}
            _log.info("listening", extra={"fields": where})
        self.listening.set()

    def stop(self) -> None:
        """Begins to end, from any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # its loop is closed: it has ended
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
        if not self.is_clean and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().call_later(_LAST_SECONDS, os._exit, 1)


def make_prefix_cache(settings: ServerSettings) -> PrefixCache:
    """The tiers in which the reranker keeps prefixes, as the settings say."""
    folder = settings.cache
    return PrefixCache(
        settings.device_cache,
        host_bytes=settings.host_cache,
        folder=None if folder is None else folder / "prefixes",
        disk_bytes=settings.disk_cache,
        compression=settings.compression,
        image_tokens=settings.image_tokens,
    )


def build_services(
    stages: Stages, settings: ServerSettings, *, model: str, keys: ApiKeys | None = None
) -> Services:
    """What the routes work with, over the models of this process.

    Args:
        stages: the models, and the index.
        settings: the limits.
        model: the reranker's hub id or folder; a folder's name is what answers call it.
        keys: API keys, if any are needed.

    Raises:
        OSError: the cache's folder cannot be used.
    """
    metrics = Metrics()
    reranker = stages.reranker
    metrics.watch_tiers(reranker.prefix_cache.statistics)
    return services_over(
        Engine(reranker, settings, metrics),
        settings,
        metrics,
        model=model,
        threshold=reranker.threshold,
        thresholds=reranker.thresholds,
        retriever=stages.retriever,
        retriever_weight=stages.retriever_weight,
        generator=stages.generator,
        examples=stages.examples,
        keys=keys,
    )


def services_over(
    engine: Backend,
    settings: ServerSettings,
    metrics: Metrics,
    *,
    model: str,
    retriever: DocumentRetriever | None = None,
    **others: Any,
) -> Services:
    """What the routes work with, over whatever computes.

    Args:
        engine: computes.
        settings: the limits.
        metrics: the figures, those of `engine` among them.
        model: the reranker's hub id or folder; a folder's name is what answers call it.
        retriever: the index, whose documents are known by their ids.
        others: further fields of `Services`.

    Raises:
        OSError: the cache's folder cannot be used.
    """
    name = name_of_model(model)
    services = Services(
        settings=settings,
        engine=engine,
        documents=DocumentStore.by(settings, None if retriever is None else retriever.documents),
        fetcher=PictureFetcher(
            settings.allow_urls,
            allow_private=settings.allow_private_urls,
            max_bytes=settings.url_bytes,
            seconds=settings.url_seconds,
            max_redirects=settings.url_redirects,
        ),
        model_name=settings.model_name or name,
        model_aliases=() if settings.model_name is None else (name,),
        retriever=retriever,
        metrics=metrics,
        pool=ThreadPoolExecutor(settings.threads, thread_name_prefix="ragvl-bodies"),
        small_pictures=ThreadPoolExecutor(1, thread_name_prefix="ragvl-pictures"),
        **others,
    )
    store = services.documents
    metrics.watch("documents", "Documents that clients put.", lambda: len(store))
    metrics.watch("documents_bytes", "Bytes of these documents.", lambda: store.num_bytes)
    metrics.watch("draining", "1 once the server is about to end.", lambda: services.is_draining)
    return services


def name_of_model(model: str) -> str:
    """What answers call a model: its hub id, or its folder's name."""
    return os.path.basename(os.path.abspath(model)) if os.path.isdir(model) else model


def ready(load: Callable[[], Stages]) -> Stages:
    """What `load` gives, once the reranker has been called: what a first call refuses shows then.

    Raises:
        ValueError: the model and the settings of its cache do not go together.
    """
    stages = load()
    stages.reranker.score([])
    return stages


def run_server(services: Services, bound: socket.socket) -> int:
    """Serves until a signal; the exit code: 0 where all that was accepted was answered."""
    with closing(services):
        _keep_freed_memory()
        _allow_files(services.settings.max_connections + _OTHER_FILES)
        server = Server(services)
        server.run([bound])
    if not server.started:
        return 1
    _log.info("ended", extra={"fields": {"clean": server.is_clean}})
    return 0 if server.is_clean else 1


def _keep_freed_memory() -> None:
    """Has glibc keep memory that was freed, for what comes next.

    Else, in a thread that is not the first, it gives most of what a pass used back to the system
    after the pass, and the next one takes a fourth longer for asking it again page by page.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another libc has none
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most it takes


def _allow_files(count: int) -> None:
    """Has this process open so many files, where the system lets it; each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < count:
        _log.warning("%d files may be open here, and --max-connections wants %d", most, count)
