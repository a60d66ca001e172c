"""Trains and evaluates a grid of settings, several seeds each: `ragvl ablate`; see `grid`."""

from __future__ import annotations

import gc
import json
import logging
import math
import shutil
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student

from ragvl.ablation.grid import UNTRAINED, AblationSettings, Problems, Run
from ragvl.ablation.table import arm_settings, markdown, table
from ragvl.data.formats import Purpose, open_questions
from ragvl.data.images import ImageError
from ragvl.data.questions import Question, QuestionSet
from ragvl.doctor import machine, versions
from ragvl.evaluation.answers import lemmatizer
from ragvl.evaluation.evaluate import EvaluationSettings, evaluate
from ragvl.evaluation.results import ResultFileError, read_ablation_run
from ragvl.evaluation.robustness import TEST_NOISE, accuracy_by_condition
from ragvl.evaluation.stages import Models
from ragvl.files import write_text
from ragvl.generator import Generator
from ragvl.identity import file_bytes_name, file_marks, name_of
from ragvl.messages import MAX_ERROR, reason
from ragvl.mllm import MLLM
from ragvl.reranker import Reranker
from ragvl.retriever import DualEncoder
from ragvl.training.command import Plan, RunSettings
from ragvl.training.command import run as train
from ragvl.training.trainer import ResumeError, is_finished

__all__ = ["AblationSettings", "ablate", "arm_settings", "data_fingerprint", "markdown", "table"]

logger = logging.getLogger(__name__)

_RERANKER_MEASURES = ("recall@1", "f1")
_READ_WHOLE = {".json", ".jsonl", ".gz", ".yaml", ".yml", ".csv", ".txt"}
_READ_WHOLE_BYTES = 2**30
# Settings of a run that make no difference to what it finds
_NO_INGREDIENTS = ("config", "output_dir", "resume_from_checkpoint", "report_to", "disable_tqdm")


@dataclass(frozen=True)
class _Job:
    """A run, with all that it is made from.

    Attributes:
        run: the run.
        plan: its settings.
        model: fingerprint of the model that it starts from.
        result: the file of what it found, named by everything that this depends on.
        folder: its model, while there is one.
    """

    run: Run
    plan: Plan
    model: str
    result: Path
    folder: Path


