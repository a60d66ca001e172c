"""A grid's file: arms from lists, and everything that is wrong with it, before a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ragvl.ablation.grid import AblationSettings
from ragvl.cli import app
from ragvl.training.noise import ARMS


def grid(**changes: Any) -> dict[str, Any]:
    """A grid of models and data that are not there: nothing here looks at them."""
    return {
        "stage": "generator",
        "settings": {"model": "no-model", "data": "no-data", "max_steps": 1},
        "arms": {"plain": {}, "tokens": {"noise.token_level": "tokens"}},
        "seeds": [0, 1],
        "test": {"data": "no-data"},
        **changes,
    }


def read(tmp_path: Path, content: Any) -> AblationSettings:
    path = tmp_path / "grid.yaml"
    path.write_text(
        content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    )
    return AblationSettings.read(path)


def refused(tmp_path: Path, content: Any, *words: str) -> str:
    """The message, which is one line, names the file and has the words in it."""
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "grid.yaml"))) as error:
        read(tmp_path, content)
    message = str(error.value)
    for word in words:
        assert word in message
    assert "\n" not in message and ": :" not in message
    return message


def test_a_list_makes_an_arm_of_each_value() -> None:
    arms = {"a": {"share": [0.1, 1.0], "noise.window": [1, 3], "noise.timestep": 9}, "b": {}}
    settings = AblationSettings.model_validate(grid(arms=arms, seeds=[5, 6]))
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


def test_the_papers_method_and_the_releases_are_arms(tmp_path: Path) -> None:
    both = {"noise.data_level": 2, "noise.token_level": "tokens"}
    arms = {
        "plain": {},
        "paper": both,
        "spelled out": {
            **both, "noise.kind": "diffusion", "noise.timestep": 500, "noise.clamp_low": 1,
            "noise.clamp_high": 5, "noise.window": 3,
        },
        "release": {**both, "noise.as_released": True},
    }  # fmt: skip
    planned = read(tmp_path, grid(arms=arms, seeds=[3], untrained=False)).planned()
    noise = {run.arm: plan.noise for run, plan in planned}
    assert noise == {
        "plain": ARMS["plain"],
        "paper": ARMS["both"],
        "spelled out": ARMS["both"],
        "release": ARMS["release"],
    }
    assert (noise["paper"].clamp_low, noise["paper"].clamp_high) == (1, 5)
    assert noise["paper"].timestep == 500
    assert {plan.arguments.seed for _, plan in planned} == {3}


@pytest.mark.slow
def test_the_grids_of_the_benchmarks_can_be_read() -> None:
    shipped = list((Path(__file__).parents[2] / "benchmarks" / "ablations").glob("*.yaml"))
    assert len(shipped) >= 2
    for path in shipped:
        assert AblationSettings.read(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"noise.foo": 1}, "noise.foo"),
        ({"noise.kind": "drop", "noise.token_level": "pixels"}, "drops visual tokens"),
        ({"noise.token_level": "images"}, "noise.token_level"),
        ({"noise.window": 2}, "window=2"),
        ({"share": 0}, "share=0"),
        ({"max_steps": "many"}, "max_steps"),
        ({"learning_speed": 1}, "learning_speed"),
        ({"config": "no-recipe"}, "no-recipe"),
        ({"template": "plain"}, "template"),  # a reranker's
    ],
    ids=str,
)
def test_an_arm_that_cannot_be_run_is_named(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    message = refused(tmp_path, grid(arms={"plain": {}, "bad": changes}), words)
    assert "grid.yaml: arm 'bad', seed 0, arm 'bad', seed 1: " in message
    assert "arm 'plain'" not in message


def test_every_arm_is_checked_in_one_message(tmp_path: Path) -> None:
    arms = {
        "a": {"noise.foo": 1},
        "fine": {},
        "b": {"noise.token_level": ["tokens", "pixels"], "noise.kind": ["diffusion", "drop"]},
    }
    message = refused(tmp_path, grid(arms=arms, seeds=[4]), "arm 'a', seed 4: ", "noise.foo")
    assert "arm 'b, token_level pixels, kind drop', seed 4: kind='drop'" in message
    assert message.count("arm '") == 2, "the other combinations can be run"


def test_what_is_wrong_with_all_runs_is_told_once(tmp_path: Path) -> None:
    settings = {**grid()["settings"], "noise.foo": 1}
    message = refused(tmp_path, grid(settings=settings), "untrained, arm 'plain', seed 0")
    assert message.count("noise.foo") == 1
    assert "and 2 more: " in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": []}, ("seeds: ",)),
        ({"seeds": [0, 1, 0]}, ("seeds: 0 is there twice",)),
        ({"seeds": [-1]}, ("seeds.0: ",)),
        ({"seeds": [0.5]}, ("seeds.0: ",)),
        ({"arm": {}}, ("arm: Extra inputs",)),
        ({"arms": {}}, ("arms: ",)),
        ({"arms": {"untrained": {}}}, ("arms: 'untrained' is the row",)),
        ({"arms": {"a": {"share": []}}}, ("arms: a.share is an empty list",)),
        ({"arms": {"a": {"share": [0.5, 0.1, 0.5]}}}, ("arms: a.share has 0.5 twice",)),
        (
            {"arms": {"a": {"share": [0.5, 1]}, "a, share 0.5": {}}},
            ("two arms are both called 'a, share 0.5'",),
        ),
        ({"arms": {"a|b": {}}}, ("'a|b' cannot stand in a table",)),
        ({"arms": {"a\nb": {}}}, ("cannot stand in a table",)),
        ({"arms": {" ": {}}}, ("cannot stand in a table",)),
        ({"arms": {"a": {"template": ["x|y"]}}}, ("cannot stand in a table",)),
        ({"settings": {"seed": 1}}, ("settings: seed", "seeds: is where seeds go")),
        ({"settings": {"output_dir": "o"}}, ("settings: output_dir", "--out")),
        ({"settings": {"resume_from_checkpoint": "last"}}, ("goes on by itself",)),
        ({"arms": {"a": {"seed": [1, 2]}}}, ("arms: seed", "seeds: is where seeds go")),
        ({"stage": "retriever"}, ("stage: ",)),
        ({"stage": "reranker"}, ("test.encoder is missing",)),
    ],
    ids=str,
)
def test_a_grid_that_would_mislead_is_refused(
    changes: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    refused(tmp_path, grid(**changes), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("it is empty", "stage, settings, arms, seeds and test")),
        ("# nothing\n", ("it is empty",)),
        ("- 1\n", ("it is a list",)),
        ("a: [", ("is not YAML",)),
        ("stage: generator\nstage: reranker\n", ("'stage' is there twice", "line 2")),
        ("arms:\n  a: {}\n  b: {}\n  a: {share: 1}\n", ("'a' is there twice", "line 4")),
        ("arms: {a: {share: 1, share: 0.5}}", ("'share' is there twice",)),
    ],
)
def test_a_file_that_is_no_grid(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    refused(tmp_path, text, *words)


def test_wrong_encodings_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_bytes(b"arms: {\xff: {}}")
    with pytest.raises(ValueError, match=r"grid\.yaml is not UTF-8"):
        AblationSettings.read(path)
    outcome = CliRunner().invoke(app, ["ablate", str(tmp_path / "no.yaml"), "--out", str(tmp_path)])
    assert outcome.exit_code == 1
    assert "no.yaml" in outcome.output


def test_anchors_are_not_keys_there_twice(tmp_path: Path) -> None:
    arms = "arms:\n  plain: &a {share: 0.5}\n  other: {<<: *a, share: 0.1}"
    settings = read(tmp_path, yaml.safe_dump(grid(arms={})).replace("arms: {}", arms))
    assert settings.arms == {"plain": {"share": 0.5}, "other": {"share": 0.1}}
