"""`ragvl serve`: it starts, says where it listens, ends as signals say, and refuses in time."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from server.gated import WAIT, Gate
from server.live import MakeServices, live
from typer.testing import CliRunner

from ragvl.cli import app
from ragvl.cli.serve import ended_by_sigterm
from ragvl.server.run import bind

_SECONDS = 120  # a bound; a server starts within a few


@pytest.fixture(autouse=True)
def own_logs() -> Iterator[None]:
    """What a command in this process does to logging is undone."""
    root, package = logging.getLogger(), logging.getLogger("ragvl")
    before = root.handlers[:], root.level, package.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    package.setLevel(before[2])


@contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process of `ragvl serve`, and its URL once it listens; killed if it is still there."""
    command = [sys.executable, "-m", "ragvl.cli", "serve", "--port", "0", "--log-format", "json"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(_SECONDS, process.kill)
        watchdog.start()
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if '"listening"' in line:
                    yield process, json.loads(line)["url"]
                    break
            else:
                pytest.fail("it did not start")
        finally:
            process.kill()
            watchdog.cancel()


def ended(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and what was logged until then."""
    assert process.stderr is not None
    lines = [json.loads(line) for line in process.stderr if line.startswith("{")]
    return process.wait(_SECONDS), lines


@pytest.mark.slow
def test_it_serves_until_sigterm(tmp_path: Path) -> None:
    with serving("--cache", str(tmp_path / "cache")) as (process, url):
        with httpx2.Client(base_url=url, timeout=_SECONDS) as client:
            assert client.get("/v1/models").json()["data"][0]["id"] == "tiny-reranker"
            assert client.get("/ready").status_code == 200
        process.send_signal(signal.SIGTERM)
        code, lines = ended(process)
    assert code == 0
    assert lines[-1]["message"] == "ended" and lines[-1]["clean"] is True
    assert [one["level"] for one in lines if one["level"] in ("warning", "error")] == []


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once() -> None:
    with serving("--grace", "100") as (process, url):
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as unfinished:
            # A request whose body never comes would be waited for
            unfinished.sendall(b"POST /rerank HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n")
            unfinished.sendall(b"content-type: application/json\r\n\r\n")
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            for line in process.stderr:
                if '"ending"' in line:
                    break
            process.send_signal(signal.SIGTERM)
            assert ended(process)[0] == 130


BODY = {"query": "Is it red?", "documents": ["a red house", "a blue one"]}


def test_what_was_accepted_is_answered_and_nothing_new_is(
    make_services: MakeServices, gate: Gate
) -> None:
    with live(make_services(gate)) as server, ThreadPoolExecutor(1) as pool:
        with server.client() as client, server.client() as other:
            asked = pool.submit(client.post, "/v1/rerank", json=BODY)
            assert gate.arrived.acquire(timeout=WAIT)
            assert other.get("/ready").status_code == 200
            server.server.stop()
            while other.get("/ready").status_code == 200:
                pass
            refused = other.post("/v1/rerank", json=BODY)
            assert refused.status_code == 503
            assert refused.json()["error_type"] == "shutting_down"
            assert other.get("/health").status_code == 200
            gate.let_all_pass()
            assert asked.result(WAIT).status_code == 200
        server.thread.join(WAIT)
        assert not server.thread.is_alive() and server.server.is_clean


def test_what_takes_longer_than_the_grace_time_is_told_so(
    make_services: MakeServices, gate: Gate
) -> None:
    with live(make_services(gate, grace=0.2)) as server, ThreadPoolExecutor(1) as pool:
        with server.client() as client:
            asked = pool.submit(client.post, "/v1/rerank", json=BODY)
            assert gate.arrived.acquire(timeout=WAIT)
            server.server.stop()
            answered = asked.result(WAIT)  # before the pass is over
            assert answered.status_code == 503
            gate.let_all_pass()
        server.thread.join(WAIT)
        assert not server.server.is_clean


@pytest.mark.slow
def test_the_demo_is_served_with_all_there_is() -> None:
    with serving("--demo") as (process, url):
        with httpx2.Client(base_url=url, timeout=_SECONDS) as client:
            model = client.get("/v1/models").json()["data"][0]
            assert model["has_index"] and model["has_generator"]
            assert "adaptive" in model["thresholds"]
            (question, *_) = client.get("/v1/examples").json()["questions"]
            answer = client.post("/v1/answer", json={"query": question}).json()
            assert answer["grounded"] and answer["answer"]
            known = {"id": answer["results"][0]["id"]}
            again = client.post("/v1/rerank", json={"query": question, "documents": [known]})
            (score,) = [one["raw_score"] for one in again.json()["results"]]
            assert score == answer["results"][0]["raw_score"]
        process.send_signal(signal.SIGTERM)
        code, lines = ended(process)
    assert code == 0
    assert [one for one in lines if one["level"] == "error"] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--timeout", "0"], "timeout"),
        (["--timeout", "700"], "more than max_timeout"),
        (["--max-body-bytes", "many"], "not a size"),
        (["--port", "70000"], "port"),
        (["--allow-urls", "http://a/b"], "no host"),
        (["--host", "256.0.0.1"], ""),
        (["--api-key-file", "/no/such/file"], "No such file"),
        (["./no-such-model"], "no-such-model"),
        (["--threshold", "2"], "threshold"),
        (["--encoder", "./nowhere"], "--index"),
        (["--warm"], "--index"),
        (["--demo", "--generator", "a", "--caption-tokens", "9"], "--generator, --caption-tokens"),
        (["--demo", "--dtype", "bfloat16"], "a model or its settings"),
    ],
)
def test_what_is_wrong_is_told_before_a_model_loads(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragvl.mllm import MLLM

    def load(*_: Any, **__: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(MLLM, "from_pretrained", load)
    outcome = CliRunner().invoke(app, ["serve", "--port", "0", *options])
    assert outcome.exit_code == 1, outcome.output
    (line,) = outcome.output.strip().splitlines()
    assert line.startswith("ragvl serve: ") and said in line


def test_damaged_documents_are_told_before_a_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragvl.mllm import MLLM

    monkeypatch.setattr(MLLM, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    database = tmp_path / "documents" / "documents.sqlite"
    database.parent.mkdir()
    database.write_bytes(b"no database" * 99)
    outcome = CliRunner().invoke(app, ["serve", "--port", "0", "--cache", str(tmp_path)])
    assert outcome.exit_code == 1 and str(database) in outcome.output


def test_what_a_first_call_refuses_is_told_in_one_line() -> None:
    outcome = CliRunner().invoke(app, ["serve", "--port", "0", "--device-cache", "1KB"])
    assert outcome.exit_code == 1
    (line,) = outcome.output.strip().splitlines()
    assert line.startswith("ragvl serve: a prefix cache of 1000 B holds nothing")


def test_a_port_that_is_taken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("RAGVL_SERVE_PORT", port)  # each option has its variable
        outcome = CliRunner().invoke(app, ["serve"])
    assert outcome.exit_code == 1 and "in use" in outcome.output
    assert os.environ["RAGVL_SERVE_PORT"] == port


def test_sigterm_ends_what_comes_before_the_server() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, ended_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it was ignored")
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
