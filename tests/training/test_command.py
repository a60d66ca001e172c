"""Flags, YAML files and recipes say the same things, and a wrong one is named."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from data_files import write_picture
from tiny_encoders import save_checkpoint
from transformers.utils.logging import enable_progress_bar
from typer.testing import CliRunner

from ragvl.cli import app
from ragvl.data.questions import question_name
from ragvl.data.webqa import WebQA
from ragvl.reranker import Reranker, preset_of_checkpoint
from ragvl.training import command
from ragvl.training.command import RunSettings, _drawn
from ragvl.training.noise import ARMS
from ragvl.training.ranking import RankingSample, read_ranking, write_ranking
from ragvl.training.run_record import learned_questions

BASE = ["--use_cpu", "true", "--disable_tqdm", "true", "--report_to", "none", "--max_steps", "2"]


def parsed(stage: command.Stage, flags: list[str]):
    needed = ["--model", "m", "--data", "d", "--output_dir", "o"]
    needed += ["--ranking", "r"] if stage == "reranker" else []
    return command._parser(stage).parse_args(command._with_shipped_files([*flags, *needed]))


# --- settings -----------------------------------------------------------------------------------


def test_of_a_file_and_flags_the_later_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(
        "learning_rate: 1e-4\nnoise:\n  token_level: pixels\n  timestep: 300\nlora:\n  rank: 8\n"
    )
    file = ["--config", str(path)]
    plan = parsed("generator", [*file, "--noise.timestep", "700"])
    assert plan.learning_rate == 1e-4
    assert (plan.noise.token_level, plan.noise.timestep) == ("pixels", 700)
    assert plan.lora.rank == 8
    assert parsed("generator", ["--noise.timestep", "700", *file]).noise.timestep == 300
    assert parsed("generator", [f"--config={path}"]).noise.timestep == 300


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--learning_rat", "1"], "learning_rat"),
        (["--learning_rate", "fast"], "learning_rate"),
        (["--noise.token_level", "images"], "token_level"),
        (["--config", "no-such-recipe"], "no-such-recipe"),
        (["--template", "caption"], "template"),  # a reranker's
    ],
)
def test_a_wrong_flag_is_named(
    flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parsed("generator", flags)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert complaint in message
    assert len(message) < 1500, "not a list of all flags"


def test_an_unknown_key_in_a_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("learning_speed: 1e-4\n")
    with pytest.raises(SystemExit):
        parsed("generator", ["--config", str(path)])
    assert "learning_speed" in capsys.readouterr().err


def test_what_is_needed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.run("reranker", ["--model", "m", "--data", "d", "--ranking", "r"])
    assert "output_dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--noise.foo=1"], "noise.foo"),
        (["--max_steps=many"], "max_steps"),
        (["--noise.kind=drop", "--noise.token_level=pixels"], "kind='drop' drops visual tokens"),
        (["--noise.window=2"], "window=2"),
        (["--lr_scheduler_type=steep"], "steep"),
        (["--share=0"], "share=0"),
        (["--lora.dropout=1"], "dropout=1"),
        (["--config=no-such-recipe"], "no-such-recipe"),
    ],
)
def test_flags_are_checked_without_reading_anything(flags: list[str], complaint: str) -> None:
    """What they name is not there."""
    needed = ["--model=no-model", "--data=no-data", "--output_dir=no-folder"]
    with pytest.raises(ValueError, match=re.escape(complaint)) as refused:
        command.plan("generator", [*needed, *flags])
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="data, output_dir"):
        command.plan("generator", ["--model=m"])


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ("--model={folder}/modle", r"did you mean .*/model\?"),
        ("--data={folder}/no-data", "there is no data set"),
        ("--ranking={folder}/no-samples", "no-samples"),
        ("--output_dir={folder}/model/config.json", r"config\.json is no folder"),
        ("--resume_from_checkpoint={folder}/checkpoint-3", "there is no model folder"),
    ],
)
def test_files_are_checked_before_the_model_is_loaded(
    flag: str, complaint: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """The model is one that cannot be loaded."""
    model = shutil.copytree(tiny_model("llava"), tmp_path / "model")
    settings = json.loads((model / "config.json").read_text())
    settings["text_config"]["num_hidden_layers"] = 99
    (model / "config.json").write_text(json.dumps(settings))
    (tmp_path / "samples").touch()
    needed = [f"--model={model}", f"--data={tmp_path}", f"--ranking={tmp_path}/samples"]
    flags = [*needed, f"--output_dir={tmp_path}/out", flag.format(folder=tmp_path)]
    with pytest.raises(OSError, match=complaint):
        command.run("reranker", flags)
    assert not (tmp_path / "out").exists()


def test_a_plan_has_every_setting() -> None:
    needed = ["--model=m", "--data=d", "--output_dir=o"]
    plan = command.plan("generator", ["--config=tiny-generator", *needed, "--seed=3"])
    assert plan.noise == ARMS["both"], "the paper's method"
    assert plan.values["noise.timestep"] == 500
    assert (plan.values["learning_rate"], plan.values["share"]) == (3e-4, 1.0)
    assert (plan.arguments.seed, plan.ranking) == (3, None)
    assert command.plan("generator", [*needed, "--eval_split=val"]).arguments.do_eval


# --- recipes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in command.recipes() if "tiny" not in name])
def test_a_recipe_has_the_papers_numbers(name: str) -> None:
    """Of RagVL's README: epochs and the batch of 16 (on four GPUs); the rest of its scripts."""
    stage = "reranker" if "reranker" in name else "generator"
    plan = parsed(stage, ["--config", name])
    internvl = "internvl2" in name
    assert plan.per_device_train_batch_size * plan.gradient_accumulation_steps * 4 == 16
    assert plan.num_train_epochs == (1 if internvl else 2)
    assert plan.learning_rate == (4e-5 if internvl else 2e-4)
    assert plan.weight_decay == (0.01 if internvl else 0)
    assert (plan.lora.rank, plan.lora.alpha) == ((16, 32) if internvl else (128, 256))
    assert (plan.lr_scheduler_type, plan.warmup_steps) == ("cosine", 0.03)
    assert plan.bf16 and plan.gradient_checkpointing and plan.freeze_vision
    assert plan.dtype == "bfloat16"
    if stage == "generator":
        assert plan.noise.data_level == 2
        assert plan.noise.timestep == 500
        assert plan.noise.token_level == ("tokens" if internvl else "pixels")


