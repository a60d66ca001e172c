"""What is done around every request: its id, its line in the log, its figures, its limits."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ragvl.server.errors import ServerError, ShuttingDown, error_answer
from ragvl.server.logs import request_id_variable
from ragvl.server.metrics import Metrics

_log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
_GIVEN_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class RequestLog:
    """Names a request, logs and counts it, and answers what nothing below has caught.

    The id is the client's X-Request-ID where that is harmless, else a new one; it is in the answer,
    in the log, and in `request.state.request_id`. What a route puts into `request.state.log`, a
    dictionary, is in the request's line of the log. The line holds no path, which may hold ids of
    documents, but the route's template.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["arrived"] = time.monotonic()
        fields = state["log"] = {}
        answer = _Answer(send, request_id)
        token = request_id_variable.set(request_id)
        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, answer.send)
        except ServerError as error:
            await self._answer_error(error, scope, receive, answer)
        except asyncio.CancelledError:
            # The grace time is over, and this is the last that is done for the request
            await self._answer_error(ShuttingDown(), scope, receive, answer)
        except Exception as error:
            _log.error("a request failed", exc_info=error)
            failed = ServerError(f"the server failed (request {request_id}); its log says why")
            await self._answer_error(failed, scope, receive, answer)
        finally:
            self._metrics.in_flight.dec()
            self._record(scope, answer, started, fields)
            request_id_variable.reset(token)

    async def _answer_error(
        self, error: ServerError, scope: Scope, receive: Receive, answer: _Answer
    ) -> None:
        if answer.status is None:
            await error_answer(error)(scope, receive, answer.send)

    def _record(
        self, scope: Scope, answer: _Answer, started: float, fields: dict[str, Any]
    ) -> None:
        seconds = time.perf_counter() - started
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        # 499: nobody was there to be answered, as nginx says it
        status = 499 if answer.status is None else answer.status
        self._metrics.requests.labels(route, method, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if not _log.isEnabledFor(logging.INFO):
            return
        line = {
            "method": method,
            "route": route,
            "status": status,
            "ms": round(1e3 * seconds, 2),
            "bytes": answer.num_bytes,
            "client": (scope.get("client") or ("",))[0],
            **fields,
        }
        _log.info("answered", extra={"fields": line})


class _Answer:
    """`send` of ASGI, which notes what is sent."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None
        self.num_bytes = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[REQUEST_ID] = self._request_id
        elif message["type"] == "http.response.body":
            self.num_bytes += len(message.get("body", b""))
        await self._send(message)
