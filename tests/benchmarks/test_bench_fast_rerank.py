from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from bench_fast_rerank import measure, peak_mib
from models import PATCH_SIZE, SIZES
from workload import QUESTIONS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return json.loads(json.dumps(measure("tiny", CPU, rounds=2, num_documents=4)))


def test_measures_every_method_and_their_agreement(result: dict[str, Any]) -> None:
    methods = result["methods"]
    assert list(methods) == ["serial_generate", "padded_batch", "cross_encoder", "fast_rerank"]
    for figures in methods.values():
        assert figures["ms"]["min"] > 0
        assert figures["speedup"]["min"] <= figures["speedup"]["median"]
    assert methods[result["baseline"]]["speedup"]["median"] == 1
    assert 0 <= result["max_score_difference"] <= 1e-5


def test_says_what_was_asked_of_which_model(result: dict[str, Any]) -> None:
    assert result["model"]["image_tokens"] == (SIZES["tiny"].image_size // PATCH_SIZE) ** 2
    (shortest, longest), (least, most) = (
        result["prompt_tokens"][part] for part in ("prefix", "suffix")
    )
    assert shortest < longest, "captions should make the batch ragged"
    assert 20 < least == most < 60  # the question and the instruction


def test_stages_are_told_apart(result: dict[str, Any]) -> None:
    stages = result["fast_rerank_stages_ms"]
    assert list(stages) == ["vision", "decoder", "other"]
    assert all(times["min"] > 0 for times in stages.values())


@pytest.mark.parametrize("rounds", [1, len(QUESTIONS)])
def test_every_round_needs_a_question_of_its_own(rounds: int) -> None:
    with pytest.raises(ValueError, match=f"rounds={rounds}"):
        measure("tiny", CPU, rounds=rounds, num_documents=3)


def test_number_of_documents_is_checked() -> None:
    with pytest.raises(ValueError, match="num_documents=0"):
        measure("tiny", CPU, rounds=2, num_documents=0)


def test_peak_memory_counts_what_is_freed_again() -> None:
    peak = peak_mib(lambda: torch.ones(64 * 2**18), CPU)  # 64 MiB of float32
    if peak is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert 60 < peak < 80
    assert peak_mib(lambda: None, CPU) < 4
