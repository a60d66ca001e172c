"""What goes wrong with a request that reached a server."""

from __future__ import annotations

import math
from typing import Any

import httpx2

from ragvl.messages import shown


class ApiError(Exception):
    """The server answered with an error, or with something that is no answer of such a server.

    Attributes:
        status: the answer's status code.
        kind: names the kind of error for programs, such as "overloaded"; None where there is none.
        message: what the server says is wrong.
        param: the place in the request, such as "documents[3].image"; None where it has none.
        request_id: what the server's log calls the request; None where it has none.
        retry_after: seconds after which the server wants to be asked again; None if it says none.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(status, message, kind, param, request_id, retry_after)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"

    @classmethod
    def of(cls, response: httpx2.Response) -> ApiError:
        """What an answer says is wrong; also of one that another program than the server wrote."""
        error = _error_fields(response)
        message = error.get("message") or response.text or response.reason_phrase
        return cls(
            response.status_code,
            shown(message),
            kind=error.get("type"),
            param=error.get("param"),
            request_id=response.headers.get("x-request-id"),
            retry_after=_seconds(response.headers.get("retry-after")),
        )

    @classmethod
    def of_unexpected(cls, response: httpx2.Response, why: object) -> ApiError:
        """That a good answer does not hold what such a server's holds."""
        return cls(
            response.status_code,
            f"not the answer of a ragvl server: {shown(why)}",
            request_id=response.headers.get("x-request-id"),
        )


def _error_fields(response: httpx2.Response) -> dict[str, Any]:
    try:
        error = response.json()["error"]
    except (ValueError, LookupError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _seconds(text: str | None) -> float | None:
    """Of a Retry-After header; its other form, a date, is taken for none."""
    try:
        seconds = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
