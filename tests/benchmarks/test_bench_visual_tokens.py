from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from bench_prefix_cache import tiers_table
from bench_visual_tokens import measure
from common import RESULTS
from work_clock import work_clock


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    with work_clock():
        measured = measure("tiny-internvl", torch.device("cpu"), num_documents=2, rounds=2)
    return json.loads(json.dumps(measured))


@pytest.mark.slow
def test_a_known_picture_saves_the_vision_towers_work(result: dict[str, Any]) -> None:
    share = result["vision_share"]["median"]
    assert 0.2 < share < 1
    tiers = {row["tier"]: row for row in result["tiers"]}
    assert set(tiers) == {f"{name}, visual tokens" for name in ("device", "host", "disk")}
    for row in tiers.values():
        # of the work of linear layers nothing else is saved, and nothing is added
        assert row["hit"]["median"] == pytest.approx(1 / (1 - share), rel=0.02)
        assert row["miss"]["median"] == pytest.approx(1, rel=0.02)
        assert 0 <= row["break_even"] < 0.05


@pytest.mark.slow
def test_the_table_has_a_row_for_each_tier(result: dict[str, Any]) -> None:
    results = {
        "prefix_cache_cpu": json.loads((RESULTS / "prefix_cache_cpu.json").read_text()),
        "visual_tokens_cpu": {**result, "machine": {"device": "a machine"}},
    }
    rows = tiers_table(results).splitlines()
    (row,) = (line for line in rows if line.startswith("| disk, visual tokens"))
    assert f"{result['tiers'][2]['hit']['median']:.2f}x" in row
