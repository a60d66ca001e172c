"""Standard output of the commands: tables for a person, plain lines and JSON for a program."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ragvl.messages import visible

_LEAST_PATH = 24  # columns that a table leaves a path, if it is as long


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    numbers: Collection[str] = (),
    paths: Collection[str] = (),
) -> None:
    """Prints a table whose cells may hold any text, none of which is read as markup.

    On a terminal it is drawn, and a cell that is too wide goes on in its next line; of a path that
    is too wide the front is left out. Elsewhere it is the head and the rows, one a line whatever
    their width, with tabs between the cells.

    Args:
        columns: their names.
        rows: as many cells each.
        title: a line above the table.
        numbers: names of the columns that are aligned to the right.
        paths: names of the columns that hold paths.
    """
    cells = [[visible(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        heading = [visible(title)] if title else []
        lines = ["\t".join(line) for line in ([visible(name) for name in columns], *cells)]
        sys.stdout.write("".join(f"{line}\n" for line in heading + lines))
        sys.stdout.flush()  # a pipe that nobody reads is an error here, not at the end
        return
    table = Table(
        title=Text(visible(title)) if title else None,
        title_justify="left",
        box=box.SIMPLE,
        collapse_padding=True,
    )
    for name in columns:
        table.add_column(
            Text(visible(name)), justify="right" if name in numbers else "left", overflow="fold"
        )
    kinds = [_Path if name in paths else Text for name in columns]
    for row in cells:
        table.add_row(*(kind(cell) for kind, cell in zip(kinds, row, strict=True)))
    Console(file=sys.stdout).print(table)


class _Path:
    """A cell that ends in what tells it from others: the front goes where there is no room."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = cell_len(self._path)
        return Measurement(min(width, _LEAST_PATH), width).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        path = self._path
        if cell_len(path) > options.max_width:
            room, start = options.max_width - 1, len(path)
            while (room := room - cell_len(path[start - 1])) >= 0:
                start -= 1
            path = f"…{path[start:]}"
        yield Text(path, no_wrap=True)


def print_json(value: object) -> None:
    """Prints `value` as JSON; see `json_text`."""
    sys.stdout.write(json_text(value))
    sys.stdout.flush()


def json_text(value: object) -> str:
    """`value` as JSON, in ASCII: a NaN is null, since JSON has none."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def say(line: object, *, err: bool = False) -> None:
    """Prints a line that may hold any text, to standard output or standard error."""
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{visible(line)}\n")
    stream.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(of_key) for key, of_key in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
