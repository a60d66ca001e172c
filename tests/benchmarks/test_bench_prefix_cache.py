from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from bench_prefix_cache import (
    CANDIDATES,
    COMPRESSIONS,
    IMAGE_TOKENS,
    QUERIES,
    SUFFIX_TOKENS,
    measure,
    measure_bookkeeping,
    published_bytes,
)
from plots import PLOTS
from tables import TABLES
from work_clock import work_clock


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    with work_clock():
        return json.loads(json.dumps(measure("tiny", torch.device("cpu"), rounds=2)))


def test_scaling_has_every_point_and_a_slope(result: dict[str, Any]) -> None:
    counts = {what: [p["x"] for p in found["points"]] for what, found in result["scaling"].items()}
    assert counts["candidates"] == list(CANDIDATES)
    assert counts["image tokens"] == list(IMAGE_TOKENS)
    assert counts["queries"] == list(QUERIES)
    for found, asked in zip(counts["suffix tokens"], SUFFIX_TOKENS, strict=True):
        assert abs(found - asked) <= 3
    for found in result["scaling"].values():
        assert all(point["warm"]["median"] > 0 for point in found["points"])
    # one more candidate has to be read and computed; one that is known costs less
    slopes = result["scaling"]["candidates"]["ms_per_one_more"]
    assert slopes["cold"] > slopes["warm"] > 0
    assert set(result["scaling"]["image tokens"]["ms_per_one_more"]) == {
        *("cold", "warm", "attention")
    }


def test_every_tier_serves_what_it_has(result: dict[str, Any]) -> None:
    tiers = {row["tier"]: row for row in result["tiers"]}
    assert set(tiers) == {"device", "host, kv", "host, features", "disk, kv", "disk, features"}
    for row in tiers.values():
        assert 0 <= row["break_even"] < 1
        assert row["hit"]["median"] > row["miss"]["median"] > 0
    assert tiers["device"]["hit"]["median"] > 1


def test_compression_is_smaller_and_not_exact(result: dict[str, Any]) -> None:
    exact, *compressed = result["compression"]
    assert [row["compression"] for row in result["compression"]] == list(map(str, COMPRESSIONS))
    assert exact["max_score_difference"] == 0
    for row in compressed:
        assert row["bytes_per_document"] < exact["bytes_per_document"]
        assert 0 < row["mean_score_difference"] <= row["max_score_difference"] < 0.2


def test_bfloat16_templates_and_memory(result: dict[str, Any]) -> None:
    assert 0 < result["bfloat16"]["max_score_difference"] < 0.1
    templates = result["templates"]
    assert templates["instruction-first"]["suffix_tokens"] < templates["caption"]["suffix_tokens"]
    memory = result["memory"]
    assert memory["held_bytes"] >= memory["kv_bytes"]
    assert memory["overhead"] < 0.5, "a tiny prefix leaves much of its last page empty, not half"


@pytest.mark.parametrize(
    "name", ["prefix_cache_costs", "prefix_cache_tiers", "prefix_cache_compression"]
)
def test_tables_have_what_was_measured(name: str, result: dict[str, Any]) -> None:
    found = {"prefix_cache_cpu": {**result, "machine": {"device": "Some CPU"}}}
    table = TABLES[name](found.get)
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1, "every row has all columns"
    assert "Some CPU" in table
    if name == "prefix_cache_costs":
        assert rows[2].startswith("| candidate | 100 % |")
    if name == "prefix_cache_compression":
        assert rows[2].startswith("| CPU: exact | 100 % | 1.00x | 0.0e+00 |")


def test_plot_is_the_same_each_time(result: dict[str, Any]) -> None:
    draw = PLOTS["prefix-cache-cost"]
    drawn = draw({"prefix_cache_cpu": result}.get)
    assert drawn is not None
    assert draw({"prefix_cache_cpu": result}.get) == drawn
    for what in result["scaling"]:
        assert what in drawn
    assert "mathdefault" not in drawn, "a formula is shown as it is written"
    assert draw({}.get) is None


def test_bookkeeping_is_measured_and_tabled() -> None:
    points = measure_bookkeeping(2, known=(10, 30), steps=3)
    assert [point["prefixes"] for point in points] == [10, 30]
    result = {"rounds": 2, "by_prefixes": points, "machine": {"device": "Some CPU"}}
    table = TABLES["prefix_cache_bookkeeping"]({"prefix_cache_bookkeeping": result}.get)
    assert "| 10 | 1.00x | 1.00x |" in table
    assert "Some CPU" in table


def test_published_bytes_are_those_of_the_papers() -> None:
    by_name = {row["model"]: row for row in published_bytes()}
    llava = by_name["llava-1.5-13b"]
    assert llava["kv"] == 576 * 2 * 40 * 5120 * 2  # every head has keys: layers x hidden size
    assert llava["features"] == 576 * 5120 * 2
    assert by_name["internvl2-1b"]["kv"] == 256 * 2 * 24 * 2 * 64 * 2
    assert by_name["internvl2-1b"]["int8"] == 256 * 2 * 24 * 2 * (64 + 4)
    # DeepStack gives three more sets of visual tokens
    assert by_name["qwen3-vl-2b"]["features"] == 4 * 1296 * 2048 * 2
