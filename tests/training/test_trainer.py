"""Training learns, goes on where it was killed, and touches nothing that is another run's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES
from torch.utils.data import Subset
from transformers import TrainingArguments

from ragvl.data.webqa import WebQA
from ragvl.mllm import MLLM, PromptTooLongError, UnsupportedModelError
from ragvl.training.adapters import LoraSettings
from ragvl.training.command import run
from ragvl.training.examples import AnswerExamples, Example, RankingExamples
from ragvl.training.noise import ARMS
from ragvl.training.ranking import RankingSample
from ragvl.training.trainer import (
    ResumeError,
    TrainingDivergedError,
    is_finished,
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


def test_it_learns_by_heart(fresh: Callable[..., MLLM], questions: WebQA, tmp_path: Path) -> None:
    mllm = fresh("internvl")
    examples = Subset(AnswerExamples(questions, mllm.prompting, num_pictures=2), range(4))
    figures = arguments(
        tmp_path, max_steps=40, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=20,
        save_strategy="steps", save_steps=40,
    )  # fmt: skip
    train(mllm, figures, examples, noise=ARMS["token"], eval_examples=examples)
    found = [entry for entry in history(tmp_path) if "eval_loss" in entry]
    assert [entry["step"] for entry in found] == [20, 40]
    assert found[-1]["eval_accuracy"] == 1
    assert found[-1]["eval_loss"] < 0.1
    # and the saved model writes those answers
    saved = MLLM.from_pretrained(tmp_path, device="cpu")
    for example in examples:
        images = [saved.prompting.encode_image(document.load()) for document in example.documents]
        prompt = saved.prompting.encode_prompt(example.prompt, images)
        assert saved.generate([prompt], max_new_tokens=16) == [example.answer]


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


def command(model: Path, world: Path, out: Path, **changed: Any) -> list[str]:
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
    flags = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "ragvl.cli", "train", "generator", *flags]


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
    model = tiny_model("llava")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(model, small_world, whole), check=True, capture_output=True)
    flags = command(model, small_world, broken)[3:]
    killed = subprocess.run([sys.executable, "-c", DYING_AT_STEP_7, *flags], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (broken / "checkpoint-5" / "trainer_state.json").exists()
    resumed = command(model, small_world, broken, resume_from_checkpoint="last")
    subprocess.run(resumed, check=True, capture_output=True)
    assert len(curve(whole)) == 30
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


@pytest.mark.parametrize("cut", [False, True], ids=["whole weights", "weights cut short"])
def test_a_run_killed_while_it_saves_is_done_again(
    cut: bool, tiny_model: Callable[[str], Path], small_world: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = {"max_steps": 2, "save_strategy": "no", "resume_from_checkpoint": "last"}

    def flags(out: Path, **changed: Any) -> list[str]:
        found = command(tiny_model("llava"), small_world, out, **settings | changed)
        return found[found.index("train") :]

    outcome = subprocess.run([sys.executable, "-c", DYING, *flags(broken)], capture_output=True)
    assert outcome.returncode == -signal.SIGKILL, outcome.stderr
    weights = broken / "model.safetensors"
    assert (broken / "config.json").exists() and weights.exists(), "the test's premise"
    assert not (broken / "processor_config.json").exists()
    if cut:
        weights.write_bytes(weights.read_bytes()[:1000])
    assert not is_finished(broken)

    left = contents(broken)
    for changed in ({"resume_from_checkpoint": "null"}, {"noise.timestep": 300}):
        with pytest.raises(ResumeError):  # not asked to go on; another run
            run("generator", flags(broken, **changed)[2:])
        assert contents(broken) == left
    for out in (whole, broken):
        run("generator", flags(out)[2:])
        assert is_finished(out)
    assert weights.read_bytes() == (whole / "model.safetensors").read_bytes()
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "sharing", [[], ["--fsdp", "true", "--fsdp_config", "fsdp"]], ids=["ddp", "fsdp"]
)
def test_two_processes_train_as_one_does(
    sharing: list[str], tiny_model: Callable[[str], Path], small_world: Path, tmp_path: Path
) -> None:
    """Answers of one length: then the mean over both processes' batches is that over one."""
    model = tiny_model("llava")
    one, two = tmp_path / "one", tmp_path / "two"
    ranking = tmp_path / "ranking.jsonl"
    source = WebQA(small_world, split="train")
    lines = [
        {"question": q.text, "document": document, "answer": answer}
        for q in source.questions
        for answer, document in (("Yes", q.gold[0]), ("No", q.negatives[0]))
    ]
    ranking.write_text("\n".join(map(json.dumps, lines)))

    def flags(out: Path, batch_size: int) -> list[str]:
        whole = command(
            model, small_world, out, max_steps=6, save_steps=6,
            per_device_train_batch_size=batch_size, ranking=ranking, eval_ranking=ranking,
        )  # fmt: skip
        found = whole[whole.index("generator") + 1 :]
        for name in ("--noise.data_level", "--noise.token_level"):
            del found[found.index(name) : found.index(name) + 2]
        return ["train", "reranker", *found, "--eval_strategy", "steps", "--eval_steps", "6"]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "ragvl.cli", *flags(one, 4)],
        check=True, capture_output=True, env=environment,
    )  # fmt: skip
    launched = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launched += ["--master_port", "29431", "-m", "ragvl.cli", *flags(two, 2), *sharing]
    outcome = subprocess.run(launched, capture_output=True, env=environment, text=True)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert len(curve(one)) == 6
    assert curve(two) == pytest.approx(curve(one), rel=1e-4)
    accuracies = [
        [entry["eval_accuracy"] for entry in history(folder) if "eval_accuracy" in entry]
        for folder in (one, two)
    ]
    assert len(accuracies[0]) == 1
    assert accuracies[1] == accuracies[0]
    assert MLLM.from_pretrained(two, device="cpu").architecture == "llava"


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
        ([long], PromptTooLongError, "context"),
        ([lacking], ValueError, "1 places for images and 0 came"),
    ):
        with pytest.raises(error, match=complaint):
            train(mllm, arguments(tmp_path / "new"), examples)  # type: ignore[arg-type]
        assert not (tmp_path / "new").exists()
