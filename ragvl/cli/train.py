"""`ragvl train`: its settings are read by jsonargparse, which knows their types and their YAML."""

from __future__ import annotations

import signal
import sys
from typing import Literal

import typer

from ragvl.cli import options
from ragvl.cli.common import hide_loading_bars, import_models, one_line_errors
from ragvl.output import print_json, say

OWN_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def train_reranker(context: typer.Context) -> None:
    """Yes or No from a question and a picture; --help lists its settings."""
    _train("reranker", context.args)


def train_generator(context: typer.Context) -> None:
    """Answers from pictures, with noise or without; --help lists its settings."""
    _train("generator", context.args)


def train_recipes(as_json: options.AsJson = False) -> None:
    """List the recipes that --config takes by name."""
    from ragvl.training.command import recipes

    if as_json:
        print_json(recipes())
    else:
        for name, purpose in recipes().items():
            say(f"{name:36} {purpose}")


def _train(stage: Literal["reranker", "generator"], flags: list[str]) -> None:
    with one_line_errors(f"train {stage}"):
        import_models()
        from ragvl.training.command import run

        hide_loading_bars()
        try:
            run(stage, flags, report=say)
        except KeyboardInterrupt as stopped:
            say(f"ragvl train {stage}: {stopped or 'stopped before the first step'}", err=True)
            sys.exit(128 + signal.SIGINT)
