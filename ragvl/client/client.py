"""The blocking and the asynchronous client: how they send and wait."""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
import os
import ssl
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from functools import cache, update_wrapper
from typing import Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar

import httpx2

from ragvl.client import calls
from ragvl.client.exchange import Call, ConnectionLost, Pause, Request, exchange
from ragvl.messages import quoted, reason

P = ParamSpec("P")
T = TypeVar("T")

API_KEY_VARIABLE = "RAGVL_API_KEY"


class _Client:
    """What both clients have in common."""

    _connections: ClassVar[type]

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        self.base_url = _checked_url(base_url)
        self.timeout = _checked_timeout(timeout)
        key = api_key or os.environ.get(API_KEY_VARIABLE)
        self._http: Any = self._connections(
            headers={"Authorization": f"Bearer {key}"} if key else {}, verify=_certificates()
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({quoted(self.base_url)}, timeout={self.timeout:g})"

    def within(self, seconds: float) -> Self:
        """This client with another timeout; both use the same connections."""
        other = copy.copy(self)
        other.timeout = _checked_timeout(seconds)
        return other

    def _arguments(self, request: Request) -> dict[str, Any]:
        """Of the connections' `request`."""
        call = request.call
        return {
            "method": call.method,
            "url": self.base_url + call.path,
            "params": call.query,
            "content": call.body,
            "headers": request.headers,
            "timeout": request.seconds,
        }

    @contextmanager
    def _named_errors(self) -> Generator[None]:
        """What goes wrong with a connection, in Python's own errors."""
        try:
            yield
        except httpx2.TimeoutException as error:
            message = f"{self.base_url} did not answer within {self.timeout:g} s"
            raise TimeoutError(message) from error
        except (httpx2.ConnectError, httpx2.UnsupportedProtocol, httpx2.ProxyError) as error:
            raise ConnectionError(f"cannot reach {self.base_url}: {reason(error)}") from error
        except httpx2.TransportError as error:
            message = f"the connection to {self.base_url} broke: {reason(error)}"
            raise ConnectionLost(message) from error


def _blocking(
    make: Callable[P, Call[T]],
) -> Callable[Concatenate[Client, P], T]:
    """The method of `Client` that waits for a call's answer."""

    def method(self: Client, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(make(*args, **kwargs))

    _describe(method, make)
    return method


def _awaited(
    make: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """The method of `AsyncClient` that awaits a call's answer."""

    async def method(self: AsyncClient, *args: P.args, **kwargs: P.kwargs) -> T:
        # Pictures are read and encoded, for which the event loop does not wait
        return await self._run(await asyncio.to_thread(make, *args, **kwargs))

    _describe(method, make)
    return method


def _describe(method: Any, make: Callable[..., Call[Any]]) -> None:
    """Gives a method the name, the words and the parameters of what makes its call."""
    update_wrapper(method, make)
    of_call = inspect.signature(make)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__signature__ = of_call.replace(
        parameters=[own, *of_call.parameters.values()],
        return_annotation=of_call.return_annotation.removeprefix("Call[").removesuffix("]"),
    )


class Client(_Client):
    """Asks a `ragvl serve`. Thread-safe; connections stay open until `close` or a block's end.

    Args:
        base_url: the server's address.
        api_key: if it asks for one; by default what the environment's RAGVL_API_KEY says.
        timeout: seconds that a call may take, with all that it waits where the server has no room.
            The server is told, and gives up what nobody waits for.

    Raises:
        ValueError: `base_url` is no http(s) address, or `timeout` no positive number.

    Examples:
        >>> with ragvl.Client("http://127.0.0.1:8000") as client:
        ...     ranking = client.rerank("What color is the roof?", ["a.jpg", "b.jpg"])
        >>> [result.index for result in ranking.results if result.kept]
        [1]
    """

    _connections = httpx2.Client

    rerank = _blocking(calls.rerank)
    score = _blocking(calls.score)
    search = _blocking(calls.search)
    answer = _blocking(calls.answer)
    put_documents = _blocking(calls.put_documents)
    get_document = _blocking(calls.get_document)
    list_documents = _blocking(calls.list_documents)
    delete_document = _blocking(calls.delete_document)
    models = _blocking(calls.models)
    health = _blocking(calls.health)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def _run(self, call: Call[T]) -> T:
        steps = exchange(call, self.timeout)
        step = next(steps)
        try:
            while True:
                step = steps.send(self._take(step))
        except StopIteration as end:
            return end.value

    def _take(self, step: Request | Pause) -> httpx2.Response | ConnectionLost | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        try:
            with self._named_errors():
                return self._http.request(**self._arguments(step))
        except ConnectionLost as lost:
            return lost


class AsyncClient(_Client):
    """Asks a `ragvl serve` from asynchronous code; as `Client`, with methods that are awaited.

    Examples:
        >>> async with ragvl.AsyncClient("http://127.0.0.1:8000") as client:
        ...     ranking = await client.rerank("What color is the roof?", ["a.jpg", "b.jpg"])
    """

    _connections = httpx2.AsyncClient

    rerank = _awaited(calls.rerank)
    score = _awaited(calls.score)
    search = _awaited(calls.search)
    answer = _awaited(calls.answer)
    put_documents = _awaited(calls.put_documents)
    get_document = _awaited(calls.get_document)
    list_documents = _awaited(calls.list_documents)
    delete_document = _awaited(calls.delete_document)
    models = _awaited(calls.models)
    health = _awaited(calls.health)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def _run(self, call: Call[T]) -> T:
        steps = exchange(call, self.timeout)
        step = next(steps)
        try:
            while True:
                step = steps.send(await self._take(step))
        except StopIteration as end:
            return end.value

    async def _take(self, step: Request | Pause) -> httpx2.Response | ConnectionLost | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        try:
            with self._named_errors():
                return await self._http.request(**self._arguments(step))
        except ConnectionLost as lost:
            return lost


@cache
def _certificates() -> ssl.SSLContext:
    """Read once, which takes longer than a request."""
    return httpx2.create_ssl_context()


def _checked_url(text: str) -> str:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise ValueError(f"base_url={quoted(text)}: {reason(error)}") from error
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise ValueError(f"base_url={quoted(text)}: expected such as http://127.0.0.1:8000")
    return text.rstrip("/")


def _checked_timeout(seconds: float) -> float:
    if not 0 < seconds < math.inf:
        raise ValueError(f"timeout={seconds}: expected seconds above 0")
    return float(seconds)
