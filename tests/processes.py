"""Programs in processes of their own that need no interpreter of their own.

A server of forks has imported what takes seconds, once for all of them.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

_SECONDS = 300  # a bound, not a wait
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["ragvl.ablation.ablate", "ragvl.training.command"])


class Process:
    """A process that runs a program.

    Args:
        program: its text; `sys.argv` begins with "-c".
        arguments: of its command line.
        environment: variables beside those of this process. It has as many threads as this one has.
    """

    def __init__(self, program: str, *arguments: object, **environment: str) -> None:
        descriptor, self._output = tempfile.mkstemp()
        os.close(descriptor)
        self._process = _FORKS.Process(
            target=_run,
            args=(program, [*map(str, arguments)], os.environ | environment, self._output),
            daemon=True,
        )
        self._process.start()

    def ended(self) -> tuple[int, str]:
        """Its exit code, negative for a signal, and what it has printed; waits for its end."""
        self._process.join(_SECONDS)
        self._process.kill()
        self._process.join()
        output = Path(self._output)
        printed = output.read_text(errors="replace")
        output.unlink()
        assert self._process.exitcode is not None
        return self._process.exitcode, printed


def _run(program: str, arguments: list[str], environment: dict[str, str], output: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with open(output, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = ["-c", *arguments]
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
