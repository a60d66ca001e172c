"""What OpenAPI says of this server beyond what FastAPI reads off the routes.

Routes read their JSON bodies themselves (see `bodies`), and every route answers errors with the
same body and wants the same key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ragvl.server.deadlines import TIMEOUT_HEADER
from ragvl.server.protocol.common import ErrorAnswer
from ragvl.server.request_log import REQUEST_ID

_REFERENCE = "#/components/schemas/{model}"
_SUMMARIES = {
    400: "The body is no JSON.",
    401: "There is no API key, or an unknown one.",
    404: "There is no such document or model.",
    408: "The body did not come in time.",
    409: "What is there already is in the way.",
    413: "The body, a picture, the documents or a prompt are larger than a limit.",
    415: "The body is not application/json.",
    422: "What is asked cannot be done; the message says where in the request it stands.",
    429: "There is no room, or no time until the deadline; see Retry-After.",
    500: "The server failed.",
    503: "The server is shutting down, not ready, or out of memory.",
    504: "The work was not done by the deadline.",
    507: "There is no room to keep a document.",
}
_ERROR = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=ErrorAnswer.__name__)}}}
OF_BODY = (400, 408, 413, 415, 422)  # errors of whatever route reads a body
OF_MODEL = (404, 429, 503, 504)  # and of one that has the model work
_REQUEST_ID = {
    "description": "Names the request, in the log too: the client's own, or a new one.",
    "schema": {"type": "string"},
}
_RETRY_AFTER = {"description": "Seconds until there is room.", "schema": {"type": "integer"}}


def json_body(*models: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads a JSON body with one of these schemas."""
    _, described = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REFERENCE
    )
    places = [{"$ref": _REFERENCE.format(model=model.__name__)} for model in models]
    schema = places[0] if len(places) == 1 else {"anyOf": places}
    content = {"application/json": {"schema": {**schema, "$defs": described["$defs"]}}}
    return {"requestBody": {"required": True, "content": content}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: the errors that it may answer, beside what all may."""
    return {status: {"description": _SUMMARIES[status]} for status in sorted({*statuses, 401, 500})}


def install_openapi(app: FastAPI, *, max_timeout: float) -> None:
    """Has `app.openapi` tell all.

    Args:
        app: the application.
        max_timeout: the most seconds that a request may ask for.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            app.openapi_schema = _completed(described, max_timeout)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(described: dict[str, Any], max_timeout: float) -> dict[str, Any]:
    components = described.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    timeout = {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "description": "Seconds until the answer is of no use any more; then it is a 504.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": max_timeout},
    }
    for operation in _operations(described):
        for kind in operation.get("requestBody", {}).get("content", {}).values():
            schemas.update(kind["schema"].pop("$defs", {}))
        answers = operation["responses"]
        for status, answer in answers.items():
            answer.setdefault("headers", {})[REQUEST_ID] = _REQUEST_ID
            if int(status) >= 400:
                answer["description"] = _SUMMARIES[int(status)]
                answer["content"] = _ERROR
        if "429" in answers:
            answers["429"]["headers"]["Retry-After"] = _RETRY_AFTER
        if "504" in answers:
            operation.setdefault("parameters", []).append(timeout)
    for unused in ("HTTPValidationError", "ValidationError"):  # the framework's own 422
        schemas.pop(unused, None)
    error = ErrorAnswer.model_json_schema(ref_template=_REFERENCE)
    schemas.update(error.pop("$defs"), **{ErrorAnswer.__name__: error})
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    # A server without keys lets everybody in
    described["security"] = [{}, {"key": []}]
    return described


def _operations(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in described["paths"].values():
        yield from (operation for operation in path.values() if "responses" in operation)
