from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from ragvl.server.errors import install_error_answers
from ragvl.server.routes import page


@pytest.fixture
def files() -> TestClient:
    app = FastAPI()
    install_error_answers(app)
    app.include_router(page.router)
    return TestClient(app)


def test_the_page_loads_only_files_of_its_own(files: TestClient) -> None:
    names, seen = {"index.html"}, set[str]()
    while names - seen:
        name = (names - seen).pop()
        seen.add(name)
        answer = files.get("/" if name == "index.html" else f"/page/{name}")
        assert answer.status_code == 200, name
        loaded = re.findall(r'(?:href|src)="page/([^"]+)"|from "\./([^"]+)"', answer.text)
        names |= {first or second for first, second in loaded}
        addresses = set(re.findall(r"https?://[^\s\"']+", answer.text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name  # a namespace
    assert seen >= {"app.js", "style.css", "icon.svg"}


def test_nothing_of_another_host_and_nothing_inline_may_run(files: TestClient) -> None:
    for path in ("/", "/page/app.js"):
        policy = dict(
            rule.strip().split(" ", 1)
            for rule in files.get(path).headers["Content-Security-Policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"


def test_a_file_that_did_not_change_is_not_sent_again(files: TestClient) -> None:
    first = files.get("/page/app.js")
    again = files.get("/page/app.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "..%2Froutes%2Fpage.py", "page.py", "%00"])
def test_only_files_of_the_page_are_sent(files: TestClient, name: str) -> None:
    answer = files.get(f"/page/{name}")
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/json"
