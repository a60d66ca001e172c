"""Bytes of requests are counted from the first to the answer, and bounded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError
from server.gated import begun, run
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from ragvl.server.body_limits import BodyLimits
from ragvl.server.errors import Overloaded
from ragvl.server.metrics import Metrics
from ragvl.server.request_log import RequestLog
from ragvl.server.request_memory import RequestMemory
from ragvl.server.settings import ServerSettings


def memory_of(max_bytes: int, metrics: Metrics | None = None) -> RequestMemory:
    return RequestMemory(max_bytes, lambda: 4.0, metrics or Metrics())


def test_what_requests_hold_is_bounded_and_freed():
    metrics = Metrics()
    memory = memory_of(10, metrics)
    with memory.request() as first, memory.request() as second:
        first(6)
        second(4)
        with pytest.raises(Overloaded) as refused:
            first(1)
        assert 1 <= int(refused.value.headers["Retry-After"]) <= 4
        assert "ragvl_request_bytes 10.0" in metrics.text().decode()
    with memory.request() as third:
        third(10)
    text = metrics.text().decode()
    assert "ragvl_request_bytes 0.0" in text
    assert 'ragvl_refused_total{reason="bytes"} 1.0' in text


def test_bytes_are_freed_whatever_becomes_of_the_request():
    memory = memory_of(10)
    with pytest.raises(ZeroDivisionError), memory.request() as hold:
        hold(10)
        raise ZeroDivisionError
    with memory.request() as hold:
        hold(10)


class Waiting:
    """An application that reads a body and answers when it is told to."""

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        size = len(await request.body())
        await self.goes_on.wait()
        request.state.hold(5)
        await PlainTextResponse(str(size))(scope, receive, send)


async def ask(app: Callable[..., Any], *chunks: bytes) -> tuple[int, bytes]:
    """The status and the body of what an application answers to a body that comes in chunks."""
    last = len(chunks) - 1
    coming = iter(
        {"type": "http.request", "body": chunk, "more_body": i < last}
        for i, chunk in enumerate(chunks)
    )
    sent: list[Message] = []

    async def receive() -> Message:
        return next(coming)

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_a_body_that_finds_no_room_is_refused_while_it_comes():
    async def main() -> None:
        waiting = Waiting()
        limits = BodyLimits(waiting, max_bytes=60, seconds=30, memory=memory_of(100))
        app = RequestLog(limits, Metrics())
        first = await begun(ask(app, b"a" * 30, b"b" * 30))
        status, body = await ask(app, b"a" * 30, b"b" * 30)
        assert status == 429 and json.loads(body)["error_type"] == "overloaded"
        second = await begun(ask(app, b"c" * 30))
        waiting.goes_on.set()
        assert await first == (200, b"60") and await second == (200, b"30")
        assert await ask(app, b"a" * 60) == (200, b"60")

    run(main())


def test_limits_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match="max_body_bytes"):
        ServerSettings(max_held_bytes=10, max_body_bytes=11)
