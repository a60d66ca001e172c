"""Commands in a shell's text."""

from __future__ import annotations

import shlex
from collections.abc import Iterator


def shell_lines(text: str) -> Iterator[list[str]]:
    """The words of each command; one may run over several lines, by backslashes or in quotes."""
    command = ""
    for line in text.replace("\\\n", " ").splitlines(keepends=True):
        command += line
        try:
            words = shlex.split(command, comments=True)
        except ValueError:  # a quotation that is not closed yet
            continue
        command = ""
        yield words
    assert not command, f"a quotation is not closed: {command}"
