"""Every error of the server has one body, whoever raised it."""

from __future__ import annotations

from typing import Annotated

import pytest
from fastapi import FastAPI, Query
from fastapi.testclient import TestClient
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from ragvl.server.errors import (
    BadRequest,
    ClientGone,
    Conflict,
    DeadlineExceeded,
    NotFound,
    OutOfMemory,
    Overloaded,
    RequestTimeout,
    ServerError,
    ShuttingDown,
    StorageFull,
    TooLarge,
    Unauthorized,
    Unprocessable,
    UnsupportedMediaType,
    install_error_answers,
    place_of,
)
from ragvl.server.metrics import Metrics
from ragvl.server.request_log import RequestLog


class Item(BaseModel):
    text: Annotated[str, Field(min_length=1)]


class Body(BaseModel):
    documents: list[Item]


ERRORS = {
    error.kind: error
    for error in (
        BadRequest("bad"),
        Unauthorized("who"),
        NotFound("where"),
        Conflict("there"),
        RequestTimeout("slow"),
        TooLarge("large", param="documents[3].image"),
        UnsupportedMediaType("other"),
        Unprocessable("cannot", param="query"),
        Overloaded("busy", retry_after=2.01),
        ShuttingDown(),
        OutOfMemory("memory"),
        DeadlineExceeded("late"),
        ClientGone("gone"),
        StorageFull("full"),
    )
}


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    install_error_answers(app)
    app.add_middleware(RequestLog, metrics=Metrics())

    @app.get("/raise/{kind}")
    async def fail(kind: str) -> None:
        raise ERRORS.get(kind) or RuntimeError("a secret of the server")

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "no coffee")

    @app.post("/body")
    async def take(body: Body, limit: Annotated[int, Query(ge=1)] = 1) -> int:
        return len(body.documents) + limit

    return TestClient(app, raise_server_exceptions=False)


def check_body(answer, status, kind, param=None) -> str:
    body = answer.json()
    message = body["detail"]
    assert answer.status_code == status
    assert body == {
        "error": {"message": message, "type": kind, "param": param, "code": status},
        "detail": message,
        "error_type": kind,
    }
    return message


@pytest.mark.parametrize("kind", ERRORS)
def test_each_error_says_what_it_is(client: TestClient, kind: str):
    error = ERRORS[kind]
    answer = client.get(f"/raise/{kind}")
    assert check_body(answer, error.status, kind, error.param) == error.message
    for name, value in error.headers.items():
        assert answer.headers[name] == value


def test_statuses_and_kinds_are_distinct():
    kinds = [error.kind for error in ERRORS.values()]
    general = [
        kind for kind in ServerError.__subclasses__() if kind.__module__ == ServerError.__module__
    ]
    assert len(set(kinds)) == len(kinds) == len(general)


def test_retry_after_is_whole_seconds_and_never_none(client: TestClient):
    assert client.get("/raise/overloaded").headers["Retry-After"] == "3"
    assert Overloaded("busy", retry_after=0.0).headers["Retry-After"] == "1"


def test_an_unexpected_error_tells_nothing_of_the_server(client: TestClient):
    answer = client.get("/raise/other")
    message = check_body(answer, 500, "internal_error")
    assert "secret" not in message and answer.headers["X-Request-ID"] in message


def test_the_framework_s_own_errors_have_the_same_body(client: TestClient):
    check_body(client.get("/nowhere"), 404, "not_found")
    answer = client.get("/body")
    check_body(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"
    assert check_body(client.get("/teapot"), 418, "im_a_teapot") == "no coffee"


@pytest.mark.parametrize(
    ("url", "content", "param"),
    [
        ("/body", '{"documents": [{"text": "a"}, {"text": ""}]}', "documents[1].text"),
        ("/body?limit=0", '{"documents": []}', "limit"),
    ],
)
def test_a_bad_body_is_told_with_its_place(client: TestClient, url: str, content: str, param: str):
    answer = client.post(url, content=content, headers={"Content-Type": "application/json"})
    message = check_body(answer, 422, "unprocessable", param)
    assert message.startswith(f"{param}: ")


def test_what_a_client_sent_cannot_shape_the_message():
    assert place_of(["a\n\x1b[31m", 0]) == r"a\n\x1b[31m[0]"
    assert len(place_of(["x" * 10_000])) < 200
