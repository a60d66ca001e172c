"""A grid from one file: expanded, trained, resumed, compared."""

from __future__ import annotations

import json
import shutil
import signal
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image
from processes import Process
from scipy.stats import ttest_rel
from typer.testing import CliRunner

from ragvl.ablation.ablate import ablate
from ragvl.ablation.grid import AblationSettings
from ragvl.ablation.jobs import data_name
from ragvl.ablation.plots import ablation_plot
from ragvl.ablation.result import AblationResult, ArmResult, FailedRun, MeasureSummary
from ragvl.ablation.summary import summarise, summarise_measure
from ragvl.ablation.table import arm_settings, gains, markdown, table, tables
from ragvl.ablation.test_set import TestSet
from ragvl.cli import app
from ragvl.data.formats import open_questions
from ragvl.data.synthetic import Places, write_world
from ragvl.evaluation.evaluate import evaluate
from ragvl.evaluation.models import Models
from ragvl.evaluation.result import from_json
from ragvl.evaluation.settings import EvaluationSettings
from ragvl.mllm import MLLM
from ragvl.retriever import DualEncoder
from ragvl.training.run_record import is_finished

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "ragvl" / "assets"


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


def one_arm(world: Path, **changes: object) -> dict[str, object]:
    return grid(world, arms={"plain": {}}, seeds=[0], **changes)


