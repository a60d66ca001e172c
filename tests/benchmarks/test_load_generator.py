from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from load_generator import NO_ANSWER, Load, run


class _Answers(BaseHTTPRequestHandler):
    """Answers with the number that it was sent; what it does besides is in the body."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked.get("end"):
            self.close_connection = True
            return
        if asked.get("wait"):
            self.server.barrier.wait(20)  # type: ignore[attr-defined]
        answer = json.dumps([asked["number"], self.path, self.headers["X-Given"]]).encode()
        self.send_response(asked.get("status", 200))
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("Retry-After", "7")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.barrier = threading.Barrier(4)  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join(20)
    server.server_close()


def bodies(count: int, **others: object) -> list[str]:
    return [json.dumps({"number": number, **others}) for number in range(count)]


def test_each_request_has_its_own_answer(server: ThreadingHTTPServer) -> None:
    load = Load(
        server.server_port,
        "/here",
        [*bodies(7), json.dumps({"number": 7, "status": 429})],
        connections=3,
        headers={"X-Given": "so"},
        keep_bodies=True,
    )
    sent = run(load)
    assert [one.number for one in sent] == list(range(8))
    assert [json.loads(one.body) for one in sent] == [[n, "/here", "so"] for n in range(8)]
    assert [one.status for one in sent] == [200] * 7 + [429]
    assert {one.retry_after for one in sent} == {"7"}


def test_as_many_are_under_way_as_there_are_connections(server: ThreadingHTTPServer) -> None:
    """The server answers none of them before it has four."""
    sent = run(Load(server.server_port, "/", bodies(8, wait=True), connections=4))
    assert [one.status for one in sent] == [200] * 8


def test_what_is_due_is_sent_whatever_became_of_the_others(server: ThreadingHTTPServer) -> None:
    load = Load(
        server.server_port, "/", bodies(5, wait=True), [0, 0.01, 0.02, 0.03, 99], 4, seconds=1
    )
    sent = run(load)
    assert [(one.number, one.moment) for one in sent] == [(0, 0), (1, 0.01), (2, 0.02), (3, 0.03)]
    assert {one.status for one in sent} == {200}  # which wait till the last has come


def test_a_connection_that_ends_is_no_answer_and_the_next_is_sent(
    server: ThreadingHTTPServer,
) -> None:
    asked = [json.dumps({"end": True}), *bodies(1)]
    assert [one.status for one in run(Load(server.server_port, "/", asked))] == [NO_ANSWER, 200]


def test_a_port_where_nobody_listens_is_no_answer() -> None:
    closed = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    closed.server_close()
    (sent,) = run(Load(closed.server_port, "/", bodies(1)))
    assert sent.status == NO_ANSWER
