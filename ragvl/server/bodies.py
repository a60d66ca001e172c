"""JSON bodies: reads those of requests, large ones in a thread, and writes those of answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from ragvl.messages import shown
from ragvl.server.errors import (
    BadRequest,
    ClientGone,
    TooLarge,
    UnsupportedMediaType,
    invalid,
    place_of,
)
from ragvl.server.services import services_of
from ragvl.server.settings import ServerSettings

_JSON = "application/json"
_MAX_FIELDS = 100  # of an object; the schemas have fewer
# Reading JSON holds the interpreter's lock, a tenth of a second for so many values
_MAX_COMMAS = 2**19
AT_ONCE = 16 << 10  # bytes; reading more takes longer than handing it to a thread

B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")


async def read_body(request: Request, model_of: Callable[[Any], type[B]]) -> B:
    """A request's body by its schema.

    Args:
        request: the request.
        model_of: says by what the JSON holds which schema it has.

    Raises:
        ServerError: the body is too large or too slow (see `body_limits`), of another type than
            JSON, no JSON, or not as the schema says.
    """
    _check_type(request)
    try:
        data = await request.body()
    except ClientDisconnect:
        raise ClientGone("the client went away") from None
    settings = services_of(request).settings
    return await off_loop(request, len(data), lambda: parsed(data, model_of, settings))


async def off_loop(request: Request, size: int, work: Callable[[], T]) -> T:
    """What `work` returns; off the event loop, in a thread, where it handles more than a few KB."""
    if size <= AT_ONCE:
        return work()
    pool = services_of(request).pool
    return await asyncio.get_running_loop().run_in_executor(pool, work)


def parsed(data: bytes, model_of: Callable[[Any], type[B]], settings: ServerSettings) -> B:
    """JSON by its schema.

    Args:
        data: the JSON.
        model_of: see `read_body`.
        settings: say how long its lists may be.

    Raises:
        ServerError: it is no JSON, or not as the schema says, or a list is too long.
    """
    if data.count(b",") > _MAX_COMMAS:
        raise TooLarge(f"the body has more than {_MAX_COMMAS:,} commas")
    try:
        value = from_json(data, allow_inf_nan=False, cache_strings=False)
    except ValueError as error:
        raise BadRequest(f"the body is no JSON: {shown(error)}") from None
    _check_counts(value, settings, ())
    try:
        return model_of(value).model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise invalid(first, _steps(first["loc"], value, first["type"])) from None


def _check_counts(value: Any, settings: ServerSettings, steps: tuple[str | int, ...]) -> None:
    """Refuses what is longer than a request can be, since looking at each item takes its time."""
    if isinstance(value, list):
        is_of_parts = steps[-1:] == ("content",)
        most = settings.max_parts if is_of_parts else settings.max_documents
        inner: Iterable[tuple[str | int, Any]] = enumerate(value)
    elif isinstance(value, dict):
        most, inner = _MAX_FIELDS, value.items()
    else:
        return
    if len(value) > most:
        place = place_of(steps) or None
        where = f"{place}: " if place else ""
        raise TooLarge(
            f"{where}it has {len(value):,} items; this server takes {most:,}", param=place
        )
    for step, one in inner:
        if isinstance(one, list | dict):
            _check_counts(one, settings, (*steps, step))


def _steps(location: Sequence[str | int], value: Any, kind: str) -> Iterator[str | int]:
    """The steps of a place that are in the body itself; pydantic also names the choice it tried."""
    for step in location:
        if isinstance(value, dict) and step in value:
            value = value[str(step)]
        elif isinstance(value, list) and isinstance(step, int):
            value = value[step]
        elif kind != "missing" or step is not location[-1]:
            continue
        yield step


def _check_type(request: Request) -> None:
    """A page of another site can have a browser send anything but JSON without being asked."""
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != _JSON:
        what = f"not {shown(given, 60)}" if given else "and has none"
        raise UnsupportedMediaType(f"the body's Content-Type must be {_JSON}, {what}")
    if (coding := request.headers.get("content-encoding", "identity")).lower() != "identity":
        raise UnsupportedMediaType(f"Content-Encoding {shown(coding, 60)}: send the body as it is")


def json_answer(answer: BaseModel) -> Response:
    """An answer, without what is None in it."""
    return Response(answer.model_dump_json(exclude_none=True), media_type=_JSON)


def json_list(answers: Sequence[BaseModel], headers: Mapping[str, str]) -> Response:
    """A bare list of answers."""
    written = ",".join(answer.model_dump_json(exclude_none=True) for answer in answers)
    return Response(f"[{written}]", media_type=_JSON, headers=dict(headers))
