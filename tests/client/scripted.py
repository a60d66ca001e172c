"""A server on a loopback address that answers what a test wrote down."""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HANG_UP = object()  # instead of an answer: the connection is closed
SILENCE = object()  # no answer, until the server ends


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    method: str
    path: str
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Script:
    """What is answered, in turn, and what came.

    An answer is (status, headers, body), where the body is text or what JSON can hold.
    """

    answers: list[Any] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    ended: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece, for which no client waits to acknowledge the first
    script: Script

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.script.seen.append(Seen(self.command, self.path, self.headers, body))
        answer = self.script.answers.pop(0)
        if answer is SILENCE:
            self.script.ended.wait(10)
        if answer in (SILENCE, HANG_UP):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status, headers, content = answer
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        pass


class ScriptedServer:
    """Serves a `Script` for the time of a block."""

    def __enter__(self) -> Script:
        self.script = Script()
        handler = type("Handler", (_Handler,), {"script": self.script})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.script.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self.script

    def __exit__(self, *_: object) -> None:
        self.script.ended.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
