from __future__ import annotations

import json
from typing import Any

import bench_prefix_cache
import pytest
import torch
from bench_prefix_bookkeeping import measure as measure_bookkeeping
from bench_prefix_cache import measure, published_bytes
from plots import PLOTS
from work_clock import work_clock

from ragvl.compression import COMPRESSIONS

# Two points each are a slope
CANDIDATES, IMAGE_TOKENS, SUFFIX_TOKENS, QUERIES = (1, 4), (16, 36), (30, 55), (1, 2)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch, work_clock():
        for name in ("CANDIDATES", "IMAGE_TOKENS", "SUFFIX_TOKENS", "QUERIES"):
            patch.setattr(bench_prefix_cache, name, globals()[name])
        patch.setattr(bench_prefix_cache, "NUM_DOCUMENTS", CANDIDATES[-1])
        patch.setattr(bench_prefix_cache, "NUM_QUESTIONS", 8)
        measured = measure("tiny", torch.device("cpu"), rounds=2)
    return json.loads(json.dumps(measured))


@pytest.mark.slow
def test_scaling_has_every_point_and_a_slope(result: dict[str, Any]) -> None:
    counts = {what: [p["x"] for p in line["points"]] for what, line in result["scaling"].items()}
    assert counts["candidates"] == list(CANDIDATES)
    assert counts["image tokens"] == list(IMAGE_TOKENS)
    assert counts["queries"] == list(QUERIES)
    for actual, wanted in zip(counts["suffix tokens"], SUFFIX_TOKENS, strict=True):
        assert abs(actual - wanted) <= 3
    for line in result["scaling"].values():
        assert all(point["warm"]["median"] > 0 for point in line["points"])
    # one more candidate has to be read and computed; one that is known costs less
    slopes = result["scaling"]["candidates"]["ms_per_one_more"]
    assert slopes["cold"] > slopes["warm"] > 0
    assert set(result["scaling"]["image tokens"]["ms_per_one_more"]) == {
        *("cold", "warm", "attention")
    }


@pytest.mark.slow
def test_every_tier_serves_what_it_has(result: dict[str, Any]) -> None:
    tiers = {row["tier"]: row for row in result["tiers"]}
    assert set(tiers) == {"device", "host, kv", "host, features", "disk, kv", "disk, features"}
    for row in tiers.values():
        assert 0 <= row["break_even"] < 1
        assert row["hit"]["median"] > row["miss"]["median"] > 0
    assert tiers["device"]["hit"]["median"] > 1


@pytest.mark.slow
def test_compression_is_smaller_and_not_exact(result: dict[str, Any]) -> None:
    exact, *compressed = result["compression"]
    names = [row["compression"] for row in result["compression"]]
    assert names == ["None", *COMPRESSIONS]
    assert exact["max_score_difference"] == 0
    for row in compressed:
        assert row["bytes_per_document"] < exact["bytes_per_document"]
        assert 0 < row["mean_score_difference"] <= row["max_score_difference"] < 0.3


@pytest.mark.slow
def test_bfloat16_templates_and_memory(result: dict[str, Any]) -> None:
    assert 0 < result["bfloat16"]["max_score_difference"] < 0.1
    templates = result["templates"]
    assert templates["instruction-first"]["suffix_tokens"] < templates["caption"]["suffix_tokens"]
    memory = result["memory"]
    assert memory["held_bytes"] >= memory["kv_bytes"]
    assert memory["overhead"] < 0.5, "a tiny prefix leaves much of its last page empty, not half"


@pytest.mark.slow
def test_plot_is_the_same_each_time(result: dict[str, Any]) -> None:
    draw = PLOTS["prefix-cache-cost"]
    drawn = draw({"prefix_cache_cpu": result})
    assert draw({"prefix_cache_cpu": result}) == drawn
    for what in result["scaling"]:
        assert what in drawn
    assert "mathdefault" not in drawn, "a formula is shown as it is written"


def test_bookkeeping_at_each_number_of_prefixes() -> None:
    points = measure_bookkeeping(2, known=(10, 30), steps=3)
    assert [point["prefixes"] for point in points] == [10, 30]
    assert all(point[step]["min"] > 0 for point in points for step in ("known", "new"))


def test_published_bytes_are_those_of_the_papers() -> None:
    by_name = {row["model"]: row for row in published_bytes()}
    llava = by_name["llava-1.5-13b"]
    assert llava["kv"] == 576 * 2 * 40 * 5120 * 2  # every head has keys: layers x hidden size
    assert llava["features"] == 576 * 5120 * 2
    assert by_name["internvl2-1b"]["kv"] == 256 * 2 * 24 * 2 * 64 * 2
    assert by_name["internvl2-1b"]["int8"] == 256 * 2 * 24 * 2 * (64 + 4)
    # Of 32 tokens: half a byte a number; a scale and a minimum of two bytes each for every channel
    # of keys and every token of values
    page = 2 * 32 * 64 // 2 + 4 * (64 + 32)
    assert by_name["internvl2-1b"]["int4"] == 256 // 32 * 24 * 2 * page
    # DeepStack gives three more sets of visual tokens
    assert by_name["qwen3-vl-2b"]["features"] == 4 * 1296 * 2048 * 2
