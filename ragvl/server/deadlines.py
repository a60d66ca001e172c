"""Waits for a request's work until its deadline, and no longer than its client does."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from ragvl.messages import quoted
from ragvl.server.errors import ClientGone, DeadlineExceeded, Unprocessable
from ragvl.server.services import services_of

T = TypeVar("T")

TIMEOUT_HEADER = "X-Request-Timeout"


def deadline_of(request: Request) -> float:
    """When a request must be answered: a moment of `time.monotonic()`, counted from its arrival.

    Raises:
        Unprocessable: X-Request-Timeout is no number of seconds above 0, or more than is allowed.
    """
    settings = services_of(request).settings
    given = request.headers.get(TIMEOUT_HEADER)
    seconds = settings.timeout if given is None else _seconds(given, settings.max_timeout)
    arrived: float = getattr(request.state, "arrived", time.monotonic())
    return arrived + seconds


def _seconds(given: str, most: float) -> float:
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= most:
        raise Unprocessable(
            f"{TIMEOUT_HEADER}={quoted(given, 40)}: expected seconds above 0, at most {most:g}",
            param=TIMEOUT_HEADER,
        )
    return seconds


async def call(request: Request, work: Callable[[float], Coroutine[Any, Any, T]]) -> T:
    """What `work(deadline)` returns; it is cancelled at the deadline, or if the client goes away.

    What it awaits of the engine is done even if the server begins to end meanwhile.

    Args:
        request: one whose body was read.
        work: gets the deadline, a moment of `time.monotonic()`.

    Raises:
        DeadlineExceeded: the work was not done in time.
        ClientGone: nobody waits for the answer.
        ShuttingDown: the server accepts nothing new.
        Exception: what `work` raised.
    """
    deadline = deadline_of(request)
    with services_of(request).engine.accept():
        doing = asyncio.ensure_future(work(deadline))
        gone = asyncio.ensure_future(_gone(request))
        try:
            left = deadline - time.monotonic()
            await asyncio.wait(
                (doing, gone), timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED
            )
            if doing.done():
                return doing.result()
        finally:
            doing.cancel()
            gone.cancel()
            # What was queued has left the queue. What else went wrong meanwhile nobody is told of,
            # and asyncio would log it with its words
            await asyncio.gather(doing, gone, return_exceptions=True)
        if gone.cancelled():
            raise DeadlineExceeded("the work was not done by the request's deadline")
        raise ClientGone("the client went away")


async def _gone(request: Request) -> None:
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
