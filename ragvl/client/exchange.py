"""What passes between a client and a server, without the passing: requests, pauses, and an answer.

`exchange` is a generator: it yields a `Request`, for which it is sent the response, or a `Pause`
that is to pass, and returns what was asked for. So the blocking and the asynchronous client are the
same but for how they send and wait.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx2
from pydantic import ValidationError

from ragvl.client.errors import ApiError
from ragvl.messages import validation_reason

T = TypeVar("T")

_RETRIED = (429, 503)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0  # seconds, where the server says no time


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request of which the answer is a T.

    Every one of them may be sent twice to the same effect.

    Attributes:
        method: of HTTP.
        path: below the server's address.
        read: makes a T of the answer's JSON.
        body: of the request, if it has one.
        query: the URL's.
        refusals: statuses of errors that are answers, too.
    """

    method: str
    path: str
    read: Callable[[Any], T]
    body: bytes | None = None
    query: tuple[tuple[str, str], ...] = ()
    refusals: tuple[int, ...] = ()

    @classmethod
    def with_json(
        cls, method: str, path: str, body: dict[str, Any], read: Callable[[Any], T]
    ) -> Call[T]:
        """One with a body of those fields of `body` that are not None."""
        given = {name: value for name, value in body.items() if value is not None}
        return cls(method, path, read, json.dumps(given, separators=(",", ":")).encode())


@dataclass(frozen=True)
class Request:
    """A call to be sent now; `seconds` are left for its answer."""

    call: Call[Any]
    seconds: float

    @property
    def headers(self) -> dict[str, str]:
        """That tell the server how long somebody waits, so that it does no work in vain."""
        headers = {"X-Request-Timeout": f"{self.seconds:.3f}"}
        return (
            headers if self.call.body is None else {**headers, "Content-Type": "application/json"}
        )


@dataclass(frozen=True)
class Pause:
    """So many seconds in which nothing is sent."""

    seconds: float


class ConnectionLost(ConnectionError):
    """A connection broke after the server had been reached."""


Exchange = Generator[Request | Pause, httpx2.Response | ConnectionLost | None, T]


def exchange(call: Call[T], timeout: float) -> Exchange[T]:
    """Asks, and again when the server has no room, until there is an answer or `timeout` is over.

    A server without room is asked again after the time that it says, or else after a pause that
    doubles. It is not waited for where that would be past the timeout. Where a connection broke it
    is asked once more, at once: servers close connections that were quiet for long.

    Raises:
        ApiError: the server refused, or had no room in time.
        TimeoutError: the server could not answer in the time that it had.
        ConnectionLost: the connection broke twice.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    has_broken = False
    while True:
        response = yield Request(call, max(deadline - time.monotonic(), 1e-3))
        if isinstance(response, ConnectionLost):
            if has_broken:
                raise response
            has_broken = True
            continue
        assert response is not None
        if response.is_success or response.status_code in call.refusals:
            return _read(call, response)
        error = ApiError.of(response)
        if error.status == 504:
            raise TimeoutError(error.message) from error
        wait = pause if error.retry_after is None else error.retry_after
        if error.status not in _RETRIED or time.monotonic() + wait >= deadline:
            raise error
        yield Pause(wait)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _read(call: Call[T], response: httpx2.Response) -> T:
    try:
        return call.read(response.json() if response.content else None)
    except ValidationError as error:
        raise ApiError.of_unexpected(response, validation_reason(error)) from error
    except (ValueError, LookupError, TypeError) as error:
        raise ApiError.of_unexpected(response, error) from error
