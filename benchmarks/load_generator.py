"""Sends HTTP requests from a process of its own, so that the sender takes nothing from the server.

`run` starts it; it reads a `Load` as JSON and writes the answers into a file. Only the standard
library is imported, and uvloop where it is: what it costs must be little.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

try:
    from uvloop import run as run_loop
except ImportError:
    from asyncio import run as run_loop

_GRACE = 60.0  # seconds after the last request in which its answer must have come
NO_ANSWER = 0  # in the place of a status: the connection ended, or was not made


@dataclass(frozen=True)
class Load:
    """Requests to one address on this machine.

    Attributes:
        port: of a server on 127.0.0.1.
        bodies: a JSON a request.
        moments: seconds from the start at which each request is sent, whatever became of those
            before; None sends them one after another on `connections` connections.
        connections: at most so many at once.
        seconds: no request is sent after that.
        keep_bodies: whether answers hold what was sent back.
    """

    port: int
    path: str
    bodies: Sequence[str]
    moments: Sequence[float] | None = None
    connections: int = 1
    seconds: float = 60.0
    headers: dict[str, str] = field(default_factory=dict)
    keep_bodies: bool = False


class Sent(NamedTuple):
    """What became of one request.

    Attributes:
        number: which of the bodies it was.
        moment: seconds from the start at which it was sent, or was due.
        seconds: from `moment` to the answer's end.
        status: of HTTP, or `NO_ANSWER`.
        retry_after: the header's value, or "".
        body: the answer's, where bodies are kept.
    """

    number: int
    moment: float
    seconds: float
    status: int
    retry_after: str
    body: str


def run(load: Load) -> list[Sent]:
    """Sends the requests of `load` from a new process, and returns what became of them in turn."""
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "answers.json"
        subprocess.run(
            [sys.executable, "-P", __file__, str(answers)],
            input=json.dumps(asdict(load)),
            text=True,
            check=True,
            timeout=load.seconds + 2 * _GRACE,
        )
        return [Sent(*one) for one in json.loads(answers.read_text())]


class _Connection(asyncio.Protocol):
    """One request at a time over a connection that is kept."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[tuple[int, dict[str, str], bytes]] | None = None

    async def ask(self, request: bytes, port: int) -> tuple[int, dict[str, str], bytes]:
        """The status, headers and body of the answer.

        Raises:
            OSError: no connection, or it ended before the answer.
        """
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            self._received = b""
            await loop.create_connection(lambda: self, "127.0.0.1", port)
        assert self._transport is not None
        self._answer = loop.create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or self._answer is None or self._answer.done():
            return
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        length = int(headers["content-length"])
        if len(body) >= length:
            self._received = body[length:]
            self._answer.set_result((int(status.split()[1]), headers, body[:length]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed before the answer"))


async def _send(load: Load) -> list[Sent]:
    """Sends the requests of `load` from this process."""
    start = time.perf_counter()
    free = [_Connection() for _ in range(load.connections)]
    room = asyncio.Semaphore(load.connections)
    fixed = "".join(f"{name}: {value}\r\n" for name, value in load.headers.items())
    sent: list[Sent] = []

    async def send(number: int, moment: float) -> None:
        """Sends one request, and keeps what became of it."""
        body = load.bodies[number].encode()
        request = (
            f"POST {load.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"{fixed}Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        async with room:
            connection = free.pop()
            try:
                status, headers, answer = await connection.ask(request, load.port)
            except OSError:
                status, headers, answer = NO_ANSWER, {}, b""
            finally:
                free.append(connection)
        seconds = time.perf_counter() - start - moment
        kept = answer.decode() if load.keep_bodies else ""
        sent.append(Sent(number, moment, seconds, status, headers.get("retry-after", ""), kept))

    async def in_turn(numbers: Iterator[int]) -> None:
        for number in numbers:
            if (now := time.perf_counter() - start) > load.seconds:
                return
            await send(number, now)

    async def when_due(moments: Sequence[float]) -> None:
        async with asyncio.TaskGroup() as group:
            for number, moment in enumerate(moments):
                await asyncio.sleep(moment - (time.perf_counter() - start))
                group.create_task(send(number, moment))

    if load.moments is None:
        numbers = iter(range(len(load.bodies)))
        work = asyncio.gather(*(in_turn(numbers) for _ in range(load.connections)))
    else:
        work = asyncio.ensure_future(when_due([m for m in load.moments if m <= load.seconds]))
    await asyncio.wait_for(work, load.seconds + _GRACE)
    for connection in free:
        connection.close()
    return sorted(sent)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(run_loop(_send(Load(**json.load(sys.stdin))))))
