"""What reranking and noise cost, measured on real queries and steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner
from work_clock import work_clock

from ragvl.cli import app
from ragvl.data.synthetic import Places, write_world
from ragvl.data.webqa import WebQA
from ragvl.mllm import MLLM
from ragvl.profiling.costs import OVERHEAD_ARMS, reranking_overhead, training_overhead
from ragvl.training.adapters import LoraSettings


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), Places(), counts={"train": 20}, seed=0)


# The benchmark of training steps is tested with the other two
@pytest.mark.slow
@pytest.mark.parametrize(("rank", "checkpointing"), [(0, True), (2, False)])
def test_every_arm_takes_steps(
    rank: int, checkpointing: bool, tiny_model: Callable[[str], Path], world: Path
) -> None:
    mllm = MLLM.from_pretrained(tiny_model("llava"), device="cpu")
    before = mllm.fingerprint
    costs = training_overhead(
        mllm,
        WebQA(world, split="train"),
        batch_size=2,
        lora=LoraSettings(rank=rank),
        gradient_checkpointing=checkpointing,
        rounds=2,
    )
    assert list(costs) == list(OVERHEAD_ARMS)
    assert costs["plain"]["speedup"]["median"] == 1
    assert costs["both"]["tokens"] > 1.4 * costs["plain"]["tokens"], "a picture more each"
    assert costs["token"]["tokens"] == costs["plain"]["tokens"]
    assert all(cost["ms"]["min"] > 0 for cost in costs.values())
    assert mllm.fingerprint != before, "it trained"
    assert "forward" not in vars(mllm.model)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llava", "qwen3_vl"])
def test_every_method_of_reranking_gives_the_same_scores(
    architecture: str, tiny_mllm: Callable[[str], MLLM], world: Path
) -> None:
    source = WebQA(world, split="train")
    with work_clock():
        costs = reranking_overhead(tiny_mllm(architecture), source, num_candidates=6, rounds=2)
    assert list(costs) == ["serial", "batched", "cold", "warm"]
    assert all(cost["difference"] <= 1e-5 for cost in costs.values())
    assert costs["serial"]["speedup"]["median"] == 1
    assert costs["warm"]["ms"]["median"] < costs["cold"]["ms"]["median"]
    with pytest.raises(ValueError, match="rounds=1"):
        reranking_overhead(tiny_mllm(architecture), source, rounds=1)


def test_of_a_model_without_reusable_prefixes_the_plain_methods_are_measured(
    tiny_mllm: Callable[[str], MLLM], world: Path
) -> None:
    source = WebQA(world, split="train")
    costs = reranking_overhead(tiny_mllm("paligemma"), source, num_candidates=3, rounds=2)
    assert list(costs) == ["serial", "batched"]


@pytest.mark.slow
def test_the_command_prints_every_arm(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "overhead.json"
    command = ["overhead", str(tiny_model("llava")), "--batch-size", "2", "--rounds", "2"]
    outcome = CliRunner().invoke(app, [*command, "--device", "cpu", "--json", str(path)])
    assert outcome.exit_code == 0, outcome.output
    for name in (*OVERHEAD_ARMS, "serial", "warm"):
        assert f"\n{name}\t" in outcome.output
    record = json.loads(path.read_text())
    assert record["train"].keys() == OVERHEAD_ARMS.keys()
    assert list(record["rerank"]) == ["serial", "batched", "cold", "warm"]
    printed = CliRunner().invoke(app, [*command, "--json", "--only", "train", "--device", "cpu"])
    only = json.loads(printed.stdout)
    assert only["train"].keys() == record["train"].keys()
    assert "rerank" not in only
    assert record["model"] == command[1]
    assert (record["rounds"], record["num_candidates"], record["batch_size"]) == (2, 20, 2)
    assert {"data", "machine", "versions"} < record.keys()


def test_errors_are_one_line() -> None:
    outcome = CliRunner().invoke(app, ["overhead", "/no/such/model"])
    assert outcome.exit_code == 1
    assert "ragvl overhead: " in outcome.output
    assert "Traceback" not in outcome.output