def test_recipes_are_listed_with_their_purpose() -> None:
    outcome = CliRunner().invoke(app, ["train", "recipes"])
    assert outcome.exit_code == 0
    lines = outcome.output.splitlines()
    assert len(lines) == len(command.recipes()) >= 6
    line = next(line for line in lines if line.startswith("webqa-reranker-internvl2-2b "))
    assert "InternVL2-2B" in line


@pytest.mark.parametrize("name", ["deepspeed-zero2", "fsdp"])
def test_shipped_json_files_are_found_by_name(name: str) -> None:
    assert "zero_optimization" in json.dumps(
        json.loads(Path(command._shipped("deepspeed-zero2")).read_text())
    )
    assert json.loads(Path(command._shipped(name)).read_text())
    assert command._shipped("no-such-file") == "no-such-file"
    assert command._shipped({"stage": 2}) == {"stage": 2}


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fsdp").write_text("{}")
    assert command._shipped("fsdp") == "fsdp"


# --- the commands -------------------------------------------------------------------------------


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "clip", "clip")


@pytest.mark.slow
def test_ranking_data_then_a_reranker(
    encoder: Path, small_world: Path, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    ranking, index = tmp_path / "ranking.jsonl", tmp_path / "index"
    make = ["data", "ranking", str(small_world), "--encoder", str(encoder), "--out", str(ranking)]
    make += ["--index", str(index), "--device", "cpu"]
    enable_progress_bar()
    outcome = CliRunner().invoke(app, [*make, "--ratio", "2", "--depth", "5"])
    assert (outcome.exit_code, "Loading" in outcome.stderr) == (0, False), outcome.output
    source = WebQA(small_world, split="train")
    gold = sum(len(question.gold) for question in source.questions)
    assert f"{len(source.questions)} questions" in outcome.output
    assert f"{gold} Yes and {2 * gold} No samples" in outcome.output

    first = ranking.read_text()
    assert CliRunner().invoke(app, [*make, "--ratio", "2", "--depth", "5"]).exit_code == 0
    assert ranking.read_text() == first, "the same from the saved index"
    (index / "ragvl_index.json").unlink()  # broken off before it was whole
    assert CliRunner().invoke(app, [*make, "--ratio", "2", "--depth", "5"]).exit_code == 0
    assert ranking.read_text() == first and (index / "ragvl_index.json").exists()
    assert CliRunner().invoke(app, [*make, "--ratio", "2", "--seed", "1"]).exit_code == 0
    assert ranking.read_text() != first

    out = tmp_path / "reranker"
    flags = ["--model", str(tiny_model("llava")), "--data", str(small_world)]
    flags += ["--ranking", str(ranking), "--output_dir", str(out), "--template", "plain", *BASE]
    enable_progress_bar()
    outcome = CliRunner().invoke(app, ["train", "reranker", *flags, "--num_examples", "5"])
    assert (outcome.exit_code, "Loading" in outcome.stderr) == (0, False), outcome.output
    assert json.loads((out / "ragvl_run.json").read_text())["examples"] == 5
    learned = {question_name(one.question_id, one.question) for one in read_ranking(ranking)[:5]}
    assert learned_questions(out) == learned
    begin, *_, saved, evaluate = (line for line in outcome.stdout.splitlines() if line[0] != "{")
    assert begin == f"5 samples of {len(learned)} questions to learn from"
    assert saved == f"saved in {out}; evaluate it with"
    written = shlex.split(evaluate)
    assert written[:3] == ["ragvl", "evaluate", str(small_world)]
    written[written.index("ENCODER")] = str(encoder)
    flags = ["--questions", "1", "--timed", "0", "--no-progress", "--device", "cpu"]
    evaluated = CliRunner().invoke(app, [*written[1:], *flags])
    assert evaluated.exit_code == 0, evaluated.output
    assert "--template" not in written
    assert Reranker.from_pretrained(out, device="cpu").template_name == "plain"
    assert Reranker.from_pretrained(out, template="auto", device="cpu").template_name == "auto"
    # Trained on with another, it is another's
    again = ["--data", str(small_world), "--ranking", str(ranking), *BASE, "--num_examples", "2"]
    for template, chosen in (("instruction-first", ["--template=instruction-first"]), ("auto", [])):
        retrained = tmp_path / template
        given = ["--model", str(out), "--output_dir", str(retrained), *again, *chosen]
        command.run("reranker", given)
        assert preset_of_checkpoint(retrained).template == template


def test_a_generator_with_evaluation(
    small_world: Path, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    flags = ["--model", str(tiny_model("internvl")), "--data", str(small_world)]
    flags += ["--output_dir", str(tmp_path / "out"), "--eval_split", "val", *BASE]
    figures = command.run("generator", [*flags, "--noise.token_level", "tokens"])
    assert figures["train_loss"] > 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert any("eval_accuracy" in entry for entry in state["log_history"])


def test_errors_are_one_line(
    small_world: Path, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    ranking = tmp_path / "ranking.jsonl"
    write_ranking([RankingSample("q", "nowhere", "No")], ranking)
    flags = ["--model", str(tiny_model("llava")), "--data", str(small_world)]
    flags += ["--output_dir", str(tmp_path / "out"), *BASE]
    for stage, more, complaint in (
        ("reranker", ["--ranking", str(tmp_path / "missing.jsonl")], "missing.jsonl"),
        ("reranker", ["--ranking", str(ranking)], "'nowhere'"),
        ("generator", ["--split", "no-such"], "no-such"),
        ("generator", ["--noise.window", "2"], "window=2"),
    ):
        outcome = CliRunner().invoke(app, ["train", stage, *flags, *more])
        assert outcome.exit_code == 1, outcome.output
        assert outcome.output.splitlines()[-1].startswith(f"ragvl train {stage}: ")
        assert complaint in outcome.output
        assert "Traceback" not in outcome.output
    assert not (tmp_path / "out").exists()


def test_a_share_of_the_data_is_drawn_by_the_seed() -> None:
    examples = list(range(200))
    half, again, other = (_drawn(examples, 0.5, seed) for seed in (0, 0, 1))  # type: ignore[arg-type]
    assert len(half) == 100  # type: ignore[arg-type]
    assert list(half) == list(again) == sorted(set(half))  # type: ignore[call-overload]
    assert list(half) != list(other)  # type: ignore[call-overload]
    assert list(half) != examples[:100]  # type: ignore[call-overload]
    assert list(_drawn(examples, 0.001, 0))  # type: ignore[arg-type,call-overload]
    for wrong in (0, 1.5, -1):
        with pytest.raises(ValueError, match=f"share={wrong}"):
            RunSettings("m", Path("d"), share=wrong)
    for name in ("num_examples", "num_eval_examples"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            RunSettings("m", Path("d"), **{name: 0})  # type: ignore[arg-type]


def test_strict_stops_at_the_first_problem_with_the_data(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    write_picture(tmp_path / "a.png")
    lines = [
        {"id": name, "question": "Red?", "answer": "yes", "images": [f"{name}.png"]}
        | {"gold": [f"{name}.png"]}
        for name in ("a", "lost")
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = ["train", "generator", "--model", str(tiny_model("llava")), *BASE]
    flags += ["--data", str(tmp_path / "train.jsonl")]
    strict = [*flags, "--output_dir", str(tmp_path / "strict"), "--strict", "true"]
    outcome = CliRunner().invoke(app, strict)
    assert outcome.exit_code == 1
    assert "missing picture" in outcome.output
    assert not (tmp_path / "strict").exists()
    outcome = CliRunner().invoke(app, [*flags, "--output_dir", str(tmp_path / "lenient")])
    assert outcome.exit_code == 0, outcome.output
