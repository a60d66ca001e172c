from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import typer.testing
from tiny_models import build_tiny
from transformers import PreTrainedConfig

from ragvl import Reranker
from ragvl.mllm import MLLM
from ragvl.server.settings import TINY_RERANKER
from ragvl.server.stages import Stages, load_demo

# Each call of a command would declare all of them anew
typer.testing._get_command = cache(typer.testing._get_command)  # type: ignore[attr-defined]
# Checks of a configuration's types would write it as JSON, for messages that nobody sees
PreTrainedConfig.__repr__ = object.__repr__


@pytest.fixture(scope="module", autouse=True)
def settled() -> None:
    """Keeps the garbage collector from looking through all modules and tests again and again.

    A file's tests import more of them, and each training begins with a whole collection.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Lets go again, so that what ends at the end does."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_model("llava")` is the folder of a tiny random checkpoint; do not write into it."""

    @cache
    def folder(architecture: str) -> Path:
        try:
            return build_tiny(architecture, tmp_path_factory.mktemp(architecture))
        except ImportError as error:
            # A few processors need torchvision or num2words, which ragvl does without
            if any(name in str(error).lower() for name in ("torchvision", "num2words")):
                pytest.skip(f"{architecture} lacks a package: {error}")
            raise
        except AttributeError as error:
            if "module transformers has no attribute" in str(error):
                pytest.skip(f"{architecture} is not in this version of transformers")
            raise

    return folder


@pytest.fixture(scope="session")
def tiny_mllm(tiny_model: Callable[[str], Path]) -> Callable[[str], MLLM]:
    """`tiny_mllm("llava")` is that checkpoint loaded, in float32 on the CPU; do not change it."""

    @cache
    def load(architecture: str) -> MLLM:
        return MLLM.from_pretrained(tiny_model(architecture), device="cpu", dtype="float32")

    return load


@pytest.fixture(scope="session")
def tiny_reranker() -> Reranker:
    """The reranker that comes along, in float32 on the CPU; do not change it."""
    return Reranker.from_pretrained(
        TINY_RERANKER, device="cpu", dtype="float32", prefix_cache="64MiB"
    )


@pytest.fixture(scope="session")
def demo() -> Stages:
    """The demo's drawn world, indexed, and its models; do not change them."""
    return load_demo(device="cpu", prefix_cache="64MiB")
