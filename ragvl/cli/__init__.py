"""The `ragvl` command: a file a group of commands, all of which are named here."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import MutableMapping
from typing import Annotated

import typer

from ragvl import __version__
from ragvl.cli import (
    data,
    demo,
    doctor,
    evaluate,
    experiments,
    index,
    plan,
    rerank,
    search,
    train,
)
from ragvl.cli.options import DeclaredLater, JsonMayNameAFile, RayMayHaveAnAddress
from ragvl.output import say

__all__ = ["app"]


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Has torch's threads on a CPU wait for each other for a moment only, then leave their cores.

    GNU's OpenMP otherwise waits thirty times as long at full load, which on cores that others use
    takes several times as long as a single thread would, and on idle ones gains little. It is
    read once, when torch is imported. What a person has set stays.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}.intersection(environment):
        environment["GOMP_SPINCOUNT"] = "10000"


def say_version(wanted: bool) -> None:
    """Prints the version and ends, where that is wanted."""
    if wanted:
        say(f"ragvl {__version__}")
        raise typer.Exit


def ragvl(
    version: Annotated[  # noqa: ARG001  its callback has done all
        bool,
        typer.Option("--version", help="Print the version.", callback=say_version, is_eager=True),
    ] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, help="How many pixels a picture may have; 89 million, if not given."),
    ] = None,
) -> None:
    """Fast multimodal reranking with MLLMs (RagVL, arXiv 2407.21439)."""
    wait_briefly(os.environ)
    if max_pixels is not None:  # of processes that this one starts, too
        os.environ["RAGVL_MAX_PIXELS"] = str(max_pixels)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names in files may be more than it can print
            stream.reconfigure(errors="backslashreplace")


def _serve() -> None:
    """Serve reranking over HTTP, with a page to try it and documents known by id."""


_data = typer.Typer(no_args_is_help=True, help="Prepare data.")
for _command in (data.check, data.draw):
    _data.command()(_command)
_data.command(cls=RayMayHaveAnAddress)(data.ranking)

_train = typer.Typer(no_args_is_help=True, help="Train a reranker or a generator.")
_train.command("reranker", context_settings=train.OWN_FLAGS)(train.train_reranker)
_train.command("generator", context_settings=train.OWN_FLAGS)(train.train_generator)
_train.command("recipes")(train.train_recipes)

_EXIT_CODES = (
    "Exit codes: 0 it was done; 1 it could not be done, or a check failed, and standard error says "
    "why; 2 the command line is wrong; 130 Ctrl-C; 143 SIGTERM."
)

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, epilog=_EXIT_CODES)
app.callback()(ragvl)
app.command(cls=JsonMayNameAFile)(demo.demo)
app.command()(rerank.rerank)
app.command(cls=RayMayHaveAnAddress)(rerank.warm)
app.command()(index.index)
app.command()(search.search)
app.command()(search.ask)
app.command("serve", cls=DeclaredLater)(_serve)
app.command(cls=JsonMayNameAFile)(experiments.overhead)
app.command()(plan.plan)
app.command(cls=RayMayHaveAnAddress)(evaluate.evaluate)
app.command()(evaluate.calibrate)
app.command()(experiments.ablate)
app.command()(doctor.doctor)
app.add_typer(_data, name="data")
app.add_typer(_train, name="train")
