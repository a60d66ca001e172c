"""Trains and tests one model of a grid."""

from __future__ import annotations

import gc
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from ragvl.ablation.grid import UNTRAINED, AblationSettings
from ragvl.ablation.jobs import Job
from ragvl.ablation.result import FailedRun, RunResult, Training, read_run
from ragvl.ablation.test_set import TestSet
from ragvl.doctor import machine, versions
from ragvl.evaluation.result import ResultFileError, to_json
from ragvl.files import write_text
from ragvl.messages import MAX_ERROR, reason
from ragvl.mllm import MLLM
from ragvl.training.command import run as train
from ragvl.training.run_record import is_finished
from ragvl.training.trainer import ResumeError

logger = logging.getLogger(__name__)


def do_run(job: Job, settings: AblationSettings, test: TestSet) -> RunResult | FailedRun:
    """A run's result: the one that is kept, or that of doing it."""
    try:
        return read_run(job.result)
    except FileNotFoundError:
        pass
    except (ResultFileError, OSError) as error:
        logger.warning("%s; the run is done again", error)
    try:
        result = _train_and_test(job, settings, test)
    except Exception as error:  # whatever it is, the other runs go on
        why = f"{type(error).__name__}: {reason(error, MAX_ERROR)}"
    else:
        write_text(job.result, json.dumps(to_json(result)) + "\n")
        return result
    gc.collect()  # its tensors, which the next run may need the room of
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return FailedRun(job.run.arm, job.run.seed, why)


def _train_and_test(job: Job, settings: AblationSettings, test: TestSet) -> RunResult:
    """Trains, tests, and takes the model away."""
    model = job.plan.run.model
    if job.run.arm != UNTRAINED:
        if not is_finished(job.folder):
            _train(settings, job)
        model = str(job.folder)
    mllm = MLLM.from_pretrained(model, trust_remote_code=job.plan.run.trust_remote_code)
    measures, num_questions = test.measure(mllm, job.folder.parent / "vectors")
    result = RunResult(
        arm=job.run.arm,
        seed=job.run.seed,
        measures=measures,
        num_questions=num_questions,
        **_training(job.folder),
        machine=machine(),
        versions=versions(),
    )
    if not settings.keep_models:
        shutil.rmtree(job.folder, ignore_errors=True)
    return result


def _train(settings: AblationSettings, job: Job) -> None:
    flags = settings.flags(job.run, job.folder)
    try:
        train(settings.stage, flags)
    except ResumeError:  # what is there is of no use
        shutil.rmtree(job.folder)
        train(settings.stage, flags)


def _training(folder: Path) -> dict[str, Any]:
    """What `train` noted of a run; nothing of the untrained model."""
    if not folder.exists():
        return {}
    state = json.loads((folder / "trainer_state.json").read_text())
    noted = json.loads((folder / "ragvl_run.json").read_text())
    return {
        "training": Training(noted["examples"], state["global_step"], state["epoch"]),
        "token_weights": noted.get("token_weights", {}),
        "losses": [entry["loss"] for entry in state["log_history"] if "loss" in entry],
    }
