"""Connections are bounded in number, size and time; by sockets, since clients are well-behaved."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest
from server.live import LiveServer, live

HEALTH = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"
_SECONDS = 20  # a bound on what must end by itself


@contextmanager
def connect(server: LiveServer) -> Iterator[socket.socket]:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=_SECONDS) as one:
        yield one


def read_to_end(one: socket.socket) -> bytes:
    """All that comes until the server closes the connection, or cuts it."""
    read = b""
    try:
        while data := one.recv(1 << 16):
            read += data
    except ConnectionResetError:
        pass
    return read


def check_error(answer: bytes, status: int, kind: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    error = json.loads(body)
    assert error["error"]["code"] == status and error["error_type"] == kind
    assert error["detail"] == error["error"]["message"]


@pytest.fixture(scope="module")
def strict(make_services: Callable[..., Any]) -> Iterator[LiveServer]:
    services = make_services(
        header_seconds=0.3,
        body_seconds=0.3,
        write_seconds=0.3,
        max_header_bytes=2048,
        max_body_bytes="64KiB",
        max_held_bytes="96KiB",
    )
    with live(services) as server:
        yield server


@pytest.mark.parametrize(
    "sent", [b"", b"GET /health", b"GET /health HTTP/1.1\r\nhost: a\r\nx-slow: ", b"\r\n"]
)
def test_a_connection_without_a_whole_request_is_closed(strict: LiveServer, sent: bytes) -> None:
    with connect(strict) as one:
        one.sendall(sent)
        assert read_to_end(one) == b""


def test_line_ends_between_requests_keep_no_connection_open(strict: LiveServer) -> None:
    with connect(strict) as one:
        one.sendall(HEALTH)
        assert one.recv(1 << 16).startswith(b"HTTP/1.1 200")
        one.sendall(b"\r\n")
        assert read_to_end(one) in (b"", b'{"status":"ok"}')


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\nhost: a\r\nx-long: " + b"a" * 4096 + b"\r\n\r\n",
        b"GET /" + b"a" * 4096 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
)
def test_large_headers_are_refused(strict: LiveServer, sent: bytes) -> None:
    with connect(strict) as one:
        one.sendall(sent)
        check_error(read_to_end(one), 431, "headers_too_large")


def test_headers_that_never_end_are_refused(strict: LiveServer) -> None:
    with connect(strict) as one:
        one.sendall(b"GET /health HTTP/1.1\r\n")
        answer = b""
        for _ in range(1000):
            try:
                one.sendall(b"x-more: " + b"a" * 100 + b"\r\n")
            except OSError:
                break
        answer = read_to_end(one)
        if answer:  # else it was cut off while it was still writing
            check_error(answer, 431, "headers_too_large")


@pytest.mark.parametrize("path", [b"/v1/rerank", b"/nowhere"])
@pytest.mark.parametrize("first", [b"0\r\n", b"0\r\na: ", b"1;"])
def test_headers_behind_a_body_or_of_a_chunk_are_bounded(
    strict: LiveServer, path: bytes, first: bytes
) -> None:
    head = b"POST %s HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n" % path
    more = (b"a" * 100 + b": b\r\n" if first == b"0\r\n" else b"a" * 100) * 100
    with connect(strict) as one:
        one.sendall(head + b"transfer-encoding: chunked\r\n\r\n" + first)
        with pytest.raises(OSError) as cut:
            for _ in range(1000):  # far less than what is read of a body for nothing
                one.sendall(more)
        assert not isinstance(cut.value, TimeoutError)


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01", b"GARBAGE\r\n\r\n", b"GET\r\n\r\n"])
def test_what_is_no_http_is_told_so(strict: LiveServer, sent: bytes) -> None:
    with connect(strict) as one:
        one.sendall(sent)
        check_error(read_to_end(one), 400, "invalid_request")


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("form", ["length", "chunked"])
def test_a_request_that_asks_for_another_protocol_is_answered_in_this_one(
    server: LiveServer, upgrade: str, size: int, form: str
) -> None:
    body = b'{"query": "Is it red?", "documents": ["a red house"]}'
    head = (
        "POST /v1/rerank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        f"connection: Upgrade, HTTP2-Settings\r\nupgrade: {upgrade}\r\nhttp2-settings: AAMAAABk\r\n"
    ).encode()
    if form == "length":
        sent = head + b"content-length: %d\r\n\r\n" % len(body) + body
    else:
        sent = head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    sent += HEALTH.replace(b"host: a", b"host: a\r\nconnection: close")
    with connect(server) as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for first in range(0, len(sent), size):
            one.sendall(sent[first : first + size])
        answers = read_to_end(one)
    assert [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200"]
    assert b'"relevance_score"' in answers and answers.endswith(b'{"status":"ok"}')


def test_many_requests_at_once_may_ask_for_another_protocol(strict: LiveServer) -> None:
    asking = HEALTH.replace(b"host: a", b"host: a\r\nconnection: upgrade\r\nupgrade: h2c")
    last = HEALTH.replace(b"host: a", b"host: a\r\nconnection: close")
    with connect(strict) as one:
        one.sendall(asking * 1500 + last)
        assert read_to_end(one).count(b"HTTP/1.1 200") == 1501


def test_it_is_no_proxy(strict: LiveServer) -> None:
    with connect(strict) as one:
        one.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n")
        check_error(read_to_end(one), 400, "invalid_request")


def test_more_connections_than_allowed_are_closed(make_services: Callable[..., Any]) -> None:
    with (
        live(make_services(max_connections=2)) as server,
        closing(HTTPConnection(urlsplit(server.url).netloc)) as first,
        closing(HTTPConnection(urlsplit(server.url).netloc)) as second,
    ):
        for one in (first, second):
            one.request("GET", "/health")
            assert one.getresponse().read() == b'{"status":"ok"}'
        with connect(server) as surplus:
            with suppress(OSError):
                surplus.sendall(HEALTH)
            assert read_to_end(surplus) == b""
        first.request("GET", "/health")
        assert first.getresponse().read() == b'{"status":"ok"}'


@pytest.mark.slow
def test_a_client_that_does_not_read_its_answers_is_cut_off(strict: LiveServer) -> None:
    with connect(strict) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.sendall(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n" * 1000)  # megabytes of answers
        with pytest.raises(OSError) as cut:
            for _ in range(400):
                one.sendall(b"\r\n")
                time.sleep(0.05)
        assert not isinstance(cut.value, TimeoutError)


def test_requests_that_come_at_once_are_not_taken_for_large_headers(strict: LiveServer) -> None:
    sent = HEALTH * 100 + HEALTH.replace(b"host: a", b"host: a\r\nconnection: close")
    with connect(strict) as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for first in range(0, len(sent), 3000):  # each part ends within headers
            one.sendall(sent[first : first + 3000])
        assert read_to_end(one).count(b"HTTP/1.1 200") == 101


def test_a_body_after_its_answer_is_read_up_to_the_limit(strict: LiveServer) -> None:
    with connect(strict) as one:
        one.sendall(b"POST /nowhere HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n")
        answer = one.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 413")
        with pytest.raises(OSError) as cut:
            for _ in range(10_000):
                one.sendall(b"a" * 10_000)
        assert not isinstance(cut.value, TimeoutError)


@pytest.mark.parametrize("sent", [b"", b'{"query": '])
def test_a_body_that_stops_coming_is_told_so(strict: LiveServer, sent: bytes) -> None:
    head = b"POST /v1/rerank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    with connect(strict) as one:
        one.sendall(head + b"content-length: 1000\r\n\r\n" + sent)
        check_error(read_to_end(one), 408, "request_timeout")


def test_a_chunked_body_past_the_limit_is_told_so(strict: LiveServer) -> None:
    head = b"POST /v1/rerank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    with connect(strict) as one:
        one.sendall(head + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (1 << 14, b" " * (1 << 14))
        with suppress(OSError):  # it may be closed while it is still written to
            for _ in range(5):
                one.sendall(chunk)
        answer = read_to_end(one)
        if answer:
            check_error(answer, 413, "too_large")