@pytest.fixture(scope="module")
def begun(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of the untrained model and of the plain arm, two seeds; copy them."""
    work = tmp_path_factory.mktemp("begun")
    ablate(AblationSettings.model_validate(grid(world, arms={"plain": {}})), work)
    assert len(done(work)) == 3
    return work


def done(work: Path) -> dict[str, int]:
    """The runs that are kept, and when each was done."""
    return {path.name: path.stat().st_mtime_ns for path in work.glob("run-*.json")}


def again(settings: dict[str, object], work: Path) -> int:
    """How many runs a grid has still to do; does them."""
    before = done(work)
    ablate(AblationSettings.model_validate(settings), work)
    after = done(work)
    assert {name: after[name] for name in before} == before
    return len(after) - len(before)


@pytest.mark.slow
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
    for arm, measured in result["arms"].items():
        assert list(measured["measures"]) == ["gold", "random 1", "hard 1", "noised 500"]
        for measure in measured["measures"].values():
            assert len(measure["values"]) == (1 if arm == "untrained" else 2)
            assert measure["mean"] == pytest.approx(statistics.fmean(measure["values"]))
    text = (tmp_path / "out" / "ablation.md").read_text()
    assert text.count("\n") == 6 + 1 + 4  # and what each arm is better by
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
    assert 0.123 in [v for arm in again.arms.values() for v in arm.measures["gold"].values]


@pytest.mark.slow
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
    settings["test"] |= {"encoder": encoder, "num_candidates": 4}
    result = ablate(AblationSettings.model_validate(settings), tmp_path / "runs")
    assert set(result.arms) == {"untrained", "all", "some"}
    for arm in result.arms.values():
        assert set(arm.measures) == {"recall@1", "f1"}
        assert all(0 <= measure.mean <= 1 for measure in arm.measures.values())
    assert table(result)[0][-2:] == ["recall@1", "f1"]
    assert [row[0] for row in gains(result)] == ["against all", "some"]
    assert arm_settings(result) == {
        "untrained": "",
        "all": "share 1, 0.0833 epochs",
        "some": "share 0.25, 0.333 epochs",
    }
    assert result.encoder == DualEncoder.from_pretrained(encoder).fingerprint
    # samples of another ranking are other data, and so is another share no reason to start anew
    runs = done(tmp_path / "runs")
    assert ablate(AblationSettings.model_validate(settings), tmp_path / "runs") == result
    assert done(tmp_path / "runs") == runs
    lines = ranking.read_text().splitlines(keepends=True)
    options["ranking"] = str(ranking.rename(tmp_path / "moved.jsonl"))
    assert again(settings, tmp_path / "runs") == 0
    (tmp_path / "moved.jsonl").write_text("".join(lines[1:]))
    ablate(AblationSettings.model_validate(settings), tmp_path / "runs")
    assert len(done(tmp_path / "runs")) == 3 + 2, "not the untrained model's"


@pytest.mark.slow
def test_a_generator_is_tested_behind_retrieval_and_reranking(world: Path, tmp_path: Path) -> None:
    """What it answers from is what `evaluate` keeps, at each share of swapped documents."""
    models = {name: str(ASSETS / f"tiny-{name}") for name in ("retriever", "reranker")}
    settings = grid(world)
    assert isinstance(settings["test"], dict)
    settings["test"] |= {"distractors": [], "timesteps": [], "num_candidates": 6}
    settings["test"] |= {"encoder": models["retriever"], "reranker": models["reranker"]}
    settings["test"] |= {"noise_ratios": [0, 0.5], "num_questions": None}
    test = TestSet.prepare(AblationSettings.model_validate(settings), tmp_path)
    assert [c.name for c in test.conditions] == ["gold", "end to end 0", "end to end 0.5"]
    stages = Models.load(models["retriever"], models["reranker"], str(ASSETS / "tiny-generator"))
    assert test.fingerprints["reranker"] == stages.reranker.fingerprint
    for condition, ratio in zip(test.conditions[1:], (0, 0.5), strict=True):
        chosen = EvaluationSettings(
            pools=("full",), num_candidates=6, noise_ratio=ratio, num_timed=0, max_new_tokens=2
        )
        kept = evaluate(test.source, stages, chosen, work=tmp_path / "test", progress=False)
        assert list(condition.documents) == kept.evidence["full", "natural"]
    _, unswapped, swapped = test.conditions
    assert unswapped.documents != swapped.documents
    del settings["test"]["reranker"]
    with pytest.raises(ValueError, match=r"noise_ratios .* test\.reranker are needed"):
        AblationSettings.model_validate(settings)


def test_intervals_are_students() -> None:
    gains = [0.01, 0.03, 0.02, 0.05]
    summary = summarise(gains)
    interval = ttest_rel(gains, [0.0] * 4).confidence_interval(0.95)
    assert (summary.low, summary.high) == pytest.approx(tuple(interval))
    assert summarise([0.5]).low is None


# --- what a result depends on, and says of itself ------------------------------------------------


@pytest.mark.slow
def test_the_result_says_what_measured_it(world: Path, begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    result = ablate(AblationSettings.model_validate(one_arm(world)), tmp_path)
    assert result.machine["cpu"] and result.versions["torch"]
    assert result.also_measured_by == []
    assert result.lemmatizer is not None and result.test_noise is not None
    assert result.lemmatizer.startswith(("simplemma", "spacy"))
    assert result.test_noise["place"] == "pixels"
    assert result.num_questions == 3
    base = MLLM.from_pretrained(ASSETS / "tiny-base", device="cpu", dtype="float32")
    plain = result.arms["plain"]
    assert plain.model == base.fingerprint
    assert plain.training is not None
    assert plain.training.steps == 1
    assert plain.training.epochs == pytest.approx(2 / plain.training.samples, rel=0.1)
    assert result.arms["untrained"].training is None


@pytest.mark.slow
def test_another_model_or_other_data_is_another_run(world: Path, tmp_path: Path) -> None:
    base, data, work = tmp_path / "base", tmp_path / "data", tmp_path / "runs"
    shutil.copytree(ASSETS / "tiny-base", base)
    shutil.copytree(world, data)
    settings = one_arm(world)
    options = settings["settings"]
    assert isinstance(options, dict)
    options |= {"model": str(base), "data": str(data)}
    assert again(settings, work) == 2
    assert again(settings, work) == 0
    # what is learned: drawn again in the same place
    shutil.rmtree(data)
    write_world(data, Places(), counts={"train": 8, "test": 4}, seed=4)
    assert again(settings, work) == 1, "the untrained model learned nothing"
    # what all start from: trained on in the same place
    mllm = MLLM.from_pretrained(base, device="cpu", dtype="float32")
    mllm.model.get_output_embeddings().weight.data[0, 0] += 1
    mllm.model.save_pretrained(base)
    assert again(settings, work) == 2
    # what it is tested on
    settings["test"] = {"data": str(data), "split": "test", "num_questions": 3, "max_new_tokens": 4}
    assert again(settings, work) == 2
    write_world(data, Places(), counts={"train": 8, "test": 4}, seed=5)
    assert again(settings, work) == 2
    assert again(settings, work) == 0


@pytest.mark.slow
def test_kept_results_go_on_on_another_machine(world: Path, tmp_path: Path) -> None:
    """Nothing but them is taken along, to other folders with the same models and data."""
    here, there = tmp_path / "here", tmp_path / "there"

    def settings(folder: Path) -> dict[str, object]:
        names = {"model": "tiny-base", "encoder": "tiny-retriever", "reranker": "tiny-reranker"}
        for name in names.values():
            shutil.copytree(ASSETS / name, folder / name)
        shutil.copytree(world, folder / "world", copy_function=shutil.copyfile)
        made = one_arm(folder / "world", keep_models=True)
        options, test = made["settings"], made["test"]
        assert isinstance(options, dict) and isinstance(test, dict)
        options["model"] = str(folder / "tiny-base")
        test |= {name: str(folder / names[name]) for name in ("encoder", "reranker")}
        test |= {"noise_ratios": [0.5], "num_candidates": 4}
        return made

    assert again(settings(here), here / "runs") == 2
    (there / "runs").mkdir(parents=True)
    for path in (here / "runs").glob("run-*.json"):
        shutil.copyfile(path, there / "runs" / path.name)
    shutil.move(here, tmp_path / "out of reach")
    moved = settings(there)
    assert again(moved, there / "runs") == 0
    assert not list((there / "runs").glob("model-*")), "nothing was trained"
    moved["seeds"] = [0, 1]
    assert again(moved, there / "runs") == 1


@pytest.mark.slow
def test_another_test_takes_the_models_that_are_kept(world: Path, tmp_path: Path) -> None:
    settings = one_arm(world, keep_models=True)
    assert again(settings, tmp_path) == 2
    (model,) = tmp_path.glob("model-*")
    trained = (model / "model.safetensors").stat().st_mtime_ns
    test = settings["test"]
    assert isinstance(test, dict)
    test["distractors"] = [2]
    assert again(settings, tmp_path) == 2, "the untrained model and the kept one"
    assert list(tmp_path.glob("model-*")) == [model]
    assert (model / "model.safetensors").stat().st_mtime_ns == trained
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("run-*.json")]
    assert sorted("hard 2" in run["measures"] for run in runs) == [False, False, True, True]


@pytest.mark.slow
def test_a_recipe_that_is_changed_makes_another_run(world: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rate: 1e-4\nuse_cpu: true\n")
    settings = one_arm(world)
    assert isinstance(settings["settings"], dict)
    settings["settings"]["config"] = str(recipe)
    assert again(settings, tmp_path / "runs") == 2
    recipe.write_text("learning_rate: 2e-4\nuse_cpu: true\n")
    assert again(settings, tmp_path / "runs") == 1


def test_pictures_in_files_of_their_own_are_part_of_the_data(tmp_path: Path) -> None:
    picture = tmp_path / "pictures" / "a.png"
    picture.parent.mkdir()
    Image.new("RGB", (8, 8)).save(picture)
    lines = tmp_path / "questions.jsonl"
    one = {"id": "1", "question": "q", "answer": "a", "images": ["pictures/a.png"]}
    lines.write_text(json.dumps({**one, "captions": ["c"], "gold": ["pictures/a.png"]}) + "\n")

    def name() -> str:
        return data_name(lines, open_questions(lines))

    first = name()
    lines.touch()
    picture.write_bytes(picture.read_bytes())
    assert name() == first, "files are named by what they hold"
    Image.new("RGB", (9, 9)).save(picture)
    second = name()
    lines.write_text(lines.read_text().replace('"q"', '"why"'))
    third = name()
    assert len({first, second, third}) == 3
    parts = ["A text.", {"image": "pictures/b.png"}, {"image": "pictures/c.png"}]
    more = {"texts": ["A text."], "documents": [{"id": "d", "parts": parts}]}
    for letter in "bc":
        Image.new("RGB", (8, 8)).save(picture.with_name(f"{letter}.png"))
    lines.write_text(json.dumps({**one, "images": [], **more}) + "\n")
    fourth = name()
    assert fourth == name()
    shutil.copytree(tmp_path, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    copied = tmp_path / "elsewhere" / lines.name
    assert data_name(copied, open_questions(copied)) == fourth
    Image.new("RGB", (9, 9)).save(picture.with_name("c.png"))
    fifth = name()
    assert fifth != fourth, "the last picture of a document that follows a text"
    picture.with_name("c.png").unlink()
    assert name() not in (fourth, fifth)


# --- runs that fail, and runs that are killed ---------------------------------------------------


@pytest.mark.slow
def test_an_arm_that_fails_does_not_end_the_others(
    world: Path, begun: Path, tmp_path: Path
) -> None:
    """Its weights overflow, and the loss of the third step is no number."""
    arms = {
        "plain": {},
        "steep": {"learning_rate": 1e30, "max_grad_norm": 0, "max_steps": 3, "warmup_steps": 0},
        "after it": {"noise.data_level": 2},
    }
    settings = AblationSettings.model_validate(grid(world, arms=arms))
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    lines: list[str] = []
    result = ablate(settings, tmp_path, report=lines.append)
    assert list(result.arms) == ["untrained", "plain", "after it"]
    assert [(run.arm, run.seed) for run in result.failed] == [("steep", 0), ("steep", 1)]
    assert "TrainingDivergedError: the loss of step" in result.failed[0].reason
    assert any(line.startswith("steep, seed 1: failed: ") for line in lines)
    head, *rows = table(result)
    assert [row[0] for row in rows] == ["untrained", "plain", "after it", "steep"]
    assert all(len(row) == len(head) for row in rows)
    assert rows[-1][1].startswith("failed: TrainingDivergedError")
    # it is tried again, and the others are not
    kept = done(tmp_path)
    assert len(kept) == 5
    again = ablate(settings, tmp_path)
    assert again == result
    assert done(tmp_path) == kept


def test_an_arm_of_which_a_seed_failed_is_compared_by_the_others() -> None:
    def arm(seeds: list[int], measure: MeasureSummary) -> ArmResult:
        return ArmResult(changes={}, settings={}, seeds=seeds, measures={"gold": measure})

    plain = {0: {"gold": 0.5}, 1: {"gold": 0.6}, 2: {"gold": 0.9}}
    noise = summarise_measure({0: {"gold": 0.6}, 2: {"gold": 1.0}}, plain, "gold")
    assert noise.gain is not None and noise.gain.values == pytest.approx([0.1, 0.1])
    assert summarise_measure({3: {"gold": 0.6}}, plain, "gold").gain is None
    result = AblationResult(
        stage="generator",
        test="places",
        num_questions=3,
        settings={},
        seeds=[0, 1, 2],
        baseline="plain",
        arms={
            "plain": arm([0, 1, 2], summarise_measure(plain, {}, "gold")),
            "noise": arm([0, 2], noise),
        },
        failed=[FailedRun("noise", 1, "OutOfMemoryError: a | b")],
    )
    assert table(result)[2][0] == "noise (without seed 1, failed: OutOfMemoryError: a / b)"
    assert gains(result)[1][-1].startswith("+10.0 ")


def test_many_measures_are_in_several_tables() -> None:
    names = ["gold", "random 1", "random 2", "hard 1", "hard 4", "end to end 0", "end to end 0.5"]

    def arm(seeds: list[int], start: float, baseline: float | None) -> ArmResult:
        def values(first: float) -> dict[int, dict[str, float]]:
            return {
                seed: {name: first + place / 100 for place, name in enumerate(names)}
                for seed in seeds or [0]
            }

        over = values(baseline) if baseline is not None else {}
        measures = {name: summarise_measure(values(start), over, name) for name in names}
        return ArmResult(changes={}, settings={}, seeds=seeds, measures=measures)

    arms = {
        "untrained": arm([], 0.25, None),
        "plain": arm([0, 1], 0.5, None),
        "noise": arm([0, 1], 0.625, 0.5),
    }
    result = AblationResult(
        stage="generator",
        test="places",
        num_questions=3,
        settings={},
        seeds=[0, 1],
        baseline="plain",
        arms=arms,
        failed=[FailedRun("noise", 2, "OutOfMemoryError")],
    )
    apart, *compared = tables(result)
    assert [row[0] for row in apart] == [
        "arm",
        "untrained",
        "plain",
        "noise (without seed 2, failed: OutOfMemoryError)",
    ]
    assert [rows[0] for rows in compared] == [
        ["arm", "gold", "random 1", "random 2"],
        ["arm", "hard 1", "hard 4", "end to end 0", "end to end 0.5"],
    ]
    for head, *rows in compared:
        assert [row[0] for row in rows] == ["untrained", "plain", "noise, against plain"]
        for column, name in enumerate(head[1:], 1):
            assert rows[0][column] == f"{25 + names.index(name):.1f}"
            assert rows[1][column].startswith(f"{50 + names.index(name):.1f} (")
            assert rows[2][column] == "+12.5 (+12.5 to +12.5)"
    few = replace(result, arms={name: few_measures(arm) for name, arm in arms.items()})
    assert tables(few) == [table(few), gains(few)]


def few_measures(arm: ArmResult) -> ArmResult:
    return replace(arm, measures=dict(list(arm.measures.items())[:4]))


@pytest.mark.slow
def test_a_grid_of_which_everything_fails_is_an_error(world: Path, tmp_path: Path) -> None:
    steep = {"learning_rate": 1e30, "max_grad_norm": 0, "max_steps": 3, "warmup_steps": 0}
    settings = grid(world, arms={"steep": steep}, seeds=[0], untrained=False)
    with pytest.raises(ValueError, match=r"every run failed.*TrainingDivergedError"):
        ablate(AblationSettings.model_validate(settings), tmp_path)


# `ragvl ablate` in a process that dies when the first model is saved, but for its processor
DYING = """
import os, signal
from transformers import ProcessorMixin
ProcessorMixin.save_pretrained = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
from ragvl.cli import app
app()
"""


@pytest.fixture(scope="module")
def killed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is left: grid.yaml, and runs/ with a model's folder."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "grid.yaml").write_text(yaml.safe_dump(one_arm(world)))
    flags = ["ablate", str(folder / "grid.yaml"), "--out", str(folder)]
    code, printed = Process(DYING, *flags).ended()
    assert code == -signal.SIGKILL, printed
    return folder


@pytest.fixture(scope="module")
def unbroken(killed: Path) -> dict[str, MeasureSummary]:
    """The measures of the same grid when nobody stops it."""
    result = ablate(AblationSettings.read(killed / "grid.yaml"), killed / "unbroken")
    return result.arms["plain"].measures


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def lose_the_note(folder: Path) -> None:
    (folder / "ragvl_run.json").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("also", [lambda _: None, cut_weights, lose_the_note])
def test_a_run_killed_while_it_saves_its_model_is_done_again(
    also: Callable[[Path], None], killed: Path, unbroken: dict[str, MeasureSummary], tmp_path: Path
) -> None:
    shutil.copytree(killed / "runs", tmp_path / "runs")
    (folder,) = (tmp_path / "runs").glob("model-*")
    assert (folder / "config.json").exists(), "the test's premise"
    assert not is_finished(folder)
    also(folder)
    result = ablate(AblationSettings.read(killed / "grid.yaml"), tmp_path / "runs")
    assert result.failed == []
    assert result.arms["plain"].measures == unbroken


@pytest.mark.slow
def test_a_model_that_was_trained_and_not_evaluated_is_not_trained_again(
    world: Path, tmp_path: Path
) -> None:
    settings = one_arm(world, keep_models=True)
    ablate(AblationSettings.model_validate(settings), tmp_path)
    (folder,) = tmp_path.glob("model-*")
    saved = (folder / "model.safetensors").stat().st_mtime_ns
    for path in tmp_path.glob("run-*.json"):
        path.unlink()
    assert again(settings, tmp_path) == 2
    assert (folder / "model.safetensors").stat().st_mtime_ns == saved


# --- checked before anything is trained ---------------------------------------------------------


@pytest.mark.slow
def test_what_is_missing_is_named_before_anything_is_trained(world: Path, tmp_path: Path) -> None:
    path, work = tmp_path / "grid.yaml", tmp_path / "runs"
    for change, words in (
        ({"data": str(tmp_path / "no-data")}, "no-data"),
        ({"model": str(tmp_path / "no-model")}, "no-model"),
        ({"split": "no-split"}, "no-split"),
    ):
        path.write_text(yaml.safe_dump(grid(world, arms={"plain": {}, "bad": change})))
        with pytest.raises(ValueError, match=r"grid\.yaml: arm 'bad', seed 0") as refused:
            ablate(AblationSettings.read(path), work)
        assert words in str(refused.value)
        assert "plain" not in str(refused.value)
    assert not list(work.iterdir())


# --- the table ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_table_tells_arms_apart_by_their_settings(
    world: Path, begun: Path, tmp_path: Path
) -> None:
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    tokens = {"noise.token_level": "tokens"}
    arms = {
        "plain": {},
        "the paper's": {**tokens, "noise.data_level": 2},
        "tokens": {**tokens, "noise.clamp_low": 0.01, "noise.timestep": [500, 900]},
        "as released": {**tokens, "noise.data_level": 2, "noise.as_released": True},
    }
    result = ablate(AblationSettings.model_validate(grid(world, arms=arms, seeds=[0])), tmp_path)
    described = arm_settings(result)
    assert described == {
        "untrained": "",
        "plain": "",
        "the paper's": "data level 2, tokens, timestep 500, clamp 1 to 5",
        "tokens, timestep 500": "tokens, timestep 500, clamp 0.01 to 5",
        "tokens, timestep 900": "tokens, timestep 900, clamp 0.01 to 5",
        "as released": "data level 2, tokens, timestep 500, as released",
    }
    head, *rows = table(result)
    assert head[:2] == ["arm", "settings"]
    assert head[3:] == result.measures
    for row in rows:
        assert row[1] == described[row[0]]
        weights = result.arms[row[0]].token_weights
        assert bool(weights) == bool(row[2]) == ("tokens" in row[1] or "released" in row[1])
        if weights:
            assert row[2].startswith(f"{100 * weights['weights_at_floor']:.0f} %, ")
    over, *differences = gains(result)
    assert over == ["against plain", *result.measures]
    assert [row[0] for row in differences] == list(described)[2:]
    for name, *cells in differences:
        for cell, measure in zip(cells, result.arms[name].measures.values(), strict=True):
            assert measure.gain is not None and cell == f"{100 * measure.gain.mean:+.1f}"
    noise = result.arms["the paper's"].settings
    assert noise is not None
    assert (noise["noise.kind"], noise["noise.window"]) == ("diffusion", 3)


@pytest.mark.slow
def test_results_of_earlier_versions_are_shown() -> None:
    """They hold what was given of settings, and less of what measured them."""
    text = (ROOT / "benchmarks" / "results" / "ablation_noise.json").read_text()
    values = json.loads(text)
    for arm in values["arms"].values():
        for added in ("settings", "seeds", "model", "training"):
            arm.pop(added, None)
    for added in ("baseline", "failed", "encoder", "lemmatizer", "test_noise", "machine"):
        values.pop(added, None)
    result = from_json(AblationResult, values)
    rows = {row[0]: row for row in table(result)}
    assert len({len(row) for row in rows.values()}) == 1
    assert "timestep 500, gap of the logit, clamp 1 to 5" in rows["tokens"][1]
    assert "timestep 900, gap of the logit, clamp 0.1 to 5" in rows["pixels, no floor"][1]
    gain = result.arms["pixels, no floor"].measures["gold"].gain
    (row,) = (row for row in gains(result) if row[0] == "pixels, no floor")
    assert gain is not None and row[1].startswith(f"{100 * gain.mean:+.1f} (")
    assert ablation_plot(result).startswith("<?xml")
    result.arms["_$\\x$ <b>"] = result.arms.pop("tokens")
    assert r" _$\x$ &lt;b&gt;<" in ablation_plot(result)


def test_a_cell_of_a_markdown_table_may_hold_any_text() -> None:
    assert markdown([["arm", "F1"], ["a|b\n\x1b[31m", "1.0"]]) == (
        "| arm | F1 |\n| --- | --- |\n| a\\|b\\n\\x1b[31m | 1.0 |\n"
    )
