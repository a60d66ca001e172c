"""The `ragvl` command: a file a group of commands, all of which are named here."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import MutableMapping
from typing import Annotated

import typer

from ragvl.cli import data, demo, doctor, evaluate, experiments, index, rerank, search, serve, train
from ragvl.cli.options import JsonMayNameAFile

__all__ = ["app"]


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Has torch's threads on a CPU wait for each other for a moment only, then leave their cores.

    GNU's OpenMP otherwise waits thirty times as long at full load, which on cores that others use
    takes several times as long as a single thread would, and on idle ones gains little. It is
    read once, when torch is imported. What a person has set stays.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}.intersection(environment):
        environment["GOMP_SPINCOUNT"] = "10000"


def ragvl(
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


_data = typer.Typer(no_args_is_help=True, help="Prepare data.")
for _command in (data.check, data.draw, data.ranking):
    _data.command()(_command)

_train = typer.Typer(no_args_is_help=True, help="Train a reranker or a generator.")
_train.command("reranker", context_settings=train.OWN_FLAGS)(train.train_reranker)
_train.command("generator", context_settings=train.OWN_FLAGS)(train.train_generator)
_train.command("recipes")(train.train_recipes)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.callback()(ragvl)
app.command(cls=JsonMayNameAFile)(demo.demo)
app.command()(rerank.rerank)
app.command()(rerank.warm)
app.command()(index.index)
app.command()(search.search)
app.command()(search.ask)
app.command()(serve.serve)
app.command(cls=JsonMayNameAFile)(experiments.overhead)
app.command()(evaluate.evaluate)
app.command()(evaluate.calibrate)
app.command()(experiments.ablate)
app.command()(doctor.doctor)
app.add_typer(_data, name="data")
app.add_typer(_train, name="train")
