"""The counts are what torch counts while the models run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import write_model
from roofline import Peaks, Work, measure_peaks, prefix_work, suffix_work
from shapes import SHAPES
from torch.utils.flop_counter import FlopCounterMode
from workload import write_documents

from ragvl import Reranker

CPU = torch.device("cpu")


def counted(reranker: Reranker, pairs: list) -> tuple[int, int]:
    """Operations of products, and of torch's attention, which counts what is masked as well."""
    with FlopCounterMode(display=False) as counter:
        reranker.score(pairs, progress=False)
    by_operation = {str(name): n for name, n in counter.get_flop_counts()["Global"].items()}
    attention = sum(n for name, n in by_operation.items() if "attention" in name)
    return sum(by_operation.values()) - attention, attention


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SHAPES if name.startswith("tiny")])
def test_products_are_counted(name: str, tmp_path: Path) -> None:
    # Wide enough that what is left out (patch embedding, projector, head) is little
    shape = SHAPES[name]
    decoder = replace(shape.decoder, intermediate_size=4096, num_layers=8)
    vision = replace(shape.vision, intermediate_size=2048)
    shape = replace(shape, decoder=decoder, vision=vision, image_tokens=36)
    write_model(tmp_path, shape)
    documents = write_documents(tmp_path, 3)
    reranker = Reranker.from_pretrained(tmp_path, deterministic=False)  # compares no batches
    query = "What color is the old tower?"
    reranker.warm([documents[0]], progress=False)  # the model is tried out at first
    prefixes = [len(reranker.split_prompt(query, document)[0]) for document in documents[1:]]
    suffix = len(reranker.split_prompt(query, documents[1])[1])
    pairs = [(query, document) for document in documents[1:]]

    built, _ = counted(reranker, pairs)
    warm, _ = counted(reranker, pairs)
    # Suffixes come in blocks of 32 rows
    blocks = -(-len(pairs) * suffix // 32) * 32 / (len(pairs) * suffix)
    expected = suffix_work(shape, prefixes, suffix, 4).linear_flops
    assert expected < warm < 1.1 * blocks * expected
    # Prefixes are filled up to 32 tokens as well
    filled_up = [reranker.mllm.padded_length(length) for length in prefixes]
    expected = prefix_work(shape, filled_up, 4).linear_flops
    assert built - warm == pytest.approx(expected, rel=0.05)


def test_attention_by_hand() -> None:
    shape = SHAPES["tiny"]  # two layers, four heads of eight
    work = suffix_work(shape, [10, 20], 3, 4)
    all_rows = (10 * 3 + 6) + (20 * 3 + 6)  # keys seen by three queries each
    last_rows = 13 + 23
    assert work.attention_flops == 2 * 2 * 32 * (all_rows + last_rows)
    # the prefixes' keys and values, and nine matrices' weights a layer
    layer = 4 * 32 * 32 + 3 * 32 * 64
    assert work.moved_bytes == 4 * (2 * layer + 2 * 2 * 32 * 30)


def test_the_slower_of_both_decides() -> None:
    work = Work(linear_flops=60, attention_flops=40, moved_bytes=30)
    assert work.seconds(Peaks(flops_per_second=50, bytes_per_second=30)) == 2
    assert work.seconds(Peaks(flops_per_second=1000, bytes_per_second=3)) == 10
    assert (work + work).seconds(Peaks(50, 30)) == 4


@pytest.mark.slow
def test_peaks_are_measured() -> None:
    peaks = measure_peaks(CPU, torch.float32, rounds=2)
    assert 0 < peaks.flops_per_second < math.inf
    assert 0 < peaks.bytes_per_second < math.inf
