"""Results have the same bits whatever the caller has set around a call, or around loading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_encoders import save_checkpoint

from ragvl import Document, Generator, Reranker
from ragvl.prefix_cache import reuse_problem
from ragvl.retriever import DualEncoder

DOCUMENTS = [
    Document(Image.new("RGB", (64, 48), (40 * i, 10, 10)), caption=f"roof {i}") for i in range(3)
]
PAIRS = [("Red?", document) for document in DOCUMENTS]
Models = tuple[Reranker, Generator, DualEncoder]


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def set_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
    "default dtype": float64,
    "default device": set_device,
    "device": lambda: torch.device("meta"),
}


@pytest.fixture(scope="module")
def load(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Models]:
    encoder = save_checkpoint(tmp_path_factory.mktemp("encoder"), "clip")

    def models(architecture: str) -> Models:
        folder = tiny_model(architecture)
        return (
            Reranker.from_pretrained(folder, device="cpu", prefix_cache="64MiB"),
            Generator.from_pretrained(folder, device="cpu"),
            DualEncoder.from_pretrained(encoder, device="cpu"),
        )

    return models


@pytest.fixture(scope="module")
def untouched(load: Callable[[str], Models]) -> Callable[[str], tuple[Models, list[Any]]]:
    """Models of an architecture, and their results where nothing is set."""

    @cache
    def of(architecture: str) -> tuple[Models, list[Any]]:
        models = load(architecture)
        return models, results(models)

    return of


def results(models: Models) -> list[Any]:
    reranker, generator, encoder = models
    if reuse_problem(reranker.mllm) is None:
        reranker.warm(DOCUMENTS[:1], progress=False)
    scores = reranker.score(PAIRS)
    assert scores.dtype == torch.float32 and not scores.is_inference()
    ranked = [result.index for result in reranker.rank("Red?", DOCUMENTS)]
    vectors = encoder.encode_documents(DOCUMENTS), encoder.encode_texts(["a roof"])
    answer = generator.answer("Red?", DOCUMENTS[:2], max_new_tokens=4)
    return [scores.numpy(), ranked, answer, *vectors]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["qwen2_vl", "paligemma"])
@pytest.mark.parametrize("name", CONTEXTS)
def test_bits_do_not_depend_on_what_the_caller_set(
    name: str,
    architecture: str,
    load: Callable[[str], Models],
    untouched: Callable[[str], tuple[Models, list[Any]]],
) -> None:
    context: Callable[[], AbstractContextManager[Any]] = CONTEXTS[name]
    models, expected = untouched(architecture)
    with context():
        loaded = load(architecture)
        inside = [results(models), results(loaded)]
    for actual in (*inside, results(loaded), results(load(architecture))):
        for one, other in zip(actual, expected, strict=True):
            assert np.array_equal(one, other)


def test_weights_loaded_in_inference_mode_can_train(
    load: Callable[[str], Models],
) -> None:
    with torch.inference_mode():
        reranker, *_ = load("qwen2_vl")
    assert not any(p.is_inference() for p in reranker.mllm.model.parameters())
