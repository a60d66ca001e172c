"""Bodies are bounded while they come, whatever the application below makes of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest

from ragvl.server.body_limits import BodyLimits
from ragvl.server.metrics import Metrics
from ragvl.server.request_memory import RequestMemory

Message = dict[str, Any]


async def echo_size(_scope: Any, receive: Any, send: Any) -> None:
    """Answers with the size of the body; of an error in reading it, with 400."""
    size, more, status = 0, True, 200
    try:
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
    except Exception:
        status = 400
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def limited(app: Any = echo_size, max_held: int = 1000, **given: Any) -> BodyLimits:
    memory = RequestMemory(max_held, lambda: 0.0, Metrics())
    return BodyLimits(app, **{"max_bytes": 100, "memory": memory, "seconds": 30, **given})


async def ask(
    app: BodyLimits, chunks: Iterable[bytes], headers: Iterable[tuple[bytes, bytes]] = ()
) -> tuple[int, bytes]:
    """The status and the body of an answer; a body that never ends after `chunks` without b""."""
    parts = list(chunks)
    sent: list[Message] = []

    async def receive() -> Message:
        if not parts:
            await asyncio.Event().wait()
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": part != b""}

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "http", "headers": list(headers)}, receive, send)
    start, *rest = sent
    assert start["type"] == "http.response.start"
    return start["status"], b"".join(one["body"] for one in rest)


def check(outcome: tuple[int, bytes], status: int, kind: str) -> None:
    assert outcome[0] == status
    assert json.loads(outcome[1])["error_type"] == kind


@pytest.mark.parametrize("sizes", [[100], [50, 50], [], [1] * 100])
def test_a_body_up_to_the_limit_passes(sizes: list[int]) -> None:
    outcome = asyncio.run(ask(limited(), [b"a" * size for size in sizes] + [b""]))
    assert outcome == (200, str(sum(sizes)).encode())


@pytest.mark.parametrize("sizes", [[101], [60, 60], [1] * 101])
def test_a_larger_one_does_not_whatever_it_says_of_itself(sizes: list[int]) -> None:
    chunks = [b"a" * size for size in sizes]
    for headers in ([], [(b"content-length", b"7")], [(b"content-length", b"-1")]):
        check(asyncio.run(ask(limited(), chunks, headers)), 413, "too_large")


@pytest.mark.parametrize("said", [b"101", b"9" * 40])
def test_one_that_says_it_is_larger_is_not_read(said: bytes) -> None:
    headers = [(b"content-length", said)]
    check(asyncio.run(ask(limited(), [], headers)), 413, "too_large")


def test_a_body_that_stops_coming_is_not_waited_for() -> None:
    check(asyncio.run(ask(limited(seconds=0.05), [b"a"])), 408, "request_timeout")


def test_bodies_are_bounded_together_and_make_room_again() -> None:
    async def run() -> None:
        is_held, may_go_on = asyncio.Event(), asyncio.Event()

        async def hold(scope: Any, receive: Any, send: Any) -> None:
            if scope.get("holds"):
                await receive()
                is_held.set()
                await may_go_on.wait()
            await echo_size(scope, receive, send)

        app = limited(hold, max_held=100)
        parts = [{"body": b"a" * 90, "more_body": True}, {"body": b"", "more_body": False}]

        async def receive() -> Message:
            return {"type": "http.request", **parts.pop(0)}

        async def send(_message: Message) -> None:
            pass

        holder = asyncio.create_task(
            app({"type": "http", "headers": [], "holds": True}, receive, send)
        )
        await is_held.wait()
        check(await ask(app, [b"a" * 11, b""]), 429, "overloaded")
        assert await ask(app, [b"a" * 10, b""]) == (200, b"10")
        may_go_on.set()
        await holder
        assert await ask(app, [b"a" * 100, b""]) == (200, b"100")

    asyncio.run(run())


def test_an_answer_that_has_begun_is_not_replaced() -> None:
    async def begin_and_read(_scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()

    async def run(read: Callable[..., Awaitable[Any]]) -> None:
        await read(limited(begin_and_read), [b"a" * 101])

    with pytest.raises(Exception, match="the body is larger"):
        asyncio.run(run(ask))
