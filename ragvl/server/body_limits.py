"""How large a request's body may be, and how long it may take to come."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ragvl.prefix_cache.sizes import format_bytes
from ragvl.server.errors import RequestTimeout, ServerError, TooLarge, error_answer
from ragvl.server.request_memory import Hold, RequestMemory


class BodyLimits:
    """Ends requests whose body is too large, or too slow, while it comes.

    What is below may turn the error that it meets in reading into another; the client is told of
    the limit all the same.

    Args:
        app: what is below.
        max_bytes: of a body; what the client says of it is believed only where it is too much.
        seconds: in which it must be there.
        memory: counts it until the request is answered. What a route adds to a request, such as
            pictures that it fetches, it counts by `request.state.hold(num_bytes)`.
    """

    def __init__(
        self, app: ASGIApp, *, max_bytes: int, seconds: float, memory: RequestMemory
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self.seconds = seconds
        self._memory = memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = Headers(scope=scope).get("content-length", "")
        if said.isdigit() and int(said[:20]) > self._max_bytes:
            await error_answer(self._too_large())(scope, receive, send)
            return
        with self._memory.request() as hold:
            scope.setdefault("state", {})["hold"] = hold
            reading = _Reading(self, hold, scope, receive, send)
            await self._app(scope, reading.receive, reading.send)

    def check_size(self, num_bytes: int) -> None:
        """Raises `TooLarge` where a body has more than it may."""
        if num_bytes > self._max_bytes:
            raise self._too_large()

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {format_bytes(self._max_bytes)}")


class _Reading:
    """One request's `receive` and `send`."""

    def __init__(
        self, limits: BodyLimits, hold: Hold, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._limits = limits
        self._hold = hold
        self._scope = scope
        self._receive = receive
        self._send = send
        self._until = asyncio.get_running_loop().time() + limits.seconds
        self._num_bytes = 0
        self._is_read = False
        self._error: ServerError | None = None
        self._is_answering = False  # what is below has begun to, before there was an error
        self._is_replaced = False

    async def receive(self) -> Message:
        if self._is_read:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            late = f"the body was not there within {self._limits.seconds:g} s"
            self._error = RequestTimeout(late, headers={"Connection": "close"})
            raise self._error from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._num_bytes += size
            self._is_read = not message.get("more_body", False)
            try:
                self._limits.check_size(self._num_bytes)
                self._hold(size)
            except ServerError as error:
                self._error = error
                raise
        return message

    async def send(self, message: Message) -> None:
        if self._error is None or self._is_answering:
            self._is_answering |= self._error is None
            await self._send(message)
        elif not self._is_replaced:
            self._is_replaced = True
            await error_answer(self._error)(self._scope, self._receive, self._send)
