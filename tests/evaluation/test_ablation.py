"""A grid from one file: expanded, trained, resumed, compared."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import yaml
from scipy.stats import ttest_rel
from typer.testing import CliRunner

from ragvl.cli import app
from ragvl.data.synthetic import Places, write_world
from ragvl.evaluation.ablation import AblationSettings, _summary, ablate, table

ASSETS = Path(__file__).parents[2] / "ragvl" / "assets"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    places = {"train": 8, "test": 4}
    return write_world(tmp_path_factory.mktemp("world"), Places(), counts=places, seed=3)  # type: ignore[arg-type]


def grid(world: Path, **changes: object) -> dict[str, object]:
    return {
        "stage": "generator",
        "settings": {
            "config": "tiny-generator",
            "model": str(ASSETS / "tiny-base"),
            "data": str(world),
            "max_steps": 1,
            "per_device_train_batch_size": 2,
            "eval_strategy": "no",
            "save_strategy": "no",
            "disable_tqdm": True,
            "noise.data_level": 0,
            "noise.token_level": "none",
        },
        "arms": {
            "plain": {},
            "tokens": {"noise.token_level": "tokens", "noise.kind": ["gaussian", "drop"]},
        },
        "seeds": [0, 1],
        "test": {"data": str(world), "split": "test", "num_questions": 3, "max_new_tokens": 4},
        **changes,
    }


def test_a_list_makes_an_arm_of_each_value(world: Path) -> None:
    arms = {"a": {"share": [0.1, 1.0], "noise.window": [1, 3], "noise.timestep": 9}, "b": {}}
    settings = AblationSettings.model_validate(grid(world, arms=arms, seeds=[5, 6]))
    runs = list(settings.runs())
    assert [(run.arm, run.seed) for run in runs[:6]] == [
        ("untrained", 0),
        ("a, share 0.1, window 1", 5),
        ("a, share 0.1, window 3", 5),
        ("a, share 1.0, window 1", 5),
        ("a, share 1.0, window 3", 5),
        ("b", 5),
    ]
    assert runs[1].changes == {"share": 0.1, "noise.window": 1, "noise.timestep": 9}
    assert len(runs) == 1 + 2 * 5


def test_a_generators_grid_is_trained_once_and_gathered(world: Path, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(grid(world)))
    command = ["ablate", str(path), "--out", str(tmp_path / "out")]
    outcome = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert outcome.exit_code == 0, outcome.output
    result = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert list(result["arms"]) == [
        "untrained",
        "plain",
        "tokens, kind gaussian",
        "tokens, kind drop",
    ]
    for arm, found in result["arms"].items():
        assert set(found["measures"]) == {"gold", "irrelevant", "noised"}
        for measure in found["measures"].values():
            assert len(measure["values"]) == (1 if arm == "untrained" else 2)
            assert measure["mean"] == pytest.approx(statistics.fmean(measure["values"]))
    text = (tmp_path / "out" / "ablation.md").read_text()
    assert text.count("\n") == 6
    assert "| plain | " in text
    assert (tmp_path / "out" / "ablation.svg").read_text().startswith("<?xml")
    runs = sorted((tmp_path / "out" / "runs").glob("run-*.json"))
    assert len(runs) == 7
    assert not list((tmp_path / "out" / "runs").glob("model-*"))  # weights are not kept
    # a run that is there is not done again, one that is not is
    changed = json.loads(runs[0].read_text())
    changed["measures"]["gold"] = 0.123
    runs[0].write_text(json.dumps(changed))
    runs[1].unlink()
    times = {run: run.stat().st_mtime_ns for run in runs if run != runs[1]}
    again = ablate(AblationSettings.read(path), tmp_path / "out" / "runs")
    assert {run: run.stat().st_mtime_ns for run in times} == times
    assert runs[1].exists()
    values = [v for found in again["arms"].values() for v in found["measures"]["gold"]["values"]]
    assert 0.123 in values


def test_a_rerankers_grid_over_shares_of_the_data(world: Path, tmp_path: Path) -> None:
    ranking = tmp_path / "ranking.jsonl"
    encoder = str(ASSETS / "tiny-retriever")
    outcome = CliRunner().invoke(
        app, ["data", "ranking", str(world), "--encoder", encoder, "--out", str(ranking)]
    )
    assert outcome.exit_code == 0, outcome.output
    settings = grid(world, stage="reranker", arms={"all": {}, "some": {"share": 0.25}}, seeds=[1])
    options = settings["settings"]
    assert isinstance(options, dict) and isinstance(settings["test"], dict)
    options |= {"config": "tiny-reranker", "ranking": str(ranking)}
    for name in ("noise.data_level", "noise.token_level"):
        del options[name]
    with pytest.raises(ValueError, match=r"test\.encoder is missing"):
        ablate(AblationSettings.model_validate(settings), tmp_path / "runs")
    settings["test"] |= {"encoder": encoder, "num_candidates": 4}
    result = ablate(AblationSettings.model_validate(settings), tmp_path / "runs")
    assert set(result["arms"]) == {"untrained", "all", "some"}
    for found in result["arms"].values():
        assert set(found["measures"]) == {"recall@1", "f1"}
        assert all(0 <= measure["mean"] <= 1 for measure in found["measures"].values())
    assert table(result)[0][-1] == "against all: recall@1"


def test_intervals_are_students() -> None:
    gains = [0.01, 0.03, 0.02, 0.05]
    summary = _summary(gains)
    interval = ttest_rel(gains, [0.0] * 4).confidence_interval(0.95)
    assert (summary["low"], summary["high"]) == pytest.approx(tuple(interval))
    assert _summary([0.5])["low"] is None


def test_files_that_cannot_be_used_say_why(world: Path, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    for wrong, words in (
        (grid(world, seeds=[]), "seeds"),
        (grid(world, arm={}), "arm: Extra inputs"),
        (grid(world, arms={}), "arms"),
        ([1], "dictionary"),
    ):
        path.write_text(yaml.safe_dump(wrong))
        with pytest.raises(ValueError, match=words):
            AblationSettings.read(path)
    path.write_text("a: [")
    with pytest.raises(ValueError, match="not YAML"):
        AblationSettings.read(path)
    outcome = CliRunner().invoke(app, ["ablate", str(tmp_path / "no.yaml"), "--out", str(tmp_path)])
    assert outcome.exit_code == 1
    assert "no.yaml" in outcome.output
