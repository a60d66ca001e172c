"""The benchmark of layers at a small size: what is measured, and its table."""

from __future__ import annotations

import bench_layers
import gpu_rerank
import pytest
import torch


@pytest.mark.slow
def test_each_kind_is_timed_and_profiled() -> None:
    measured = bench_layers.measure_layers(
        *("tiny", torch.device("cpu")), num_documents=2, rounds=2, kinds=("eager", "fused")
    )
    for kind in measured["kinds"].values():
        assert kind["score_difference"] <= 1e-5
        assert abs(sum(kind["shares"].values()) - 1) < 1e-9
        assert min(kind["shares"].values()) > 0
    result = {"rounds": 2, "models": [measured], "machine": {"device": "Some CPU"}}
    assert all(goal["reached"] for goal in gpu_rerank.layer_goals(result))
    table = bench_layers.layers_table({"layers_cpu": result})
    assert "| tiny, float32 | fused |" in table
    assert table.endswith("shares of a warm call's operators.")
