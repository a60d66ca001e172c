from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from bench_fast_rerank import BASELINE, METHODS, SUFFIX_TOKENS, measure_model
from roofline import Peaks
from work_clock import work_clock

IMAGE_TOKENS, WARM_CALLS, COLD_CALLS = 25, 5, 3


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    with work_clock():
        measured = measure_model(
            *("tiny", IMAGE_TOKENS, torch.device("cpu"), torch.float32, Peaks(1e11, 1e10)),
            rounds=2,
            num_documents=3,
            warm_calls=WARM_CALLS,
            cold_calls=COLD_CALLS,
        )
    return json.loads(json.dumps(measured))


@pytest.mark.slow
def test_measures_every_method_and_their_agreement(cases: list[dict[str, Any]]) -> None:
    assert len(cases) == len(SUFFIX_TOKENS)
    for case in cases:
        methods = case["methods"]
        assert methods.keys() == METHODS.keys()
        for figures in methods.values():
            assert figures["ms"]["min"] > 0
            assert figures["speedup"]["min"] <= figures["speedup"]["median"]
        assert methods[BASELINE]["speedup"]["median"] == 1
        assert 0 <= case["max_score_difference"] <= 1e-5
        assert 0 < case["least_ms"]["warm"] < case["least_ms"]["cold"]
        most = methods["fast_rerank_warm"]["ms"]["max"]
        assert most < methods["fast_rerank_cold"]["ms"]["min"]
        assert most < methods[BASELINE]["ms"]["min"]


@pytest.mark.slow
def test_says_how_long_prompts_were(cases: list[dict[str, Any]]) -> None:
    suffixes = []
    for case in cases:
        assert case["model"]["image_tokens"] == IMAGE_TOKENS
        (shortest, longest), (least, most) = (
            case["prompt_tokens"][part] for part in ("prefix", "suffix")
        )
        assert shortest < longest, "captions should make the batch ragged"
        assert least == most, "every question should cost as much"
        suffixes.append(most)
    # the instruction and the turn's end alone may be longer than the shorter of the two
    assert SUFFIX_TOKENS[0] <= suffixes[0] <= 40
    assert abs(suffixes[1] - SUFFIX_TOKENS[1]) <= 2


@pytest.mark.slow
def test_percentiles_of_single_calls(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        for state, calls in (("warm", WARM_CALLS), ("cold", COLD_CALLS)):
            times = case[f"{state}_ms"]
            assert 0 < times["p50"] <= times["p90"] <= times["p99"]
            assert times["calls"] == calls
        assert case["warm_ms"]["p50"] < case["cold_ms"]["p50"]
