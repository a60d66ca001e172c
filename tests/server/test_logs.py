"""The log says what happened, and nothing that users wrote."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from ragvl.server.app import create_app
from ragvl.server.errors import Unprocessable
from ragvl.server.logs import HIDDEN, LineFormatter, configure_logs, hide_content
from ragvl.server.settings import ServerSettings

SECRET = "what a user wrote"


def record_of(message: str, *arguments: Any, name: str = "ragvl.reranker") -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, "file", 1, message, arguments, None)


def failure(message: str) -> logging.LogRecord:
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise ValueError(SECRET) from error
    except ValueError:
        return logging.LogRecord("ragvl.server", 40, "file", 1, message, (), sys.exc_info())


@pytest.mark.parametrize("form", ["text", "json"])
def test_strings_among_the_arguments_are_hidden(form: str) -> None:
    record = record_of("a document %s of %d bytes, %.1f, %r", SECRET, 7, 1.5, [SECRET])
    line = LineFormatter(form).format(record)
    assert SECRET not in line
    assert f"a document {HIDDEN} of 7 bytes, 1.5, " in line
    assert SECRET in LineFormatter(form, with_content=True).format(record)


def test_arguments_by_name_are_hidden_too() -> None:
    record = record_of("%(what)s of %(count)d", {"what": SECRET, "count": 3})
    assert LineFormatter("text").format(record).endswith(f"{HIDDEN} of 3")


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_exception_is_told_by_its_types_and_places(form: str) -> None:
    record = failure("a request failed")
    line = LineFormatter(form).format(record)
    assert SECRET not in line
    assert "KeyError" in line and "ValueError" in line and "test_logs.py" in line
    assert SECRET in LineFormatter(form, with_content=True).format(record)


def test_json_is_one_object_a_line_with_what_is_told() -> None:
    record = record_of("two\nlines", name="ragvl.server.request_log")
    record.fields = {"status": 200, "ms": 1.5}
    line = LineFormatter("json").format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert told["message"] == "two\\nlines" and told["level"] == "warning"
    assert told["status"] == 200 and told["ms"] == 1.5 and told["time"].endswith("+00:00")


def test_all_is_told_until_users_can_be_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    root, package = logging.getLogger(), logging.getLogger("ragvl")
    before = root.handlers[:], root.level, package.level
    settings = ServerSettings(log_format="json")
    try:
        configure_logs(settings)
        logging.getLogger("ragvl.mllm").warning("first %s", SECRET)
        hide_content(settings)
        logging.getLogger("ragvl.mllm").warning("then %s", SECRET)
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        package.setLevel(before[2])
    told = [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]
    assert told == [f"first {SECRET}", f"then {HIDDEN}"]


@pytest.fixture
def failing(make_services: Callable[..., Any]) -> FastAPI:
    app = create_app(make_services())

    @app.get("/fails/{name}")
    async def fails(request: Request, name: str) -> None:
        request.state.log["pairs"] = 3
        raise ValueError(name)

    @app.get("/refuses")
    async def refuses() -> None:
        raise Unprocessable(SECRET)

    return app


def lines_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    form = LineFormatter("json")
    own = [one for one in caplog.records if one.name.startswith("ragvl.server")]
    return [json.loads(form.format(one)) for one in own]


def test_a_failure_is_answered_without_words_and_logged_with_its_id(
    failing: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    with TestClient(failing) as client, caplog.at_level(logging.INFO):
        answer = client.get("/fails/a-users-word", headers={"X-Request-ID": "id-1"})
    assert answer.status_code == 500 and answer.headers["x-request-id"] == "id-1"
    assert "id-1" in answer.json()["detail"] and "a-users-word" not in answer.text
    text = json.dumps(lines_of(caplog))
    assert "a-users-word" not in text and "ValueError" in text
    (line,) = [one for one in lines_of(caplog) if one["message"] == "answered"]
    assert line["route"] == "/fails/{name}" and line["status"] == 500 and line["pairs"] == 3


def test_what_is_refused_is_not_in_the_log(
    failing: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    with TestClient(failing) as client, caplog.at_level(logging.DEBUG):
        assert SECRET in client.get("/refuses").text
    assert SECRET not in json.dumps(lines_of(caplog))


@pytest.mark.parametrize("given", ["a b", "x" * 65, "\u00e9", "a;b", ""])
def test_a_harmful_request_id_is_replaced(client: httpx2.Client, given: str) -> None:
    answer = client.get("/health", headers={"X-Request-ID": given.encode()})
    assert answer.headers["x-request-id"] != given
    assert answer.headers["x-request-id"].isalnum()


def test_a_harmless_one_is_kept(client: httpx2.Client) -> None:
    answer = client.get("/health", headers={"X-Request-ID": "Trace-1.a:b_c"})
    assert answer.headers["x-request-id"] == "Trace-1.a:b_c"