def ablate(
    settings: AblationSettings,
    work: Path,
    *,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Does the runs that `work` does not hold yet; returns all results.

    A run that was broken off goes on from its last checkpoint, if it saved one. One that fails does
    not end the others; the next call tries it again.

    Args:
        settings: the grid.
        work: keeps each run's result, under a name that says what it depends on: its settings, the
            weights it starts from, and the data.
        report: gets a line after each run.

    Returns:
        `arms`: of each that was measured, its `changes`, its `settings` (every one that is not the
        same in all arms, and its noise), the `seeds` done, the `model` it started from, its
        `training` (samples, steps, epochs) and, by measure, `values` (one a seed), `mean`, and the
        ends `low` and `high` of the mean's 95 % interval; `gain` is the same of the difference to
        the first arm, `baseline`, seed by seed. Intervals are Student's over seeds: they tell how
        much of a difference is the luck of a training run, on these test questions.
        `failed`: of each run that failed, its `arm`, `seed` and `reason`.
        Besides, what measured it: `machine`, `versions`, `lemmatizer`, `encoder`, `test_noise`.

    Raises:
        ValueError: settings or data that cannot be used, noticed before anything is trained, or no
            run that did not fail.
        OSError: the test's data or encoder is not there.
    """
    work.mkdir(parents=True, exist_ok=True)
    test = _Test.prepare(settings)
    jobs = _jobs(settings, test, work)
    done: list[tuple[_Job, dict[str, Any]]] = []
    failed: list[dict[str, Any]] = []
    for job in jobs:
        found, reason = _do(job, settings, test)
        if found is not None:
            done.append((job, found))
            report(f"{job.run.arm}, seed {job.run.seed}: {_measured(found['measures'])}")
        else:
            failed.append({"arm": job.run.arm, "seed": job.run.seed, "reason": reason})
            report(f"{job.run.arm}, seed {job.run.seed}: failed: {reason}")
    if not done:
        raise ValueError(settings.in_file(f"every run failed, the first: {failed[0]['reason']}"))
    return {
        "stage": settings.stage,
        "test": test.source.name,
        "num_questions": done[0][1]["num_questions"],
        "settings": settings.settings,
        "seeds": settings.seeds,
        "baseline": _baseline(settings),
        "arms": _arms(jobs, done, _baseline(settings)),
        "failed": failed,
        "encoder": test.encoder and test.encoder.fingerprint,
        "lemmatizer": test.lemmatizer,
        "test_noise": dict(TEST_NOISE) if settings.stage == "generator" else None,
        **_measured_by([found for _, found in done]),
    }


# --- what runs are made from --------------------------------------------------------------------


@dataclass(frozen=True)
class _Test:
    """What every model of a grid is asked.

    Attributes:
        source: the data.
        questions: of a generator: those that can be asked.
        encoder: of a reranker.
        lemmatizer: of WebQA's answers.
        name: names all of it.
    """

    source: QuestionSet
    questions: Sequence[Question]
    encoder: DualEncoder | None
    lemmatizer: str | None
    name: str

    @classmethod
    def prepare(cls, settings: AblationSettings) -> _Test:
        test = settings.test
        source = open_questions(test.data, split=test.split)
        encoder, words, questions = None, None, []
        if settings.stage == "reranker":
            encoder = DualEncoder.from_pretrained(str(test.encoder))
        else:
            questions = [q for q in source.questions if q.gold and q.answers][: test.num_questions]
            words = lemmatizer()[0] if source.answer_metric == "webqa" else None
            if not questions:
                raise ValueError(
                    settings.in_file(f"{source.name} has no question with documents and an answer")
                )
        name = name_of(
            "test",
            test.model_dump_json(),
            data_fingerprint(test.data, source),
            encoder and encoder.fingerprint,
            words,
            dict(TEST_NOISE),
        )
        return cls(source, questions, encoder, words, name)


def data_fingerprint(path: Path, source: QuestionSet) -> str:
    """Names the content of a data set.

    Its annotations are read; of its pictures, and of files as large as imgs.tsv, what
    `identity.file_marks` takes.

    Args:
        path: what `source` was opened from.
        source: one split of it.

    Raises:
        OSError: a file is gone.
    """
    files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
    names = [(file.name, _file_name(file)) for file in [*sorted(files), *_picture_files(source)]]
    return name_of("data", names)


def _picture_files(source: QuestionSet) -> Iterator[Path]:
    for id in source.document_ids():
        try:
            path = source.document(id).path
        except ImageError:
            continue
        if path is None:
            return  # they are rows of one file, which lies beside the annotations
        yield Path(path)


def _file_name(file: Path) -> str:
    size = file.stat().st_size
    is_read = file.suffix in _READ_WHOLE and size <= _READ_WHOLE_BYTES
    return file_bytes_name(file) if is_read else file_marks(file)


class _Ingredients:
    """What runs are made from; each is looked at once, however many runs share it."""

    def __init__(self) -> None:
        self.model = cache(self._model)
        self._data = cache(self._data_of)

    def data(self, planned: Plan) -> list[str]:
        """Names the content of what a run learns from."""
        run = planned.run
        splits = [run.split] if run.eval_split is None else [run.split, run.eval_split]
        found = [self._data(run.data, split, "train") for split in splits]
        if planned.ranking is not None:
            files = (planned.ranking.ranking, planned.ranking.eval_ranking)
            found += [_file_name(file) for file in files if file is not None]
        return found

    @staticmethod
    def _model(name: str, dtype: str, attention: str | None, trust: bool) -> str:
        settings = RunSettings(
            name, Path(), dtype=dtype, attn_implementation=attention, trust_remote_code=trust
        )
        return settings.load_model().fingerprint

    @staticmethod
    def _data_of(path: Path, split: str | None, purpose: Purpose) -> str:
        return data_fingerprint(path, open_questions(path, split=split, purpose=purpose))


def _jobs(settings: AblationSettings, test: _Test, work: Path) -> list[_Job]:
    """Every run, with a name for all that it depends on.

    Raises:
        ValueError: runs cannot be made from what is there; the message names them.
    """
    jobs, problems, ingredients = [], Problems(), _Ingredients()
    for run, planned in settings.planned():
        of = planned.run
        try:
            model = ingredients.model(
                of.model, of.dtype, of.attn_implementation, of.trust_remote_code
            )
            learned: list[str] = []
            if run.arm != UNTRAINED:
                learned = [*ingredients.data(planned), _values(planned)]
        except (ValueError, OSError, ImportError) as error:
            problems.add(run, error)
            continue
        name = name_of("run", settings.stage, test.name, model, learned)
        jobs.append(_Job(run, planned, model, work / f"run-{name}.json", work / f"model-{name}"))
    settings.refuse(problems)
    return jobs


def _values(planned: Plan) -> str:
    kept = {key: v for key, v in planned.values.items() if key not in _NO_INGREDIENTS}
    return json.dumps(kept, sort_keys=True, default=str)


# --- a run --------------------------------------------------------------------------------------


def _do(job: _Job, settings: AblationSettings, test: _Test) -> tuple[dict[str, Any] | None, str]:
    """Does a run, unless it is done; returns what it found, or None and why it failed."""
    try:
        return read_ablation_run(job.result), ""
    except FileNotFoundError:
        pass
    except (ResultFileError, OSError) as error:
        logger.warning("%s; the run is done again", error)
    try:
        result = _one_run(job, settings, test)
    except Exception as error:  # whatever it is, the other runs go on
        why = f"{type(error).__name__}: {reason(error, MAX_ERROR)}"
    else:
        write_text(job.result, json.dumps(result) + "\n")
        return result, ""
    gc.collect()  # its tensors, which the next run may need the room of
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, why


def _one_run(job: _Job, settings: AblationSettings, test: _Test) -> dict[str, Any]:
    """Trains, evaluates, and takes the model away."""
    model = job.plan.run.model
    if job.run.arm != UNTRAINED:
        if not is_finished(job.folder):
            _train(settings, job)
        model = str(job.folder)
    mllm = MLLM.from_pretrained(model, trust_remote_code=job.plan.run.trust_remote_code)
    result = {
        "arm": job.run.arm,
        "seed": job.run.seed,
        **(
            _ask_reranker(mllm, settings, test, job.folder.parent / "vectors")
            if test.encoder is not None
            else _ask_generator(mllm, settings, test)
        ),
        **_training(job.folder),
        "machine": machine(),
        "versions": versions(),
    }
    if not settings.keep_models:
        shutil.rmtree(job.folder, ignore_errors=True)
    return result


def _train(settings: AblationSettings, job: _Job) -> None:
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
        "training": {
            "samples": noted["examples"],
            "steps": state["global_step"],
            "epochs": state["epoch"],
        },
        "losses": [entry["loss"] for entry in state["log_history"] if "loss" in entry],
    }


def _ask_generator(mllm: MLLM, settings: AblationSettings, test: _Test) -> dict[str, Any]:
    by_condition = accuracy_by_condition(
        Generator(mllm), test.source, test.questions, max_new_tokens=settings.test.max_new_tokens
    )
    measures = {name: statistics.fmean(values) for name, values in by_condition.items()}
    return {"measures": measures, "num_questions": len(test.questions)}


def _ask_reranker(
    mllm: MLLM, settings: AblationSettings, test: _Test, work: Path
) -> dict[str, Any]:
    assert test.encoder is not None
    evaluated = evaluate(
        test.source,
        Models(test.encoder, Reranker(mllm, template=test.source.template)),
        EvaluationSettings(
            pools=("full",),
            num_candidates=settings.test.num_candidates,
            num_questions=settings.test.num_questions,
            num_timed=0,
        ),
        work=work,
        progress=False,
    )
    found = evaluated.figures["pools"]["full"]
    figures = {**found["reranked"], **found["kept"]["natural"]}
    return {
        "measures": {name: figures[name]["value"] for name in _RERANKER_MEASURES},
        "num_questions": evaluated.figures["num_questions"],
    }


def _measured(measures: Mapping[str, float]) -> str:
    return ", ".join(f"{measure} {100 * value:.1f}" for measure, value in measures.items())


# --- results ------------------------------------------------------------------------------------


def _baseline(settings: AblationSettings) -> str:
    return next(run.arm for run in settings.runs() if run.arm != UNTRAINED)


def _arms(
    jobs: Sequence[_Job], done: Sequence[tuple[_Job, dict[str, Any]]], baseline: str
) -> dict[str, dict[str, Any]]:
    """What was measured of each arm, in the grid's order."""
    by_arm: dict[str, dict[int, dict[str, float]]] = {}
    for job, found in done:
        by_arm.setdefault(job.run.arm, {})[job.run.seed] = found["measures"]
    first = {job.run.arm: (job, found) for job, found in reversed(done)}
    told = _told_settings([job.plan for job in jobs if job.run.arm != UNTRAINED])
    arms = {}
    for arm in dict.fromkeys(job.run.arm for job in jobs if job.run.arm in by_arm):
        job, found = first[arm]
        trained = arm != UNTRAINED
        arms[arm] = {
            "changes": job.run.changes,
            "settings": {name: _plain(job.plan.values[name]) for name in told} if trained else {},
            "seeds": list(by_arm[arm]) if trained else [],
            "model": job.model,
            "training": found.get("training"),
            "measures": {
                measure: {
                    **_summary([measures[measure] for measures in by_arm[arm].values()]),
                    "gain": _gain(by_arm[arm], by_arm.get(baseline, {}), measure)
                    if arm not in (baseline, UNTRAINED)
                    else None,
                }
                for measure in found["measures"]
            },
        }
    return arms


def _told_settings(plans: Sequence[Plan]) -> list[str]:
    """Names of the settings that runs differ in, and those of a generator's noise."""
    values = [planned.values for planned in plans]
    return [
        name
        for name in values[0]
        if name.startswith("noise.")
        or (name not in (*_NO_INGREDIENTS, "seed") and len({str(v.get(name)) for v in values}) > 1)
    ]


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _gain(
    found: Mapping[int, Mapping[str, float]],
    baseline: Mapping[int, Mapping[str, float]],
    measure: str,
) -> dict[str, Any] | None:
    """The difference, of the seeds that both arms have."""
    gains = [found[seed][measure] - baseline[seed][measure] for seed in found if seed in baseline]
    return _summary(gains) if gains else None


def _summary(values: Sequence[float]) -> dict[str, Any]:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"values": list(values), "mean": mean, "low": None, "high": None}
    reach = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return {"values": list(values), "mean": mean, "low": mean - reach, "high": mean + reach}


def _measured_by(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where most runs were done, and where the others were."""
    found = Counter(json.dumps([result["machine"], result["versions"]]) for result in results)
    (here, its_versions), *others = [json.loads(text) for text, _ in found.most_common()]
    also = [{"machine": other, "versions": its} for other, its in others]
    return {"machine": here, "versions": its_versions, "also_measured_by": also}
