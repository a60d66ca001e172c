"""How large a request's body may be, and how long it may take to come."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ragvl.prefix_cache.sizes import format_bytes
from ragvl.server.errors import Overloaded, RequestTimeout, ServerError, TooLarge, error_answer


class BodyLimits:
    """Ends requests whose body is too large, or too slow, while it comes.

    What is below may turn the error that it meets in reading into another; the client is told of
    the limit all the same.

    Args:
        app: what is below.
        max_bytes: of a body; what the client says of it is believed only where it is too much.
        max_held: of all bodies of requests that are not answered yet.
        seconds: in which a body must be there.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_held: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_held = max_held
        self.seconds = seconds
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = Headers(scope=scope).get("content-length", "")
        if said.isdigit() and int(said[:20]) > self._max_bytes:
            await error_answer(self._too_large())(scope, receive, send)
            return
        reading = _Reading(self, scope, receive, send)
        try:
            await self._app(scope, reading.receive, reading.send)
        finally:
            self._held -= reading.num_bytes

    def hold(self, num_bytes: int, so_far: int) -> None:
        """Takes in so many more bytes of a body of which `so_far` were there.

        Raises:
            TooLarge: it has more than it may.
            Overloaded: all bodies together have.
        """
        if so_far + num_bytes > self._max_bytes:
            raise self._too_large()
        if self._held + num_bytes > self._max_held:
            raise Overloaded("too much waits to be answered", retry_after=1)
        self._held += num_bytes

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {format_bytes(self._max_bytes)}")


class _Reading:
    """One request's `receive` and `send`."""

    def __init__(self, limits: BodyLimits, scope: Scope, receive: Receive, send: Send) -> None:
        self._limits = limits
        self._scope = scope
        self._receive = receive
        self._send = send
        self._until = asyncio.get_running_loop().time() + limits.seconds
        self.num_bytes = 0
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
            try:
                self._limits.hold(size, self.num_bytes)
            except ServerError as error:
                self._error = error
                raise
            self.num_bytes += size
            self._is_read = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if self._error is None or self._is_answering:
            self._is_answering |= self._error is None
            await self._send(message)
        elif not self._is_replaced:
            self._is_replaced = True
            await error_answer(self._error)(self._scope, self._receive, self._send)
