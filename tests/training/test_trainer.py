"""Training learns, goes on where it was killed, and touches nothing that is another run's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Process
from tiny_models import ARCHITECTURES
from torch.utils.data import Subset
from transformers import TrainerCallback, TrainingArguments, trainer
from typer.testing import CliRunner

from ragvl.cli import app
from ragvl.data.webqa import WebQA
from ragvl.mllm import MLLM, PromptTooLongError, UnsupportedModelError
from ragvl.training.adapters import LoraSettings
from ragvl.training.command import run
from ragvl.training.examples import AnswerExamples, Example, RankingExamples
from ragvl.training.noise import ARMS
from ragvl.training.ranking import RankingSample
from ragvl.training.run_record import is_finished
from ragvl.training.trainer import (
    ResumeError,
    TrainingDivergedError,
    TrainingStoppedError,
    train,
)


@pytest.fixture
def fresh(tiny_model: Callable[[str], Path]) -> Callable[..., MLLM]:
    """A model that the test may change."""
    return lambda name="llava", **load: MLLM.from_pretrained(tiny_model(name), device="cpu", **load)


def arguments(folder: Path, **changed: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return TrainingArguments(output_dir=str(folder), **settings | changed)


def curve(folder: Path) -> list[float]:
    """The losses that a run has noted."""
    return [entry["loss"] for entry in history(folder) if "loss" in entry]


def history(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- it trains ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_by_heart(fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path) -> None:
    mllm = fresh("internvl")
    examples = Subset(AnswerExamples(questions, mllm.prompting, num_pictures=2), range(4))
    figures = arguments(
        tmp_path, max_steps=40, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=20,
        save_strategy="steps", save_steps=40,
    )  # fmt: skip
    train(mllm, figures, examples, noise=ARMS["token"], eval_examples=examples)
    evaluations = [entry for entry in history(tmp_path) if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluations] == [20, 40]
    assert evaluations[-1]["eval_accuracy"] == 1
    assert evaluations[-1]["eval_loss"] < 0.1
    # anybody may read the weights who may read the rest
    for folder in (tmp_path, tmp_path / "checkpoint-40"):
        modes = {path.stat().st_mode for path in folder.iterdir() if path.is_file()}
        assert len(modes) == 1
    # and the saved model writes those answers
    saved = MLLM.from_pretrained(tmp_path, device="cpu")
    for example in examples:
        images = [saved.prompting.encode_image(document.load()) for document in example.documents]
        prompt = saved.prompting.encode_prompt(example.prompt, images)
        assert saved.generate([prompt], max_new_tokens=16) == [example.answer]


def test_what_the_noise_did_to_the_weights_is_noted(
    fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path
) -> None:
    """Step by step in the log, and over all of them in the run's record."""
    for name in ("plain", "token"):
        mllm = fresh()
        examples = AnswerExamples(questions, mllm.prompting)
        train(mllm, arguments(tmp_path / name), examples, noise=ARMS[name])
    steps = [entry for entry in history(tmp_path / "token") if "loss" in entry]
    noted = json.loads((tmp_path / "token" / "ragvl_run.json").read_text())["token_weights"]
    assert len(steps) == 4
    tokens = [entry["weighted_tokens"] for entry in steps]
    assert sum(tokens) == noted["weighted_tokens"] > 0
    for measure in ("weights_at_floor", "visual_gap", "token_weight"):
        total = sum(n * entry[measure] for n, entry in zip(tokens, steps, strict=True))
        assert total / sum(tokens) == pytest.approx(noted[measure], rel=1e-4, abs=1e-6)
    assert "token_weights" not in json.loads((tmp_path / "plain" / "ragvl_run.json").read_text())
    assert all("token_weight" not in entry for entry in history(tmp_path / "plain"))


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["both", "release"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(
    architecture: str, arm: str, fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path
) -> None:
    mllm = fresh(architecture)
    before = {name: tensor.clone() for name, tensor in mllm.model.state_dict().items()}
    decoder = {id(parameter) for parameter in mllm.model.get_decoder().parameters()}
    examples = AnswerExamples(questions, mllm.prompting, num_pictures=ARMS[arm].data_level)
    train(mllm, arguments(tmp_path, max_steps=2), examples, noise=ARMS[arm])
    saved = MLLM.from_pretrained(tmp_path, device="cpu")
    assert saved.fingerprint == mllm.fingerprint
    changed = {
        name: not torch.equal(parameter, before[name])
        for name, parameter in mllm.model.named_parameters()
    }
    in_decoder = [changed[name] for name, p in mllm.model.named_parameters() if id(p) in decoder]
    in_vision = [
        changed[name] for name, p in mllm.model.base_model.named_parameters(prefix="model")
        if id(p) not in decoder
    ]  # fmt: skip
    assert all(in_decoder)
    assert in_vision and not any(in_vision), "vision tower and projector are frozen"


def test_the_vision_tower_trains_where_asked(
    fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path
) -> None:
    mllm = fresh()
    projector = mllm.model.model.multi_modal_projector.linear_1.weight
    before = projector.clone()
    examples = AnswerExamples(questions, mllm.prompting)
    train(mllm, arguments(tmp_path), examples, freeze_vision=False)
    assert not projector.equal(before)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llava", "qwen3_vl"])
def test_adapters_are_merged_into_what_is_saved(
    architecture: str, fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path
) -> None:
    mllm = fresh(architecture)
    original = fresh(architecture).model.state_dict()
    linear = {
        f"{name}.weight"
        for name, module in mllm.model.get_decoder().named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    examples = AnswerExamples(questions, mllm.prompting)
    train(
        mllm,
        arguments(tmp_path, save_strategy="steps", save_steps=4),
        examples,
        noise=ARMS["token"],
        lora=LoraSettings(rank=2),
    )
    assert (tmp_path / "checkpoint-4" / "adapter_model.safetensors").is_file()
    saved = MLLM.from_pretrained(tmp_path, device="cpu")
    merged = MLLM.from_pretrained(tmp_path / "checkpoint-4", device="cpu").model.state_dict()
    assert all(torch.equal(saved.model.state_dict()[name], x) for name, x in merged.items())
    assert saved.fingerprint == mllm.fingerprint
    changed = {
        name
        for name, tensor in saved.model.state_dict().items()
        if not torch.allclose(tensor, original[name], atol=1e-7)
    }
    decoder = next(
        name for name, module in saved.model.named_modules() if module is saved.model.get_decoder()
    )
    assert changed == {f"{decoder}.{name}" for name in linear}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_gradient_checkpointing_changes_no_loss(
    rank: int, fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path
) -> None:
    curves = []
    # its name in transformers 5.23, and before
    newer = hasattr(TrainingArguments, "activation_checkpointing")
    name = "activation_checkpointing" if newer else "gradient_checkpointing"
    for checkpointing in (False, True):
        mllm = fresh()
        folder = tmp_path / str(checkpointing)
        settings = arguments(folder, **{name: checkpointing})
        examples = AnswerExamples(questions, mllm.prompting)
        train(mllm, settings, examples, noise=ARMS["token"], lora=LoraSettings(rank=rank))
        curves.append(curve(folder))
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    assert len(set(curves[0])) == 4


@pytest.mark.slow
def test_bfloat16(fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path) -> None:
    """Weights in float32, products in bfloat16; and adapters on bfloat16 weights."""
    curves = {}
    adapters = LoraSettings(rank=2)
    for name, dtype, bf16, lora in (
        ("float32", "float32", False, None),
        ("autocast", "float32", True, None),
        ("float32 adapters", "float32", False, adapters),
        ("bfloat16 adapters", "bfloat16", True, adapters),
    ):
        mllm = fresh(dtype=dtype)
        settings = arguments(tmp_path / name, learning_rate=1e-3, bf16=bf16)
        train(
            mllm,
            settings,
            AnswerExamples(questions, mllm.prompting),
            noise=ARMS["token"],
            lora=lora,
        )
        curves[name] = curve(tmp_path / name)
    assert curves["autocast"] == pytest.approx(curves["float32"], rel=2e-2)
    assert curves["bfloat16 adapters"] == pytest.approx(curves["float32 adapters"], rel=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_a_gpu_changes_a_loss_curve_less_than_a_seed_does(
    bf16: bool, fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path
) -> None:
    def losses(seed: int, **where: bool) -> torch.Tensor:
        mllm, folder = fresh(), tmp_path / f"{seed} {where}"
        settings = arguments(folder, max_steps=20, learning_rate=1e-3, seed=seed, **where)
        train(mllm, settings, AnswerExamples(questions, mllm.prompting), noise=ARMS["token"])
        return torch.tensor(curve(folder))

    on_cpu = losses(0)
    between_seeds = (losses(1) - on_cpu).abs().mean()
    on_gpu = losses(0, use_cpu=False, bf16=bf16)
    assert (on_gpu - on_cpu).abs().mean() < between_seeds


@pytest.mark.slow
def test_examples_made_ahead_by_workers(
    fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path
) -> None:
    curves = []
    for workers in (0, 2):
        mllm = fresh()
        settings = arguments(tmp_path / str(workers), dataloader_num_workers=workers)
        train(
            mllm,
            settings,
            AnswerExamples(questions, mllm.prompting, num_pictures=2),
            noise=ARMS["token"],
        )
        curves.append(curve(tmp_path / str(workers)))
    assert curves[0] == curves[1]


def test_accumulated_gradients_are_those_of_a_larger_batch(
    fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path
) -> None:
    """Answers of one length: then a mean of the parts' means is the whole's mean."""
    samples = [
        RankingSample(question.text, question.gold[0], answer)
        for question in questions.questions
        for answer in ("Yes", "No")
    ]
    curves = []
    for size, steps in ((4, 1), (2, 2)):
        mllm = fresh()
        folder = tmp_path / str(size)
        settings = arguments(
            folder,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            learning_rate=1e-3,
        )
        train(mllm, settings, RankingExamples(samples, questions, mllm.prompting))
        curves.append(curve(folder))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert len(curves[0]) == 4


@pytest.mark.slow
def test_the_best_model_is_the_one_that_is_saved(
    fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path
) -> None:
    """Here the one with the largest loss, which is that of the first step."""
    mllm = fresh("internvl")
    examples = Subset(AnswerExamples(questions, mllm.prompting), range(4))
    settings = arguments(
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
    )
    train(mllm, settings, examples, eval_examples=examples)
    losses = [entry["eval_loss"] for entry in history(tmp_path) if "eval_loss" in entry]
    best = 1 + losses.index(max(losses))
    assert best < 4, "the test's premise"
    saved = MLLM.from_pretrained(tmp_path / f"checkpoint-{best}", device="cpu")
    assert MLLM.from_pretrained(tmp_path, device="cpu").fingerprint == saved.fingerprint


def test_tensorboard(fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path) -> None:
    mllm = fresh()
    settings = arguments(tmp_path, report_to="tensorboard")
    train(mllm, settings, AnswerExamples(questions, mllm.prompting))
    assert list(tmp_path.rglob("events.out.tfevents.*"))


# --- killed, and taken up again -----------------------------------------------------------------


def generator_flags(model: Path, world: Path, out: Path, **changed: Any) -> list[str]:
    settings = {
        "model": model,
        "data": world,
        "output_dir": out,
        "max_steps": 30,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 5,
        "noise.data_level": 2,
        "noise.token_level": "tokens",
        "use_cpu": "true",
        "disable_tqdm": "true",
        "report_to": "none",
        **changed,
    }
    return [str(part) for name, value in settings.items() for part in (f"--{name}", value)]


# `ragvl train` in a process that dies between two checkpoints
DYING_AT_STEP_7 = """
import os, signal
from transformers import TrainerCallback, trainer
class Die(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 7:
            os.kill(os.getpid(), signal.SIGKILL)
trainer.DEFAULT_CALLBACKS.append(Die)
from ragvl.cli import app
app()
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_loss_curve(
    tiny_model: Callable[[str], Path], small_world: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = partial(generator_flags, tiny_model("llava"), small_world, max_steps=12)
    run("generator", flags(whole))
    code, printed = Process(DYING_AT_STEP_7, "train", "generator", *flags(broken)).ended()
    assert code == -signal.SIGKILL, printed
    assert (broken / "checkpoint-5" / "trainer_state.json").exists()
    run("generator", flags(broken, resume_from_checkpoint="last"))
    assert len(curve(whole)) == 12
    assert curve(broken) == curve(whole)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, broken)]
    assert weights[0] == weights[1]


# `ragvl train` in a process that dies when the weights are saved, and the processor is not
DYING = """
import os, signal
from transformers import ProcessorMixin
ProcessorMixin.save_pretrained = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
from ragvl.cli import app
app()
"""


@pytest.mark.slow
def test_adapters_begin_as_the_seed_says(
    tiny_model: Callable[[str], Path], small_world: Path, tmp_path: Path
) -> None:
    """Whatever was drawn before in the same process, as by the run before in a grid."""
    curves = []
    for state in (1, 2):
        torch.manual_seed(state)
        folder = tmp_path / str(state)
        settings = {"max_steps": 2, "save_strategy": "no", "lora.rank": 2}
        run("generator", generator_flags(tiny_model("llava"), small_world, folder, **settings))
        curves.append(curve(folder))
    assert curves[0] == curves[1]


@pytest.fixture
def hears_interrupts() -> Iterator[None]:
    """As a command in the foreground does; one that a shell runs in the background ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupting(at: int, times: int) -> type[TrainerCallback]:
    class Interrupt(TrainerCallback):
        """Ctrl-C, in the middle of a step."""

        def on_pre_optimizer_step(self, *given: Any, **_: Any) -> None:
            if given[1].global_step == at:
                for _time in range(times):
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(0.05)  # it is heard between two lines of Python

    return Interrupt


@pytest.mark.slow
@pytest.mark.usefixtures("hears_interrupts")
def test_an_interrupt_saves_a_checkpoint_from_which_training_goes_on(
    tiny_model: Callable[[str], Path],
    small_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = {"max_steps": 4, "save_strategy": "no", "lora.rank": 2}
    flags = partial(generator_flags, tiny_model("llava"), small_world, **settings)
    run("generator", flags(whole))
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        callbacks = [*trainer.DEFAULT_CALLBACKS, interrupting(at=1, times=1)]
        patch.setattr(trainer, "DEFAULT_CALLBACKS", callbacks)
        stopped = CliRunner().invoke(app, ["train", "generator", *flags(broken)])
    assert stopped.exit_code == 130
    assert "stopped after step 2 of 4; " in stopped.stderr.splitlines()[-1]
    assert f"{broken / 'checkpoint-2'} is there" in stopped.stderr
    assert not is_finished(broken)
    assert not (broken / "model.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is before
    run("generator", flags(broken, resume_from_checkpoint="last"))
    assert curve(broken) == curve(whole)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, broken)]
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("hears_interrupts")
def test_a_second_interrupt_ends_training_at_once(
    fresh: Callable[..., MLLM],
    questions: WebQA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    callbacks = [*trainer.DEFAULT_CALLBACKS, interrupting(at=1, times=2)]
    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", callbacks)
    mllm = fresh()
    settings = arguments(tmp_path, max_steps=4)
    with pytest.raises(TrainingStoppedError, match=r"after step 1 of 4; there is no checkpoint"):
        train(mllm, settings, AnswerExamples(questions, mllm.prompting))


def test_a_process_that_ignores_interrupts_still_does(
    fresh: Callable[..., MLLM],
    questions: WebQA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    callbacks = [*trainer.DEFAULT_CALLBACKS, interrupting(at=0, times=2)]
    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", callbacks)
    mllm = fresh()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train(mllm, arguments(tmp_path, max_steps=1), AnswerExamples(questions, mllm.prompting))
    finally:
        signal.signal(signal.SIGINT, before)
    assert is_finished(tmp_path)


@pytest.mark.slow
def test_a_run_killed_while_it_saves_is_done_again(
    tiny_model: Callable[[str], Path], small_world: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = {"max_steps": 2, "save_strategy": "no", "resume_from_checkpoint": "last"}
    flags = partial(generator_flags, tiny_model("llava"), small_world, **settings)
    code, printed = Process(DYING, "train", "generator", *flags(killed)).ended()
    assert code == -signal.SIGKILL, printed
    assert (killed / "config.json").exists(), "the test's premise"
    assert not (killed / "processor_config.json").exists()
    run("generator", flags(whole))
    assert is_finished(whole)
    expected = (whole / "model.safetensors").read_bytes()

    for name, size in (("whole weights", None), ("weights cut short", 1000)):
        broken = shutil.copytree(killed, tmp_path / name)
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:size])
        assert not is_finished(broken)
        left = contents(broken)
        # Not to be resumed; another run
        for changed in ({"resume_from_checkpoint": "null"}, {"noise.timestep": 300}):
            with pytest.raises(ResumeError):
                run("generator", flags(broken, **changed))
            assert contents(broken) == left
        run("generator", flags(broken))
        assert is_finished(broken)
        assert weights.read_bytes() == expected
        assert MLLM.from_pretrained(broken, device="cpu").architecture == "llava"


def test_a_checkpoint_that_was_broken_off_is_passed_over(
    begun: Path, fresh: Callable[..., MLLM], questions: WebQA
) -> None:
    before = {name: (begun / name).read_bytes() for name in ("model.safetensors",)}
    losses = curve(begun)
    torn = begun / "checkpoint-2"
    (torn / "trainer_state.json").unlink()  # which comes last
    (torn / "model.safetensors").write_bytes(b"cut")
    mllm = fresh()
    settings = arguments(
        begun, max_steps=2, save_strategy="steps", save_steps=1, resume_from_checkpoint="last"
    )
    train(mllm, settings, AnswerExamples(questions, mllm.prompting), noise=ARMS["token"])
    assert curve(begun) == losses
    assert {name: (begun / name).read_bytes() for name in before} == before
    assert (torn / "trainer_state.json").exists()


def test_a_finished_model_is_never_begun_anew(
    fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path
) -> None:
    mllm = fresh()
    train(mllm, arguments(tmp_path, max_steps=1), AnswerExamples(questions, mllm.prompting))
    assert is_finished(tmp_path)
    before = contents(tmp_path)
    again = fresh()
    with pytest.raises(ResumeError, match="holds a model"):
        settings = arguments(tmp_path, max_steps=1, resume_from_checkpoint="last")
        train(again, settings, AnswerExamples(questions, again.prompting))
    assert contents(tmp_path) == before


def test_a_note_of_the_run_that_is_broken(
    begun: Path, fresh: Callable[..., MLLM], questions: WebQA
) -> None:
    (begun / "ragvl_run.json").write_text('{"model": "12')
    assert not is_finished(begun)
    mllm = fresh()
    with pytest.raises(ResumeError, match="missing or broken"):
        settings = arguments(begun, resume_from_checkpoint="last")
        train(mllm, settings, AnswerExamples(questions, mllm.prompting), noise=ARMS["token"])


def test_nothing_to_go_on_from_is_a_beginning(
    fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path
) -> None:
    mllm = fresh()
    settings = arguments(tmp_path, max_steps=1, resume_from_checkpoint="last")
    train(mllm, settings, AnswerExamples(questions, mllm.prompting))
    assert (tmp_path / "model.safetensors").is_file()


@pytest.fixture
def begun(fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path) -> Path:
    """A folder with a run's checkpoint."""
    mllm = fresh()
    folder = tmp_path / "begun"
    settings = arguments(folder, max_steps=2, save_strategy="steps", save_steps=1)
    train(mllm, settings, AnswerExamples(questions, mllm.prompting), noise=ARMS["token"])
    return folder


def test_pickled_and_damaged_checkpoints_are_refused(
    begun: Path, fresh: Callable[..., MLLM], questions: WebQA
) -> None:
    mllm = fresh()
    settings = arguments(begun, resume_from_checkpoint="last")
    weights = begun / "checkpoint-2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(UnsupportedModelError, match=r"checkpoint-2/model\.safetensors is no whole"):
        train(mllm, settings, AnswerExamples(questions, mllm.prompting), noise=ARMS["token"])
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ResumeError, match="pickled weights, which can run code"):
        train(mllm, settings, AnswerExamples(questions, mllm.prompting), noise=ARMS["token"])


@pytest.mark.slow
def test_another_run_is_never_overwritten(
    begun: Path, fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path
) -> None:
    before = contents(begun)

    def refused(complaint: str, mllm: MLLM, examples: Any = None, **changed: Any) -> None:
        noise, lora = changed.pop("noise", ARMS["token"]), changed.pop("lora", None)
        settings = arguments(changed.pop("folder", begun), **changed)
        with pytest.raises(ResumeError, match=complaint):
            train(
                mllm,
                settings,
                examples or AnswerExamples(questions, mllm.prompting),
                noise=noise,
                lora=lora,
            )
        assert contents(begun) == before

    refused("resume_from_checkpoint", fresh())
    other = fresh()
    with torch.no_grad():
        other.model.get_output_embeddings().weight[0, 0] += 1
    refused("another model", other, resume_from_checkpoint="last")
    refused("another noise", fresh(), resume_from_checkpoint="last", noise=ARMS["plain"])
    refused("another lora", fresh(), resume_from_checkpoint="last", lora=LoraSettings(rank=2))
    mllm = fresh()
    fewer = Subset(AnswerExamples(questions, mllm.prompting), range(3))
    refused("another examples", mllm, fewer, resume_from_checkpoint="last")
    elsewhere = str(begun / "checkpoint-1")
    refused("another model", other, folder=tmp_path / "new", resume_from_checkpoint=elsewhere)
    assert not (tmp_path / "new").exists()
    refused("is missing", fresh(), resume_from_checkpoint=str(tmp_path / "no" / "checkpoint-1"))


def test_a_folder_with_a_model_is_never_overwritten(
    fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path
) -> None:
    mllm = fresh()
    mllm.model.save_pretrained(tmp_path)
    before = contents(tmp_path)
    for resume in (None, "last"):
        with pytest.raises(ResumeError, match="holds a model"):
            settings = arguments(tmp_path, resume_from_checkpoint=resume)
            train(mllm, settings, AnswerExamples(questions, mllm.prompting))
    assert contents(tmp_path) == before


# --- several processes --------------------------------------------------------------------------


ONE_RUN_AFTER_THE_OTHER = """
import json, sys, torch
from ragvl.cli import app
torch.set_num_threads(1)
for flags in json.loads(sys.argv[1]):
    app(flags, standalone_mode=False)
"""


@pytest.mark.slow
def test_two_processes_train_as_one_does(
    tiny_model: Callable[[str], Path], small_world: Path, tmp_path: Path
) -> None:
    """Answers of one length: then the mean over both processes' batches is that over one."""
    ranking = tmp_path / "ranking.jsonl"
    lines = [
        {"question": q.text, "document": document, "answer": answer}
        for q in WebQA(small_world, split="train").questions
        for answer, document in (("Yes", q.gold[0]), ("No", q.negatives[0]))
    ]
    ranking.write_text("\n".join(map(json.dumps, lines)))

    def flags(processes: int, out: Path, *sharing: str) -> list[str]:
        settings = {
            "model": tiny_model("llava"), "data": small_world, "output_dir": out,
            "max_steps": 3, "save_steps": 3, "learning_rate": 1e-3, "logging_steps": 1,
            "per_device_train_batch_size": 4 // processes, "ranking": ranking,
            "eval_ranking": ranking, "eval_strategy": "steps", "eval_steps": 3,
            "use_cpu": "true", "disable_tqdm": "true", "report_to": "none",
        }  # fmt: skip
        return ["train", "reranker", *(f"--{k}={v}" for k, v in settings.items()), *sharing]

    one, two = tmp_path / "one", {name: tmp_path / name for name in ("ddp", "fsdp")}
    outcome = CliRunner().invoke(app, flags(1, one))
    assert outcome.exit_code == 0, outcome.output
    runs = flags(2, two["ddp"]), flags(2, two["fsdp"], "--fsdp=true", "--fsdp_config=fsdp")
    # What torchrun tells each of two processes
    together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    together |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29431"}
    launched = [
        Process(ONE_RUN_AFTER_THE_OTHER, json.dumps(runs), RANK=rank, LOCAL_RANK=rank, **together)
        for rank in "01"
    ]
    for process in launched:
        code, printed = process.ended()
        assert code == 0, printed[-3000:]
    assert len(curve(one)) == 3
    (accuracy,) = accuracies(one)
    for name, folder in two.items():
        assert curve(folder) == pytest.approx(curve(one), rel=1e-4), name
        assert accuracies(folder) == [accuracy], name
        assert MLLM.from_pretrained(folder, device="cpu").architecture == "llava"


def accuracies(folder: Path) -> list[float]:
    return [entry["eval_accuracy"] for entry in history(folder) if "eval_accuracy" in entry]


# --- bad input ----------------------------------------------------------------------------------


def test_weights_that_are_not_numbers(
    fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path
) -> None:
    mllm = fresh()
    with torch.no_grad():
        mllm.model.get_output_embeddings().weight[3] = float("nan")
    with pytest.raises(TrainingDivergedError, match="loss of step 1 is nan"):
        train(mllm, arguments(tmp_path), AnswerExamples(questions, mllm.prompting))
    assert not list(tmp_path.rglob("*.safetensors"))
    assert "forward" not in vars(mllm.model), "the model is as it was"


def test_a_vocabulary_larger_than_the_head(
    fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path
) -> None:
    mllm = fresh()
    mllm.prompting.tokenizer.add_tokens([f"new{i}" for i in range(2000)])
    with pytest.raises(UnsupportedModelError, match="resize_token_embeddings"):
        train(mllm, arguments(tmp_path / "new"), AnswerExamples(questions, mllm.prompting))
    assert not (tmp_path / "new").exists()


def test_half_precision_weights(
    fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path
) -> None:
    mllm = fresh(dtype="float16")
    with pytest.raises(UnsupportedModelError, match="float16"):
        train(mllm, arguments(tmp_path / "new"), AnswerExamples(questions, mllm.prompting))
    assert not (tmp_path / "new").exists()


def test_examples_that_cannot_be_used(fresh: Callable[..., MLLM], tmp_path: Path) -> None:
    mllm = fresh()
    long = Example(mllm.prompting.render("{q}", q="long " * mllm.prompting.max_length), [], "yes")
    lacking = Example(mllm.prompting.render("<image>\nWhat is it?"), [], "yes")
    for examples, error, complaint in (
        ([], ValueError, "no examples"),
        ([long], PromptTooLongError, "takes at most"),
        ([lacking], ValueError, "1 places for images and 0 came"),
    ):
        with pytest.raises(error, match=complaint):
            train(mllm, arguments(tmp_path / "new"), examples)  # type: ignore[arg-type]
        assert not (tmp_path / "new").exists()
