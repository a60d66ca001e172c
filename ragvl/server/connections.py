"""Connections that end: uvicorn's, with a limit for what each may wait for and keep in memory.

uvicorn closes connections that are idle between requests. What it leaves open for as long as the
client likes is here: headers that never end, answers that nobody reads, bodies that go on after
their answer.
"""

from __future__ import annotations

import asyncio
import json

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ragvl.server.errors import error_body
from ragvl.server.settings import ServerSettings

_STATUS_LINES = {
    400: b"HTTP/1.1 400 Bad Request\r\n",
    431: b"HTTP/1.1 431 Request Header Fields Too Large\r\n",
}


# Bytes that are read of a body past its limit: a client that still sends when its connection is cut
# off does not see the answer, which says that the body is too large
_DISCARDED = 64 << 20


class _HeadersTooLarge(Exception):
    pass


class Connection(HttpToolsProtocol):
    """One connection of a client; takes the arguments of uvicorn's, and the server's settings."""

    def __init__(self, *, settings: ServerSettings, **given: object) -> None:
        super().__init__(**given)  # type: ignore[arg-type]
        self._settings = settings
        self._in_headers = False
        self._num_header_bytes = 0  # read since the parser last told of anything but headers
        self._is_quiet = True  # it has told of nothing else in what it is reading
        self._num_discarded = 0
        self._plain_head = b""
        self._headers_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._answered: RequestResponseCycle | None = None

    # Of asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Waits for a request, unless there are too many connections already."""
        super().connection_made(transport)
        if len(self.connections) > self._settings.max_connections:
            transport.abort()
            return
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits for nothing any more."""
        self._headers_are_there()
        self._cancel_write_timer()
        # Else only the last one that was sent is told, and the others write to nobody
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads on, within the limits of headers and of what is read for nothing."""
        self._is_quiet = True
        self._feed(data)
        if self.transport.is_closing():
            return
        if self._is_quiet:
            self._num_header_bytes += len(data)
        if self._num_header_bytes > self._settings.max_header_bytes:
            if self._in_headers:
                self._refuse_headers()
            else:  # headers behind a body, or a chunk's: it may be answered already
                self.transport.abort()
        elif self._is_idle:
            # A rest of a body that is answered already, or line ends between requests
            self._expect_headers()
            self._num_discarded += len(data)
            if self._num_discarded > self._settings.max_body_bytes + _DISCARDED:
                self.transport.abort()

    def _feed(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._read(rest) :]
        except httptools.HttpParserError:
            self.send_400_response("this is no HTTP/1.1 request")

    def _read(self, data: memoryview) -> int:
        """Reads up to the end of a request's headers that ask for another protocol, or all."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # The parser takes what follows for that protocol. This server speaks none, and reads
            # the request as if it had not asked for one, as HTTP lets it
            self.parser = httptools.HttpRequestParser(self)
            self.parser.feed_data(self._plain_head)
            return int(upgrade.args[0])
        return len(data)

    def pause_writing(self) -> None:
        """The client reads slower than it is answered: it gets some time, not any."""
        super().pause_writing()
        self._limit_writing()

    def resume_writing(self) -> None:
        """The client has read."""
        self._cancel_write_timer()
        super().resume_writing()

    # Of the parser

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_headers = True
        self._note_progress()
        self._expect_headers()

    def on_headers_complete(self) -> None:
        """The end of its headers."""
        self._in_headers = False
        self._note_progress()
        self._num_discarded = 0
        self._headers_are_there()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._settings.max_header_bytes:
            self._num_header_bytes = size
            raise _HeadersTooLarge  # the parser stops, and `send_400_response` is called
        if self.parser.should_upgrade():
            self._plain_head = self._head_without_upgrade()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of its body."""
        self._note_progress()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of its body."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    # Of uvicorn

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """The answer is written, if not yet read."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._limit_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for a while."""
        self._close()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no request with the body of every error."""
        if self._num_header_bytes > self._settings.max_header_bytes:
            self._refuse_headers()
        else:
            self._answer(400, "invalid_request", msg)

    def _note_progress(self) -> None:
        self._num_header_bytes = 0
        self._is_quiet = False

    def _head_without_upgrade(self) -> bytes:
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise httptools.HttpParserError("this server is no proxy")
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                value = b"close" if b"close" in value.lower() else b"keep-alive"
            if name not in (b"upgrade", b"http2-settings"):
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def _refuse_headers(self) -> None:
        limit = self._settings.max_header_bytes
        self._answer(431, "headers_too_large", f"the headers are larger than {limit} bytes")

    def _answer(self, status: int, kind: str, message: str) -> None:
        body = json.dumps(error_body(status, kind, message)).encode()
        head = (
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(_STATUS_LINES[status] + head.encode() + body)
        self.transport.close()
        self._limit_writing()

    @property
    def _is_idle(self) -> bool:
        return not self._in_headers and (self.cycle is None or self.cycle.response_complete)

    def _expect_headers(self) -> None:
        if self._headers_timer is None:
            self._headers_timer = self.loop.call_later(self._settings.header_seconds, self._close)

    def _headers_are_there(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _limit_writing(self) -> None:
        if self._write_timer is None and self.transport.get_write_buffer_size():
            self._write_timer = self.loop.call_later(
                self._settings.write_seconds, self.transport.abort
            )

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _close(self) -> None:
        """Ends the connection; at once if the client has left something unread until now."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        elif not self.transport.is_closing():
            self.transport.close()
