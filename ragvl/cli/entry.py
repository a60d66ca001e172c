"""What the `ragvl` script calls: the commands, and an end of the process without waste."""

from __future__ import annotations

import atexit
import os
import sys

from ragvl.cli import app


class _QuickEnd:
    """Ends the process once everything else is done at its end, by the code that it is to have.

    Python would take every object apart before: most of a second after torch was imported, for
    memory that the system takes back at once. Threads have ended by then and other handlers have
    run, since the last to be registered comes first.
    """

    def __init__(self) -> None:
        self.code = 1  # of an exception that nobody catches

    def __call__(self) -> None:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:  # as where a pipe was closed
            self.code = self.code or 1
        os._exit(self.code)


def main() -> None:
    """Runs the command that the command line names, and ends the process."""
    end = _QuickEnd()
    atexit.register(end)
    try:
        app()
    except SystemExit as ended:
        code = ended.code or 0
        end.code = code if isinstance(code, int) else 1
        raise
