"""What goes wrong around a server: none of it makes a wrong score, a crash or a hang."""

from __future__ import annotations

import base64
import json
import logging
import random
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from bench_serve import MODEL, Workload, endurance
from load_generator import NO_ANSWER, Load, Sent, run
from server.live import MakeServices, live
from server_process import ServerProcess, serving

from ragvl import Document, Reranker

_BOUND = 60.0  # seconds in which all must be over


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, tiny_reranker: Reranker) -> Workload:
    return Workload(tmp_path_factory.mktemp("pictures"), tiny_reranker)


@pytest.fixture(scope="module")
def question(known: Workload) -> str:
    return known.questions(1)[0]


@pytest.fixture(scope="module")
def expected(known: Workload, question: str) -> list[float]:
    """The raw scores of `question` with each document, of the reranker in this process."""
    return known.reranker.score(known.pairs([question]), raw=True).tolist()


def scores_of(answer: dict[str, Any]) -> list[float]:
    """Raw scores in the order of the request's documents."""
    return [one["raw_score"] for one in sorted(answer["results"], key=lambda one: one["index"])]


def ask(port: int, body: str) -> list[float]:
    answer = httpx2.post(
        f"http://127.0.0.1:{port}/v1/rerank",
        content=body,
        headers={"Content-Type": "application/json"},
        timeout=_BOUND,
    )
    assert answer.status_code == 200, answer.text
    return scores_of(answer.json())


# --- ends without a word ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that servers share."""
    return tmp_path_factory.mktemp("shared") / "cache"


@pytest.fixture(scope="module")
def running(cache: Path, known: Workload) -> Iterator[ServerProcess]:
    """A server that knows the documents."""
    with serving(MODEL, "--cache", str(cache), log=cache.parent / "running") as server:
        known.put(server)
        yield server


@pytest.mark.slow
def test_killed_under_load_and_started_again(
    running: ServerProcess, cache: Path, known: Workload, question: str, expected: list[float]
) -> None:
    """One of two servers of a folder is killed while both answer, and started again."""
    (body,) = known.bodies([question])
    answers: dict[int, list[Sent]] = {}

    def send(port: int, count: int) -> None:
        load = Load(port, "/v1/rerank", [body] * count, None, 4, 30, keep_bodies=True)
        answers[port] = run(load)

    with serving(MODEL, "--cache", str(cache), log=cache.parent / "killed") as killed:
        assert ask(killed.port, body) == expected  # of documents that the other one was given
        senders = [
            threading.Thread(target=send, args=[killed.port, 1000]),
            threading.Thread(target=send, args=[running.port, 20]),
        ]
        for sender in senders:
            sender.start()
        end = time.monotonic() + _BOUND
        while killed.log.read_text().count("route=/v1/rerank") < 9:  # it is at it
            assert time.monotonic() < end
            time.sleep(0.02)
        killed.kill()
        for sender in senders:
            sender.join(_BOUND)
            assert not sender.is_alive()
    with serving(MODEL, "--cache", str(cache), log=cache.parent / "again") as again:
        assert ask(again.port, body) == expected
    assert {one.status for one in answers[running.port]} == {200}
    assert {one.status for one in answers[killed.port]} == {200, NO_ANSWER}
    for one in (*answers[running.port], *answers[killed.port]):
        assert one.status == NO_ANSWER or scores_of(json.loads(one.body)) == expected


# --- a full disk --------------------------------------------------------------------------------

_MOUNT = 'mount -t tmpfs -o size=16m tmpfs "$0" && exec "$@"'


def small_disk(folder: Path) -> list[str]:
    """What has a command see a disk of 16 MiB in `folder`; skips where that is not allowed."""
    folder.mkdir()
    unshare = shutil.which("unshare") or pytest.skip("needs unshare")
    command = [unshare, "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT, str(folder)]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    return command


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path, known: Workload, question: str, expected: list[float]) -> None:
    """What does not fit is refused whole; all that is known, or given with a query, is scored."""
    cache, rng = tmp_path / "cache", random.Random(0)
    (body,) = known.bodies([question])
    statuses = []
    with ExitStack() as stack:
        server = stack.enter_context(
            serving(MODEL, "--cache", str(cache), log=tmp_path / "log", within=small_disk(cache))
        )
        client = stack.enter_context(httpx2.Client(base_url=server.url, timeout=_BOUND))
        known.put(server)
        while statuses.count(507) < 3 and len(statuses) < 30:  # whose pictures alone are too much
            number = len(statuses)
            # Bytes after a JPEG's end are nobody's
            image = Path(known.documents[number].image).read_bytes() + rng.randbytes(600_000)
            given = {"image": base64.b64encode(image).decode(), "text": f"Large {number}"}
            put = client.put(f"/v1/documents/large-{number}", json=given)
            found = client.get(f"/v1/documents/large-{number}")
            assert (put.status_code, found.status_code) in {(200, 200), (507, 404)}, put.text
            statuses.append(put.status_code)
        assert statuses[0] == 200 and statuses[-1] == 507
        assert ask(server.port, body) == expected
        texts = ["The roof is red.", "The pier is long."]
        pairs = [(question, Document(text=text)) for text in texts]
        asked = json.dumps({"query": question, "documents": texts})
        assert ask(server.port, asked) == known.reranker.score(pairs, raw=True).tolist()
        assert server.stop() == 0


