"""The GPU's benchmark of reranking at a small size on the CPU: checks, times, goals."""

from __future__ import annotations

import json
from typing import Any

import gpu_rerank
import pytest
import torch
from gpu import goal
from plots import PLOTS
from tables import GPU_MODELS, TABLES
from work_clock import work_clock

CPU = torch.device("cpu")
MACHINE = {"machine": {"device": "Some GPU"}}


@pytest.fixture(scope="module")
def model() -> dict[str, Any]:
    with work_clock():
        return {**json.loads(json.dumps(gpu_rerank.run("tiny", CPU, 1e9))), **MACHINE}


@pytest.fixture(scope="module")
def checks() -> dict[str, Any]:
    models = gpu_rerank.check(["tiny"], CPU, num_queries=60, seconds=0.01)
    return json.loads(json.dumps({**models, "goals": gpu_rerank.check_goals(models)}))


@pytest.fixture(scope="module")
def tiers() -> dict[str, Any]:
    with work_clock():
        return {**json.loads(json.dumps(gpu_rerank.run("tiers", CPU, 1e9))), **MACHINE}


def test_every_model_of_the_table_is_a_part() -> None:
    assert set(GPU_MODELS) == set(gpu_rerank.MODELS) < set(gpu_rerank.PARTS)
    for name in GPU_MODELS:
        tokens = gpu_rerank.image_tokens(gpu_rerank.SHAPES[name])
        assert {256, 576} <= set(tokens)
        assert (1296 in tokens) == name.startswith("qwen")


def test_a_model_is_timed_against_every_other_way(model: dict[str, Any]) -> None:
    others = {"serial_generate", "padded_batch", "cross_encoder", "stock_cache_warm"}
    for case in model["cases"]:
        assert others < case["methods"].keys()
        assert case["max_score_difference"] <= 1e-5
        assert case["warm_ms"]["p50"] < case["cold_ms"]["p50"]
    (rate,) = model["throughput"]
    one_query = 20 / (model["cases"][0]["warm_ms"]["p50"] / 1e3)
    assert rate["pairs_per_second"]["max"] > one_query / 2, "queries together should not be slow"
    (profile,) = model["profiles"]
    assert all(profile[way]["wall_ms"] > 0 for way in ("warm", "cold"))
    assert model["left_out"] == []


def test_what_there_was_no_time_for_is_named() -> None:
    found = gpu_rerank.measure(
        "tiny", CPU, tokens=[16, 25], rounds=2, warm_calls=2, cold_calls=2, seconds=-1
    )
    assert (found["cases"], found["left_out"]) == ([], ["16 image tokens", "25 image tokens"])


def test_scores_and_memory_are_checked(checks: dict[str, Any]) -> None:
    (found,) = checks["models"]
    assert found["scores_spread"] > 1e-3, "scores that are all alike would agree in any case"
    assert found["difference_float32"] <= 1e-5
    assert 0 < found["error_bfloat16"] <= 2 * found["plain_error_bfloat16"] + 1e-3
    assert found["same_bits_float32"] and found["same_bits_bfloat16"] and found["threads_agree"]
    assert "stopped after" in checks["tests"]["problem"]
    assert all(kept["reached"] for kept in checks["goals"] if "MiB" not in kept["what"])


def test_a_check_that_fails_is_a_goal_missed(checks: dict[str, Any]) -> None:
    (found,) = checks["models"]
    broken = {**found, "difference_float32": 2e-5, "threads_agree": False, "memory_growth_mib": 7.0}
    goals = gpu_rerank.check_goals({"models": [broken]})
    missed = {kept["what"] for kept in goals if not kept["reached"]}
    assert missed == {"difference in float32", "threads agree", "MiB grown over 60 queries"}


def test_each_share_of_known_documents_is_timed(tiers: dict[str, Any]) -> None:
    (found,) = tiers["models"]
    names = {row["tier"] for row in found["tiers"]}
    kinds = [f"{tier}, {keep}" for tier in ("host", "disk") for keep in ("auto", "kv", "features")]
    assert names == {"device", *kinds}
    for row in found["tiers"]:
        ms = [of_share["ms"]["median"] for of_share in row["by_share"].values()]
        assert list(map(float, row["by_share"])) == list(gpu_rerank.KNOWN_SHARES)
        assert ms[-1] < ms[0], "known documents should cost less"
    assert {kept["of"] for kept in tiers["goals"]} == {"tiny, host", "tiny, disk"}


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
    found = {(kept["of"], kept["what"]): kept["reached"] for kept in gpu_rerank.model_goals(result)}
    small, large = (f"internvl2-2b, {n} image and 31 suffix tokens" for n in (256, 576))
    assert found[small, "warm p50, ms"] and not found[large, "warm p50, ms"]
    assert (small, "cold p50, ms") not in found and not found[large, "cold p50, ms"]
    assert found[small, "warm p50 over the roofline"]
    assert not found[large, "warm p50 over the roofline"]
    assert not found[small, "warm p99 over p50"]
    assert found[small, "warm speed against `generate`"]
    assert not found[small, "cold speed against `generate`"]
    assert found["internvl2-2b, 256 image tokens", "warm pairs a second"]


def test_tables_and_the_plot_have_what_was_measured(
    model: dict[str, Any], checks: dict[str, Any], tiers: dict[str, Any]
) -> None:
    found = {
        "gpu_rerank_internvl2-1b": model,
        "gpu_rerank_checks": checks,
        "gpu_rerank_tiers": tiers,
    }
    table = TABLES["gpu_rerank"](found.get)
    at_one_size = TABLES["gpu_rerank"]({"gpu_rerank_internvl2-1b_256": model}.get)
    assert at_one_size == TABLES["gpu_rerank"]({"gpu_rerank_internvl2-1b": model}.get)
    assert table.count("| tiny | 16 |") == len(model["cases"])
    assert "Some GPU, bfloat16, 20 candidates; percentiles of 5 warm and 2 cold calls" in table
    goals = TABLES["gpu_rerank_goals"](found.get)
    assert "| tiny | difference in float32 | at most 1e-05 |" in goals
    assert "| tiny, 16 image and 31 suffix tokens | warm p99 over p50 | at most 1.5 |" in goals
    rows = TABLES["gpu_rerank_tiers"](found.get)
    assert "| tiny | disk, auto |" in rows
    assert PLOTS["gpu-rerank"](found.get).startswith("<?xml")
    assert PLOTS["gpu-rerank"](lambda _: None) is None


def test_a_goal_is_a_bound_from_one_side() -> None:
    assert goal("a", "b", 2.0, at_most=2)["reached"]
    assert not goal("a", "b", 2.1, at_most=2)["reached"]
    assert not goal("a", "b", float("nan"), at_least=1)["reached"]
    assert not goal("a", "b", float("nan"), at_most=1)["reached"]
