"""The GPU's benchmark of reranking at a small size on the CPU: times, tables, goals."""

from __future__ import annotations

import json
from typing import Any

import gpu_rerank
import pytest
import torch
from gpu import goal
from plots import PLOTS
from roofline import Peaks
from work_clock import work_clock

CPU = torch.device("cpu")
PEAKS = Peaks(1e11, 1e10)
MACHINE = {"machine": {"device": "Some GPU"}}


@pytest.fixture(scope="module")
def model() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch, work_clock():
        patch.setattr(gpu_rerank, "NUM_DOCUMENTS", 3)
        patch.setattr(gpu_rerank, "QUERIES_TOGETHER", 4)
        measured = gpu_rerank.measure(
            *("tiny", CPU, PEAKS), tokens=[16], rounds=2, warm_calls=5, cold_calls=2, seconds=1e9
        )
    goals = gpu_rerank.model_goals(measured)
    return {**json.loads(json.dumps({**measured, "goals": goals})), **MACHINE}


@pytest.fixture(scope="module")
def tiers() -> dict[str, Any]:
    with work_clock():
        measured = gpu_rerank.tiers("tiny", CPU, num_documents=4, rounds=2)
    goals = gpu_rerank.tier_goals(measured)
    return {**json.loads(json.dumps({**measured, "goals": goals})), **MACHINE}


def test_every_model_is_measured_at_the_goals_sizes() -> None:
    for name in gpu_rerank.MODELS:
        tokens = gpu_rerank.image_tokens(gpu_rerank.SHAPES[name])
        assert {256, 576} <= set(tokens)
        assert (1296 in tokens) == name.startswith("qwen")


@pytest.mark.slow
def test_a_model_is_timed_against_every_other_method(model: dict[str, Any]) -> None:
    others = {"serial_generate", "padded_batch", "cross_encoder", "stock_cache_warm"}
    for case in model["cases"]:
        assert others < case["methods"].keys()
        assert case["max_score_difference"] <= 1e-5
        assert case["warm_ms"]["p50"] < case["cold_ms"]["p50"]
    (rate,) = model["throughput"]
    assert rate["pairs_per_second"]["max"] > 0
    (profile,) = model["profiles"]
    assert all(profile[state]["wall_ms"] > 0 for state in ("warm", "cold"))
    assert model["left_out"] == []


def test_what_there_was_no_time_for_is_named() -> None:
    result = gpu_rerank.measure(
        *("tiny", CPU, PEAKS), tokens=[16, 25], rounds=2, warm_calls=2, cold_calls=2, seconds=-1
    )
    assert (result["cases"], result["left_out"]) == ([], ["16 image tokens", "25 image tokens"])


@pytest.mark.slow
def test_each_share_of_known_documents_is_timed(tiers: dict[str, Any]) -> None:
    (of_model,) = tiers["models"]
    names = {row["tier"] for row in of_model["tiers"]}
    kinds = [f"{tier}, {keep}" for tier in ("host", "disk") for keep in ("auto", "kv", "features")]
    assert names == {"device", *kinds}
    for row in of_model["tiers"]:
        ms = [of_share["ms"]["median"] for of_share in row["by_share"].values()]
        assert list(map(float, row["by_share"])) == list(gpu_rerank.KNOWN_SHARES)
        assert ms[-1] < ms[0], "known documents should cost less"
    assert {goal["of"] for goal in tiers["goals"]} == {"tiny, host", "tiny, disk"}


def test_goals_of_a_model_are_the_promised_figures() -> None:
    def case(tokens: int, warm: float, cold: float) -> dict[str, Any]:
        speeds = {"fast_rerank_warm": 250.0, "fast_rerank_cold": 10.0}
        return {
            "model": {"image_tokens": tokens, "dtype": "bfloat16"},
            "max_score_difference": 0.01,
            "prompt_tokens": {"suffix": [31, 31]},
            "warm_ms": {"p50": warm, "p99": 2 * warm},
            "cold_ms": {"p50": cold},
            "least_ms": {"warm": 4.0},
            "methods": {name: {"speedup": {"median": s}} for name, s in speeds.items()},
        }

    result = {
        "model": "internvl2-2b",
        "cases": [case(256, 5.0, 90.0), case(576, 7.0, 210.0)],
        "throughput": [{"image_tokens": 256, "pairs_per_second": {"median": 4000.0}}],
    }
    reached = {(g["of"], g["what"]): g["reached"] for g in gpu_rerank.model_goals(result)}
    small, large = (f"internvl2-2b, {n} image and 31 suffix tokens" for n in (256, 576))
    assert reached[small, "warm p50, ms"] and not reached[large, "warm p50, ms"]
    assert (small, "cold p50, ms") not in reached and not reached[large, "cold p50, ms"]
    assert reached[small, "warm p50 over the roofline"]
    assert not reached[large, "warm p50 over the roofline"]
    assert not reached[small, "warm p99 over p50"]
    assert reached[small, "warm speed against `generate`"]
    assert not reached[small, "cold speed against `generate`"]
    assert reached["internvl2-2b, 256 image tokens", "warm pairs a second"]


@pytest.mark.slow
def test_tables_and_the_plot_have_what_was_measured(
    model: dict[str, Any], tiers: dict[str, Any]
) -> None:
    results = {"gpu_rerank_internvl2-1b": model, "gpu_rerank_tiers": tiers}
    table = gpu_rerank.speed_table(results)
    assert gpu_rerank.speed_table({"gpu_rerank_internvl2-1b_256": model}) == table
    assert table.count("| tiny | 16 |") == len(model["cases"])
    assert "Some GPU, bfloat16, 3 candidates; percentiles of 5 warm and 2 cold calls" in table
    goals = gpu_rerank.goals_table(results)
    assert "| tiny, 16 image and 31 suffix tokens | warm p99 over p50 | at most 1.5 |" in goals
    assert "| tiny | disk, auto |" in gpu_rerank.tiers_table(results)
    assert PLOTS["gpu-rerank"](results).startswith("<?xml")
    assert PLOTS["gpu-rerank"]({}) is None


def test_a_goal_is_a_bound_from_one_side() -> None:
    assert goal("a", "b", 2.0, at_most=2)["reached"]
    assert not goal("a", "b", 2.1, at_most=2)["reached"]
    assert not goal("a", "b", float("nan"), at_least=1)["reached"]
    assert not goal("a", "b", float("nan"), at_most=1)["reached"]
