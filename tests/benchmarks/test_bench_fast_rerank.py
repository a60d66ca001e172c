from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from bench_fast_rerank import BASELINE, SUFFIX_TOKENS, measure, measure_model
from roofline import Peaks
from shapes import SHAPES
from work_clock import work_clock

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["tiny", "tiny-internvl", "tiny-qwen3-vl"])
def result(request: pytest.FixtureRequest) -> dict[str, Any]:
    with work_clock():
        figures = measure([(request.param, None)], rounds=2, num_documents=4)
    return json.loads(json.dumps(figures))


def test_measures_every_method_and_their_agreement(result: dict[str, Any]) -> None:
    assert len(result["cases"]) == len(SUFFIX_TOKENS)
    for case in result["cases"]:
        methods = case["methods"]
        assert {"serial_generate", "padded_batch", "stock_cache_warm"} < methods.keys()
        assert ("cross_encoder" in methods) == (case["model"]["family"] == "llava")
        for figures in methods.values():
            assert figures["ms"]["min"] > 0
            assert figures["speedup"]["min"] <= figures["speedup"]["median"]
        assert methods[result["baseline"]]["speedup"]["median"] == 1
        assert 0 <= case["max_score_difference"] <= 1e-5
        assert 0 < case["least_ms"]["warm"] < case["least_ms"]["cold"]
        most = methods["fast_rerank_warm"]["ms"]["max"]
        assert most < methods["fast_rerank_cold"]["ms"]["min"]
        assert most < methods[BASELINE]["ms"]["min"]
        assert "warm_ms" not in case, "percentiles are asked for on a GPU"


def test_says_what_was_asked_of_which_model(result: dict[str, Any]) -> None:
    suffixes = []
    for case in result["cases"]:
        assert case["model"]["image_tokens"] == SHAPES[case["model"]["name"]].image_tokens
        (shortest, longest), (least, most) = (
            case["prompt_tokens"][part] for part in ("prefix", "suffix")
        )
        assert shortest < longest, "captions should make the batch ragged"
        assert least == most, "every question should cost as much"
        suffixes.append(most)
    # the instruction and the turn's end alone may be longer than the shorter of the two
    assert SUFFIX_TOKENS[0] <= suffixes[0] <= 40
    assert abs(suffixes[1] - SUFFIX_TOKENS[1]) <= 2


def test_pictures_have_as_many_tokens_as_asked_for() -> None:
    figures = measure([("tiny", 25)], rounds=2, num_documents=2)
    assert {case["model"]["image_tokens"] for case in figures["cases"]} == {25}


def test_percentiles_of_single_calls() -> None:
    with work_clock():
        cases = measure_model(
            *("tiny", None, CPU, torch.float32, Peaks(1e11, 1e10)),
            rounds=2,
            num_documents=2,
            warm_calls=5,
            cold_calls=3,
        )
    for case in cases:
        for way, calls in (("warm", 5), ("cold", 3)):
            found = case[f"{way}_ms"]
            assert 0 < found["p50"] <= found["p90"] <= found["p99"]
            assert found["calls"] == calls
        assert case["warm_ms"]["p50"] < case["cold_ms"]["p50"]
