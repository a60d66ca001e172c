"""Trains rerankers and generators: Hugging Face's Trainer with ragvl's loss inside the model."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from ragvl.arguments import checked_image_tokens
from ragvl.files import follow_umask
from ragvl.mllm import IMAGE_TOKENS, MLLM, UnsupportedModelError
from ragvl.mllm.int8 import is_rounded
from ragvl.model_files import (
    ADAPTER_WEIGHTS,
    WEIGHTS,
    WEIGHTS_INDEX,
    check_weights,
    weight_files,
)
from ragvl.reranker.presets import TRAINED_TEMPLATE
from ragvl.runtime import warn_of_slow_products
from ragvl.training.adapters import LoraSettings, layers_to_adapt, trainable
from ragvl.training.examples import Collator, Example
from ragvl.training.fewer_image_tokens import check_trainable, through_backward
from ragvl.training.noise import NoiseSettings, install_loss, uninstall_loss
from ragvl.training.run_record import RUN_FILE, note_run, noted_run
from ragvl.training.token_weights import TokenWeights

logger = logging.getLogger(__name__)

_STATE_FILE = "trainer_state.json"


class ResumeError(ValueError):
    """The folder holds another run, or one that is not to be resumed; nothing is overwritten."""


class TrainingStoppedError(KeyboardInterrupt):
    """Training was interrupted; the message says how far it came, and what is left of it."""


class TrainingDivergedError(ArithmeticError):
    """The loss is not a number; the weights are those of the step before."""


def train(
    mllm: MLLM,
    arguments: TrainingArguments,
    examples: Dataset[Example],
    *,
    noise: NoiseSettings | None = None,
    lora: LoraSettings | None = None,
    freeze_vision: bool = True,
    image_tokens: float | None = None,
    template: str | None = None,
    eval_examples: Dataset[Example] | None = None,
    questions: Collection[str] = (),
) -> dict[str, float]:
    """Trains `mllm.model` in place and saves it, with its processor, in `arguments.output_dir`.

    What is saved loads as any checkpoint: adapters are merged into the weights at the end (the
    checkpoints on the way hold them apart). Where `arguments.resume_from_checkpoint` is given,
    training goes on from there: "last" is the last whole one in the folder, if there is any, else
    it is a checkpoint's folder. It sees the data and the noise that an unbroken run would have
    seen. What a run left that was killed while it saved is written over then; see `is_finished`.

    Ctrl-C (in the main thread, of one process) ends it after the step, with a checkpoint; a second
    time, at once.

    Args:
        mllm: the model to start from, on the CPU: float32, or bfloat16 with adapters. Trainer moves
            it to its device.
        arguments: Hugging Face's. The folder must not hold another run.
        examples: what to learn.
        noise: what is noised; None for nothing.
        lora: adapters; None trains the weights themselves.
        freeze_vision: vision tower and projector stay as they are.
        image_tokens: the share of each picture's tokens that a prompt's end sees, as with
            `PrefixCache(image_tokens=...)`; what is saved says so, and a `Reranker` heeds it. None
            is what `mllm` was trained with. Less than 1 takes a forward pass more.
        template: the name of the template that the examples' prompts are in, which is that of a
            `Reranker` of what is saved, too; None for a generator.
        eval_examples: as often as `arguments.eval_strategy` says: `eval_loss`, without noise, and
            `eval_accuracy`, the share of examples whose answer is the likeliest in every token,
            given those before it.
        questions: names of the questions that the examples are about, to be kept with the model;
            see `learned_questions`.

    Returns:
        Trainer's figures: train_loss, train_runtime, ... With noise at the token level its log, and
        at the end ragvl_run.json, say how the answers' tokens were weighed (`TokenWeights`; of the
        first process, since training was last taken up).

    Raises:
        ResumeError: the folder, or the checkpoint, belongs to another run, or it holds one and
            `arguments.resume_from_checkpoint` is not given.
        TrainingDivergedError: the loss is NaN or infinite.
        TrainingStoppedError: it was interrupted; the message says what there is to go on from.
        UnsupportedModelError: the loss cannot be computed for this model or with these arguments.
        ValueError: there are no examples, or `lora.target_modules` names no layer that may train.
        ImageError, PromptTooLongError: of an example.
    """
    noise, lora = noise or NoiseSettings(), lora or LoraSettings()
    if image_tokens is not None and checked_image_tokens(image_tokens) != mllm.image_tokens:
        setattr(mllm.model.config, IMAGE_TOKENS, float(image_tokens))  # is saved with the weights
    if template != getattr(mllm.model.config, TRAINED_TEMPLATE, None):
        setattr(mllm.model.config, TRAINED_TEMPLATE, template)
    _check(mllm, arguments, examples)
    if lora.rank:
        layers_to_adapt(mllm, lora, freeze_vision=freeze_vision)  # refuses what matches nothing
    run = {
        "model": mllm.fingerprint,
        "examples": len(examples),  # type: ignore[arg-type]
        "noise": asdict(noise),
        "lora": asdict(lora),
        "freeze_vision": freeze_vision,
    }
    mllm.release_weights()  # they move to Trainer's device
    with arguments.main_process_first():  # the others find the file, which is the same
        checkpoint = _claim_folder(arguments, run, questions)
    token_weights = install_loss(mllm, noise, image_tokens=mllm.image_tokens)
    try:
        figures = _train(
            mllm,
            arguments,
            examples,
            lora,
            freeze_vision,
            eval_examples,
            checkpoint,
            token_weights,
        )
    finally:
        uninstall_loss(mllm)
    if arguments.process_index == 0:
        if weighed := token_weights.total():
            run["token_weights"] = weighed
        note_run(Path(str(arguments.output_dir)), run, questions, finished=True)
    return figures


def _train(
    mllm: MLLM,
    arguments: TrainingArguments,
    examples: Dataset[Example],
    lora: LoraSettings,
    freeze_vision: bool,
    eval_examples: Dataset[Example] | None,
    checkpoint: str | None,
    token_weights: TokenWeights,
) -> dict[str, float]:
    set_seed(arguments.seed)  # of adapters' first weights; Trainer sets it only later
    model = trainable(mllm, lora, freeze_vision=freeze_vision)
    arguments.remove_unused_columns = False  # examples are no tensors yet
    arguments.label_names = ["labels"]
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=eval_examples,
        data_collator=Collator(mllm, marks_prefixes=mllm.image_tokens < 1),
        processing_class=mllm.prompting.processor,
        compute_metrics=_accuracy,
    )
    trainer.token_weights = token_weights
    trainer.hides_tokens = mllm.image_tokens < 1
    # The loss is a mean over each batch, however many labels it has
    trainer.model_accepts_loss_kwargs = False
    stop = _StopAfterStep()
    trainer.add_callback(stop)
    try:
        with stop.listening() if arguments.world_size == 1 else nullcontext():
            output = trainer.train(resume_from_checkpoint=checkpoint)
        if trainer.state.global_step < trainer.state.max_steps and stop.asked:
            raise KeyboardInterrupt
    except BaseException as error:
        if lora.rank:
            mllm.model = model.unload()  # weights and layers as they were
        # Ctrl-C ends the processes that make batches, too, which is an error then
        if isinstance(error, KeyboardInterrupt) or (stop.asked and isinstance(error, RuntimeError)):
            raise _stopped(trainer.state, Path(str(arguments.output_dir))) from error
        raise
    model.eval()
    if lora.rank:
        mllm.model = model.merge_and_unload()
    if trainer.is_fsdp_enabled:
        trainer.save_model()  # gathers what the processes share
    elif trainer.is_world_process_zero():
        mllm.model.save_pretrained(arguments.output_dir)
        follow_umask(*Path(str(arguments.output_dir)).glob("*.safetensors"))
        mllm.prompting.processor.save_pretrained(arguments.output_dir)
    trainer.save_state()  # trainer_state.json: every loss and evaluation
    return output.metrics


class _StopAfterStep(TrainerCallback):
    """Makes of Ctrl-C a checkpoint and an end, after the step that is under way.

    In the middle of a step there is no state that training could go on from.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """A block in which Ctrl-C is taken for this.

        Only the main thread can hear it; a process in the background that ignores it still does.
        """
        can_hear = threading.current_thread() is threading.main_thread()
        if not can_hear or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            yield
            return
        before = signal.signal(signal.SIGINT, self._hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _hear(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        logger.warning("stopping after this step, with a checkpoint; again to stop at once")

    def on_step_end(self, *given: Any, **_: Any) -> None:
        """Has the step saved; called by Trainer with its arguments, state and control."""
        *_others, control = given
        if self.asked:
            control.should_save = True
            control.should_evaluate = False

    def on_save(self, *given: Any, **_: Any) -> None:
        """Ends training; not earlier, since the checkpoint would say that it is to end."""
        *_others, control = given
        control.should_training_stop |= self.asked


def _stopped(state: TrainerState, folder: Path) -> TrainingStoppedError:
    last = _last_whole_checkpoint(folder)
    how_far = "stopped before the first step"
    if state.global_step:
        how_far = f"stopped after step {state.global_step} of {state.max_steps}"
    if last is None:
        return TrainingStoppedError(f"{how_far}; there is no checkpoint to go on from")
    return TrainingStoppedError(
        f"{how_far}; {last} is there: go on with the same command and --resume_from_checkpoint last"
    )


class _Trainer(Trainer):
    token_weights: TokenWeights
    hides_tokens: bool

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs |= self.token_weights.recent()
        super().log(logs, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        with through_backward() if self.hides_tokens else nullcontext():
            loss = super().training_step(*args, **kwargs)
        if not loss.isfinite():  # before the optimizer's step; Trainer reads the loss as well
            raise TrainingDivergedError(
                f"the loss of step {self.state.global_step + 1} is {loss.item()}: look at the "
                "model's weights, or lower learning_rate; the last checkpoint is from before"
            )
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        follow_umask(*Path(output_dir or str(self.args.output_dir)).glob("*.safetensors"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # Trainer's own leaves a weight as it is where the checkpoint has it under the name of the
        # published format, as with most MLLMs (huggingface/transformers#43701)
        model = model or self.model
        if not isinstance(model, PreTrainedModel) or self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        saved = type(model).from_pretrained(
            resume_from_checkpoint, dtype=model.dtype, use_safetensors=True
        )
        model.load_state_dict(saved.state_dict())

    def _load_best_model(self) -> None:
        if not isinstance(self.model, PreTrainedModel) or self.is_fsdp_enabled:
            return super()._load_best_model()
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(prediction.predictions.mean())}


def _check(mllm: MLLM, arguments: TrainingArguments, examples: Dataset[Example]) -> None:
    """What can be checked before the first step."""
    if not len(examples):  # type: ignore[arg-type]
        raise ValueError("no examples to train on")
    num_rows = mllm.model.get_output_embeddings().weight.shape[0]
    num_tokens = max(mllm.prompting.tokenizer.get_vocab().values()) + 1
    if num_tokens > num_rows:
        raise UnsupportedModelError(
            f"the tokenizer has {num_tokens} tokens and the model's head {num_rows} rows: call "
            "model.resize_token_embeddings(), or take the tokenizer that the model was made with"
        )
    plugin = getattr(arguments, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        raise UnsupportedModelError(
            "ZeRO stage 3 shares the head out among processes, and the loss reads it whole: use "
            "stage 2, or FSDP"
        )
    if is_rounded(mllm.model):
        raise UnsupportedModelError(
            "weights of 8 bits are not trained: load them in float32, or in bfloat16"
        )
    if mllm.model.dtype == torch.float16:
        raise UnsupportedModelError(
            "float16 weights underflow in training: load them in float32, or in bfloat16"
        )
    computes_in = torch.bfloat16 if arguments.bf16 else mllm.model.dtype
    warn_of_slow_products(computes_in, arguments.device)
    if mllm.image_tokens < 1:
        check_trainable(mllm)
    # A broken set shows here, before the folder is touched
    Collator(mllm, marks_prefixes=mllm.image_tokens < 1)([examples[0], examples[len(examples) - 1]])  # type: ignore[arg-type]


def _claim_folder(
    arguments: TrainingArguments, run: dict[str, Any], questions: Collection[str]
) -> str | None:
    """The checkpoint to go on from, or None; notes in the folder whose run it is.

    Raises:
        ResumeError: it is another's.
    """
    folder = Path(str(arguments.output_dir))
    resume_from = arguments.resume_from_checkpoint
    has_weights = any(folder.glob("*.safetensors"))
    if resume_from in (None, "", False):
        last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if last or has_weights:
            raise ResumeError(
                f"{folder} holds {Path(last).name if last else 'a model'} already: go on with "
                "resume_from_checkpoint='last', or take another output_dir"
            )
        checkpoint = None
    elif resume_from in ("last", "True", "true", True):
        checkpoint = _last_whole_checkpoint(folder)
        if checkpoint is not None:
            _check_run(folder, run)
        elif has_weights:
            # Without a checkpoint only what a broken-off save left may be written over
            if noted_run(folder).get("finished") is not False:
                raise ResumeError(f"{folder} holds a model and no checkpoint to go on from")
            _check_run(folder, run)
    else:
        checkpoint = str(resume_from)
        _check_run(Path(checkpoint).parent, run)
    if checkpoint is not None:
        _check_weights(Path(checkpoint))
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.process_index == 0:
        note_run(folder, run, questions, finished=False)
    return checkpoint


def _check_weights(checkpoint: Path) -> None:
    """Refuses weights that are damaged, or pickled, which Trainer would read."""
    pickled = next(checkpoint.glob("*model*.bin*"), None)
    if pickled is not None:
        raise ResumeError(f"{pickled} is pickled weights, which can run code and are never read")
    if any((checkpoint / name).is_file() for name in (WEIGHTS, WEIGHTS_INDEX)):
        check_weights(weight_files(checkpoint))
    elif (checkpoint / ADAPTER_WEIGHTS).is_file():
        check_weights({checkpoint / ADAPTER_WEIGHTS: None})


def _last_whole_checkpoint(folder: Path) -> str | None:
    """Passes over one whose saving was broken off: Trainer writes its state last."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=_step_of, reverse=True)
    return next(
        (str(path) for path in checkpoints if _step_of(path) >= 0 and _has_state(path)), None
    )


def _step_of(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _has_state(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / _STATE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return True


def _check_run(folder: Path, run: dict[str, Any]) -> None:
    noted = noted_run(folder)
    if not noted:
        raise ResumeError(
            f"{folder / RUN_FILE} is missing or broken, so it is not known what the checkpoint is "
            "of"
        )
    for name, wanted in run.items():
        if noted.get(name) != wanted:
            raise ResumeError(
                f"{folder} was trained with another {name}: {noted.get(name)} there, "
                f"{wanted} here; nothing was changed"
            )
