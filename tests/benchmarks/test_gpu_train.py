"""The GPU's benchmark of training at a small size on the CPU: steps and goals."""

from __future__ import annotations

import json
from typing import Any

import gpu_train
import pytest
import torch
from models import build_model
from shapes import SHAPES

from ragvl.mllm import MLLM
from ragvl.profiling.costs import OVERHEAD_ARMS

CPU = torch.device("cpu")
MACHINE = {"machine": {"device": "Some GPU"}}


@pytest.fixture(scope="module")
def steps() -> dict[str, Any]:
    measured = gpu_train.measure(
        *("tiny", CPU), batch_size=2, num_tokens=96, rounds=2, most=2, seconds=1e9
    )
    goals = gpu_train.step_goals(measured)
    return {**json.loads(json.dumps({**measured, "goals": goals})), **MACHINE}


def test_batches_have_the_requested_tokens_and_labels() -> None:
    mllm = MLLM(*build_model(SHAPES["tiny"]))
    for labelled in (0.05, 1.0):
        batches = gpu_train._batches(mllm, OVERHEAD_ARMS, 3, 120, labelled)
        for arm, batch in batches.items():
            rows, length = batch["input_ids"].shape
            assert rows == 3
            counted = (batch["labels"] != -100).sum(1).tolist()
            assert counted == [round(labelled * length)] * 3
            image = mllm.model.config.image_token_id
            pictures = 2 if OVERHEAD_ARMS[arm].data_level else 1
            assert (batch["input_ids"] == image).sum().item() == 3 * pictures * 16
            if pictures == 1:
                assert length == 120
            else:  # the second picture and its caption
                assert 120 + 16 < length < 120 + 70


@pytest.mark.slow
def test_every_arm_is_timed(steps: dict[str, Any]) -> None:
    assert [case["labelled"] for case in steps["cases"]] == ["5 %", "all"]
    for case in steps["cases"]:
        assert list(case["arms"]) == list(OVERHEAD_ARMS)
        assert case["arms"]["plain"]["speedup"]["median"] == 1
        assert case["arms"]["data"]["tokens"] > case["arms"]["plain"]["tokens"] == 2 * 96
    assert steps["largest_batch"] == {"token": 2, "both": 2, "release": 2}


@pytest.mark.parametrize("limit", [1, 2, 5, 11, 64])
def test_the_largest_batch_is_found(limit: int) -> None:
    size = gpu_train.largest_fitting(lambda size: size <= limit, most=64)
    assert limit - max(1, limit // 16) < size <= limit


@pytest.mark.slow
def test_tables_have_a_row_for_each_arm(steps: dict[str, Any]) -> None:
    results = {"gpu_train_internvl2-1b": steps}
    table = gpu_train.cost_table(results)
    for arm in OVERHEAD_ARMS:
        assert f"| tiny | 5 % | {arm} |" in table
    goals = gpu_train.goals_table(results)
    assert "| tiny, all labelled | token level on tokens, time of plain |" in goals


def test_step_goals() -> None:
    def arm(times: float, mib: float) -> dict[str, Any]:
        return {"speedup": {"median": 1 / times}, "peak_mib": mib}

    arms = {
        "plain": arm(1, 100),
        "token": arm(1.4, 120),
        "both": arm(2, 200),
        "release": arm(3, 500),
    }
    cases = [{"labelled": "5 %", "arms": arms}]
    goals = gpu_train.step_goals({"model": "internvl2-1b", "cases": cases})
    assert [(g["what"].split(",")[-1].strip(), g["reached"]) for g in goals] == [
        ("time of plain", True),
        ("memory of plain", False),
        ("memory of the release over ours", False),
    ]
    assert goals[2]["value"] == 2.5
    assert len(gpu_train.step_goals({"model": "llava-1.5-7b", "cases": cases})) == 2
