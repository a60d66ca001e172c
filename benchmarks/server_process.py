"""`ragvl serve` in a process of its own, what it holds of the machine, and its end."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_START_SECONDS = 180.0
_END_SECONDS = 30.0


@dataclass(frozen=True)
class Held:
    """What a process holds.

    Attributes:
        kib: resident memory.
        threads: how many.
        files: open file handles, sockets among them.
    """

    kib: int
    threads: int
    files: int


class ServerProcess:
    """A server on 127.0.0.1 that runs and is ready."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._process = process
        self.port = port
        self.log = log
        self.url = f"http://127.0.0.1:{port}"

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def held(self) -> Held:
        """What the server holds at this moment (Linux)."""
        folder = Path("/proc") / str(self._process.pid)
        status = (folder / "status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in status)
        return Held(
            kib=int(fields["VmRSS"].split()[0]),
            threads=int(fields["Threads"]),
            files=len(list((folder / "fd").iterdir())),
        )

    def kill(self) -> None:
        """Ends it without a word, as a power cut does."""
        self._process.kill()
        self._process.wait(_END_SECONDS)

    def stop(self) -> int:
        """Asks it to end, and returns its exit code.

        Raises:
            subprocess.TimeoutExpired: it goes on.
        """
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(_END_SECONDS)


@contextmanager
def serving(
    model: str | Path, *options: str, log: Path, within: Sequence[str] = ()
) -> Iterator[ServerProcess]:
    """Runs `ragvl serve MODEL OPTIONS` until the block ends.

    Args:
        model: a folder.
        options: besides host and port.
        log: takes what the server prints.
        within: a command that runs the command after it in its own place, such as `env -i`.

    Raises:
        RuntimeError: it ended, or was not ready in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*within, sys.executable, "-P", "-m", "ragvl.cli", "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    server = ServerProcess(process, port, log)
    try:
        _wait(server)
        yield server
        if server.running:
            server.stop()
    finally:
        if server.running:
            server.kill()


def _wait(server: ServerProcess) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and server.running:
        try:
            with urllib.request.urlopen(f"{server.url}/ready", timeout=5):
                return
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.1)
    raise RuntimeError(f"the server is not ready: {server.log.read_text(errors='replace')[-2000:]}")