# --- clients that do not read -------------------------------------------------------------------


def deaf(port: int) -> socket.socket:
    """A client that asks for more than it has room for, and reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(_BOUND)
    client.connect(("127.0.0.1", port))
    client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 400)
    return client


@pytest.mark.slow
def test_clients_that_do_not_read(
    make_services: MakeServices,
    known: Workload,
    question: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They are cut off, without an error, and the others do not wait for them."""
    texts = [document.caption or "" for document in known.documents]
    pairs = [(question, Document(text=text)) for text in texts]
    asked = json.dumps({"query": question, "documents": texts})
    with ExitStack() as stack:
        server = stack.enter_context(live(make_services(write_seconds=0.5)))
        port = int(server.url.rpartition(":")[2])
        for _ in range(8):
            stack.enter_context(deaf(port))
        assert ask(port, asked) == known.reranker.score(pairs, raw=True).tolist()
        end = time.monotonic() + _BOUND
        while server.server.server_state.connections:
            assert time.monotonic() < end, "they keep their connections"
            time.sleep(0.02)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# --- bodies -------------------------------------------------------------------------------------


def malformed(rng: random.Random, valid: str) -> bytes:
    """Something like a request's body that is as good as never one."""
    data = bytearray(valid.encode())
    kind = rng.randrange(8)
    if kind == 0:  # cut off
        return bytes(data[: rng.randrange(len(data))])
    if kind == 1:  # bytes that are no UTF-8
        data[rng.randrange(len(data))] = rng.randrange(128, 256)
        return bytes(data)
    if kind == 2:  # nested
        depth = rng.choice([10, 1_000, 100_000])
        return b'{"query": "q", "documents": ' + b"[" * depth + b"]" * depth + b"}"
    if kind == 3:  # numbers that are none, or too large
        number = rng.choice(["NaN", "1e999", "-" * 9 + "1", "9" * 5_000])
        return f'{{"query": "q", "documents": ["d"], "top_n": {number}}}'.encode()
    if kind == 4:  # other kinds of value
        value: Any = rng.choice([None, True, 3, [], {}, [[]], [None], [{}], [{"id": 3}], ""])
        return json.dumps(
            {"query": "q", "documents": ["d"], rng.choice(["query", "documents"]): value}
        ).encode()
    if kind == 5:  # pictures that are none
        picture = base64.b64encode(rng.randbytes(rng.randrange(200))).decode()
        wrong = rng.choice(
            [f"data:image/png;base64,{picture}", picture, "file:///etc/passwd", "\x00"]
        )
        return json.dumps({"query": "q", "documents": [{"image": wrong}]}).encode()
    if kind == 6:  # characters that are none
        return b'{"query": "\\ud800 \\udfff", "documents": ["\\ud83d"], "model": "\\u0000"}'
    return rng.randbytes(rng.randrange(1, 2_000))


@pytest.mark.slow
def test_a_thousand_malformed_bodies(client: httpx2.Client, known: Workload, question: str) -> None:
    """Each is refused by its place, or is no more than odd; afterwards a score is what it was."""
    rng = random.Random(0)
    (valid,) = known.bodies([question])
    asked = {"query": question, "documents": [one.caption for one in known.documents]}
    before = client.post("/v1/rerank", json=asked).json()["results"]
    statuses: Counter[int] = Counter()
    for _ in range(1000):
        path = rng.choice(["/v1/rerank", "/rerank", "/v1/score", "/v1/ranking"])
        answer = client.post(
            path, content=malformed(rng, valid), headers={"Content-Type": "application/json"}
        )
        statuses[answer.status_code] += 1
        if answer.status_code != 200:
            assert answer.json()["error"]["code"] == answer.status_code
            assert answer.json()["detail"]
    assert set(statuses) <= {200, 400, 404, 413, 422}, statuses
    assert statuses[400] + statuses[422] > 900
    assert client.post("/v1/rerank", json=asked).json()["results"] == before


# --- what is left -------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_is_left_of_requests(running: ServerProcess, known: Workload) -> None:
    """bench_serve.py does the same with forty times as many, and a smaller bound for memory."""
    left = endurance(running, known, 500)
    assert left["memory_growth"] < 0.05
    assert left["threads_left"] <= 0 and left["files_left"] <= 0
