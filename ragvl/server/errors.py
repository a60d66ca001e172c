"""What a client is told when something goes wrong: a class for each kind, and one body for all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ragvl.messages import MAX_ERROR, shown

_PLACE_SHOWN = 120  # characters of a place in a body


class ServerError(Exception):
    """Something that a client is told of, by a status and a body; see `error_body`.

    The message is shown to the client as it is: it holds no path of this machine, and of what the
    client sent no more than a short quotation.

    Attributes:
        status: the answer's status code.
        kind: names the kind of error for programs, in snake_case.
        message: says what is wrong, for people.
        param: the place in the request, such as "documents[3].image"; None where it has none.
        headers: of the answer.
    """

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = dict(headers or {})

    def __reduce__(self) -> Any:
        """For another process: as it is, however its class makes it."""
        return type(self).__new__, (type(self), *self.args), self.__dict__


class BadRequest(ServerError):
    """The request is not one: no JSON, no known model."""

    status, kind = 400, "invalid_request"


class Unauthorized(ServerError):
    """There is no API key, or none that is known."""

    status, kind = 401, "unauthorized"


class NotFound(ServerError):
    """There is no such document or page."""

    status, kind = 404, "not_found"


class RequestTimeout(ServerError):
    """The request's body did not come in time."""

    status, kind = 408, "request_timeout"


class Conflict(ServerError):
    """What is there already is in the way."""

    status, kind = 409, "conflict"


class TooLarge(ServerError):
    """The body, a picture or the number of documents is past a limit."""

    status, kind = 413, "too_large"


class UnsupportedMediaType(ServerError):
    """The body is of another type than JSON."""

    status, kind = 415, "unsupported_media_type"


class Unprocessable(ServerError):
    """The request can be read, and what it asks for cannot be done."""

    status, kind = 422, "unprocessable"


class Overloaded(ServerError):
    """There is no room in the queue, or the work would not be done by its deadline.

    Args:
        message: see `ServerError`.
        retry_after: seconds until there is room.
    """

    status, kind = 429, "overloaded"

    def __init__(self, message: str, *, retry_after: float) -> None:
        self.retry_after = max(1, math.ceil(retry_after))
        super().__init__(message, headers={"Retry-After": str(self.retry_after)})


class ClientGone(ServerError):
    """The client went away; nobody reads this answer, and the log has its status."""

    status, kind = 499, "client_gone"


class ShuttingDown(ServerError):
    """The server takes no new work."""

    status, kind = 503, "shutting_down"

    def __init__(self, message: str = "the server is shutting down") -> None:
        super().__init__(message, headers={"Retry-After": "1", "Connection": "close"})


class OutOfMemory(ServerError):
    """Memory ran out for one pair or document alone."""

    status, kind = 503, "out_of_memory"


class DeadlineExceeded(ServerError):
    """The work was not done by its deadline."""

    status, kind = 504, "deadline_exceeded"


class StorageFull(ServerError):
    """There is no room to keep a document."""

    status, kind = 507, "storage_full"


def error_body(status: int, kind: str, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of every error; clients of other servers look in different fields of it."""
    error = {"message": message, "type": kind, "param": param, "code": status}
    return {"error": error, "detail": message, "error_type": kind}


def error_answer(error: ServerError) -> JSONResponse:
    """The answer that tells a client of `error`."""
    body = error_body(error.status, error.kind, error.message, error.param)
    return JSONResponse(body, error.status, error.headers)


def place_of(location: Iterable[str | int]) -> str:
    """A place in a request as it is written in a message.

    Examples:
        >>> place_of(["documents", 3, "image"])
        'documents[3].image'
    """
    place = ""
    for step in location:
        place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else step
    return shown(place, _PLACE_SHOWN)


def invalid(found: Mapping[str, Any], location: Iterable[str | int]) -> Unprocessable:
    """What a client is told of something that pydantic found wrong.

    Args:
        found: one of `ValidationError.errors()`.
        location: where it is in the request.
    """
    place = place_of(location) or None
    message = shown(found["msg"].removeprefix("Value error, "), MAX_ERROR)
    if found["type"] == "extra_forbidden":
        message = "this field is not known here, and might have been meant to change scores"
    return Unprocessable(f"{place}: {message}" if place else message, param=place)


def install_error_answers(app: FastAPI) -> None:
    """Has the errors of routes answered with `error_body`; `RequestLog` answers all others."""

    @app.exception_handler(ServerError)
    async def own(_: Request, error: ServerError) -> JSONResponse:
        return error_answer(error)

    @app.exception_handler(RequestValidationError)
    async def of_parameters(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return error_answer(invalid(first, first["loc"][1:]))  # without "query" or "path"

    @app.exception_handler(HTTPException)
    async def of_framework(_: Request, error: HTTPException) -> JSONResponse:
        return _http_answer(error)


def _http_answer(error: HTTPException) -> JSONResponse:
    """Of the framework's own errors, such as an unknown path."""
    try:
        kind = HTTPStatus(error.status_code).name.lower()
    except ValueError:
        kind = "error"
    body = error_body(error.status_code, kind, shown(error.detail, MAX_ERROR))
    return JSONResponse(body, error.status_code, dict(error.headers or {}))
