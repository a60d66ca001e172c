"""API keys: who is let in, and that no key is ever written anywhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from ragvl.server.access import KEYS_VARIABLE, ApiKeys, is_open
from ragvl.server.app import create_app
from ragvl.server.logs import LineFormatter

KEYS = ("first-key-0001", "second-key-0002")


@pytest.fixture
def guarded(make_services: Callable[..., Any]) -> TestClient:
    return TestClient(create_app(make_services(keys=ApiKeys(KEYS))))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_each_key_is_let_in(guarded: TestClient, key: str, scheme: str) -> None:
    answer = guarded.get("/v1/models", headers={"Authorization": f"{scheme} {key}"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer first-key-000",
        "Bearer first-key-00011",
        "Bearer FIRST-KEY-0001",
        "Basic first-key-0001",
        "first-key-0001",
        "Bearer first-key-0001 second-key-0002",
        "Bearer \xff\xfe",
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models"), ("POST", "/rerank"), ("GET", "/metrics"), ("GET", "/openapi.json")],
)
def test_nobody_else_is(guarded: TestClient, given: str | None, method: str, path: str) -> None:
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    answer = guarded.request(method, path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert body["error_type"] == "unauthorized" and body["detail"] == body["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_probes_need_no_key(guarded: TestClient, path: str) -> None:
    assert guarded.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/page", "/pages/x", "//", "/v1/page/", "/health/", "/Health"])
def test_only_named_paths_are_open(path: str) -> None:
    assert not is_open(path)


def test_a_path_that_climbs_out_of_the_page_is_none(guarded: TestClient) -> None:
    for path in ("/page/../v1/models", "/page/%2e%2e/v1/models", "/page/..%2fv1%2fmodels"):
        answer = guarded.get(path)
        assert answer.status_code in (401, 404), path
        assert "tiny-reranker" not in answer.text


def test_keys_of_a_file_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who\n{KEYS[0]}\n\n  {KEYS[1]}  \n")
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    assert ApiKeys.find(None) is None
    found = ApiKeys.find(file)
    assert found is not None
    assert all(found.admits(f"Bearer {key}") for key in KEYS)
    assert not found.admits("Bearer # who")
    monkeypatch.setenv(KEYS_VARIABLE, "third-key-0003, fourth-key-0004")
    both = ApiKeys.find(file)
    assert both is not None
    for key in (*KEYS, "third-key-0003", "fourth-key-0004"):
        assert both.admits(f"Bearer {key}")


@pytest.mark.parametrize("text", ["", "# none\n", "short\n", "schlüssel\n", "a\x00bcdefgh"])
def test_keys_that_are_none_are_refused_unquoted(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ValueError, match="API key") as refused:
        ApiKeys.find(tmp_path / "keys")
    assert "schl" not in str(refused.value) and "short" not in str(refused.value)


def test_a_variable_without_a_key_lets_nobody_in_by_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, " , ")
    with pytest.raises(ValueError, match="no API key"):
        ApiKeys.find(None)


def test_no_key_is_in_the_log_or_the_metrics(
    guarded: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        for key in (*KEYS, "wrong-key-0009"):
            guarded.get(f"/v1/models?key={key}", headers={"Authorization": f"Bearer {key}"})
    form = LineFormatter("json", with_content=True)
    own = [one for one in caplog.records if one.name.startswith("ragvl")]
    text = "\n".join(map(form.format, own))
    assert '"status": 401' in text and '"status": 200' in text
    shown = guarded.get("/metrics", headers={"Authorization": f"Bearer {KEYS[0]}"}).text
    assert not any(key in text + shown for key in (*KEYS, "wrong-key-0009"))
