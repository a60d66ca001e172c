"""The application: routes, what is done around each request, and how errors are answered."""

from __future__ import annotations

import asyncio
import pkgutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module

from fastapi import FastAPI

import ragvl
from ragvl.server import routes
from ragvl.server.access import KeyCheck
from ragvl.server.body_limits import BodyLimits
from ragvl.server.errors import install_error_answers
from ragvl.server.head_requests import HeadRequests
from ragvl.server.logs import hide_content
from ragvl.server.protocol.openapi import install_openapi
from ragvl.server.request_log import RequestLog
from ragvl.server.request_memory import RequestMemory
from ragvl.server.services import Services
from ragvl.server.warming import warming

_DESCRIPTION = """Reranking of pictures, texts and documents of both by a multimodal LLM.

Documents that the server knows by id cost a query no more than its own tokens. A score does not
depend on what else is asked at the same time."""


def create_app(services: Services) -> FastAPI:
    """The application over `services`, whose engine runs from its start to its end.

    Each module of `ragvl.server.routes` brings a `router`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        services.engine.start()
        hide_content(services.settings)
        try:
            async with warming(services):
                yield
        finally:
            # In a thread: it waits for the model, while answers are still to be written
            await asyncio.to_thread(services.close)

    app = FastAPI(
        title="ragvl",
        version=ragvl.__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    install_error_answers(app)
    install_openapi(app, max_timeout=services.settings.max_timeout)
    for found in pkgutil.iter_modules(routes.__path__):
        app.include_router(import_module(f"{routes.__name__}.{found.name}").router)
    settings = services.settings
    # The last one is the first to see a request
    app.add_middleware(HeadRequests)
    app.add_middleware(
        BodyLimits,
        max_bytes=settings.max_body_bytes,
        seconds=settings.body_seconds,
        memory=RequestMemory(
            settings.max_held_bytes, services.engine.seconds_ahead, services.metrics
        ),
    )
    if services.keys is not None:
        app.add_middleware(KeyCheck, keys=services.keys)
    app.add_middleware(RequestLog, metrics=services.metrics)
    return app
