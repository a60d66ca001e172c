"""Trains and evaluates a grid of settings, several seeds each, from one YAML file: `ragvl ablate`.

stage: generator                  # or reranker
settings:                         # of `ragvl train`, for every run
  model: ragvl/assets/tiny-base
  data: world
  config: tiny-generator
  max_steps: 100
arms:                             # what each changes; a list makes an arm of each value
  plain: {}
  token level: {noise.token_level: tokens, noise.timestep: [500, 900]}
  low resource: {share: [0.025, 0.05, 0.2]}
seeds: [0, 1, 2]
test: {data: world, split: test}  # a reranker's with its encoder
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.stats import t as student

from ragvl.data.formats import open_questions
from ragvl.data.questions import QuestionSet
from ragvl.evaluation.conditions import CONDITIONS, accuracy_by_condition
from ragvl.evaluation.evaluate import EvaluationSettings, evaluate
from ragvl.evaluation.journal import depending_on
from ragvl.evaluation.stages import Models
from ragvl.generator import Generator
from ragvl.mllm import MLLM
from ragvl.reranker import Reranker
from ragvl.retriever import DualEncoder
from ragvl.training.command import run as train

UNTRAINED = "untrained"
_RERANKER_MEASURES = ("recall@1", "f1")


class TestSettings(BaseModel):
    """What the trained models are asked.

    Attributes:
        data: a data set; see `open_questions`.
        split: of it.
        num_questions: only so many, the first ones; all by default.
        encoder: of a reranker: the retriever's model.
        num_candidates: of a reranker.
        max_new_tokens: of a generator's answer.
    """

    model_config = ConfigDict(extra="forbid")

    data: Path
    split: str | None = None
    num_questions: int | None = Field(None, ge=1)
    encoder: str | None = None
    num_candidates: int = Field(20, ge=1)
    max_new_tokens: int = Field(32, ge=1)


class AblationSettings(BaseModel):
    """The file, as the module describes it.

    Attributes:
        stage: what is trained.
        settings: flags of `ragvl train`, for every run.
        arms: what each changes, by name; the first is what the others are compared with.
        seeds: each arm is trained with each.
        test: what the trained models are asked.
        untrained: evaluate the model that all start from as well.
        keep_models: do not delete a model once it is evaluated.
    """

    model_config = ConfigDict(extra="forbid")

    stage: Literal["reranker", "generator"]
    settings: dict[str, Any]
    arms: dict[str, dict[str, Any]] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    test: TestSettings
    untrained: bool = True
    keep_models: bool = False

    @classmethod
    def read(cls, path: Path) -> AblationSettings:
        """Reads the file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not such a file; the message names the place.
        """
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{path}: {where}: {first['msg']}") from error
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {error}") from error

    def runs(self) -> Iterator[Run]:
        """Every arm with every seed, seed by seed, so that a broken-off grid has whole rounds."""
        if self.untrained:
            yield Run(UNTRAINED, {}, 0)
        arms = list(_expanded(self.arms))
        for seed in self.seeds:
            for name, changes in arms:
                yield Run(name, changes, seed)


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        arm: its name.
        changes: what it changes of the settings.
        seed: of the training.
    """

    arm: str
    changes: Mapping[str, Any]
    seed: int


def ablate(
    settings: AblationSettings,
    work: Path,
    *,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Does the runs that `work` does not hold yet; returns all results.

    A run that was broken off goes on from its last checkpoint, if it saved one.

    Args:
        settings: the grid.
        work: keeps each run's result, under a name that says what it depends on.
        report: gets a line after each run.

    Returns:
        `arms`: of each, its `changes` and, by measure, `values` (one a seed), `mean`, and the ends
        `low` and `high` of the mean's 95 % interval; `gain` is the same of the difference to the
        first arm, seed by seed. Intervals are Student's over seeds: they tell how much of a
        difference is the luck of a training run, on these test questions.

    Raises:
        ValueError: settings that cannot be used, or a model that cannot be trained on the data.
    """
    work.mkdir(parents=True, exist_ok=True)
    source = open_questions(settings.test.data, split=settings.test.split)
    if settings.stage == "reranker" and settings.test.encoder is None:
        raise ValueError("test.encoder is missing: a reranker orders what a retriever found")
    values: dict[str, dict[str, list[float]]] = {}
    changes: dict[str, Mapping[str, Any]] = {}
    for run in settings.runs():
        name = depending_on(
            settings.stage,
            json.dumps(settings.settings, sort_keys=True),
            json.dumps(run.changes, sort_keys=True),
            run.seed,
            settings.test.model_dump_json(),
            run.arm == UNTRAINED,
        )
        path = work / f"run-{name}.json"
        if not path.exists():
            result = _one_run(settings, run, source, work / f"model-{name}")
            draft = path.with_suffix(".draft")
            draft.write_text(json.dumps({"arm": run.arm, "seed": run.seed, **result}) + "\n")
            draft.replace(path)
        found = json.loads(path.read_text())["measures"]
        changes[run.arm] = run.changes
        for measure, value in found.items():
            values.setdefault(run.arm, {}).setdefault(measure, []).append(value)
        measured = ", ".join(f"{measure} {100 * value:.1f}" for measure, value in found.items())
        report(f"{run.arm}, seed {run.seed}: {measured}")
    first = next(arm for arm in values if arm != UNTRAINED)
    return {
        "stage": settings.stage,
        "test": source.name,
        "num_questions": len(list(source.questions)[: settings.test.num_questions]),
        "settings": settings.settings,
        "seeds": settings.seeds,
        "arms": {
            arm: {
                "changes": changes[arm],
                "measures": {
                    measure: {
                        **_summary(found),
                        "gain": None
                        if arm in (first, UNTRAINED)
                        else _summary(
                            [a - b for a, b in zip(found, values[first][measure], strict=True)]
                        ),
                    }
                    for measure, found in measures.items()
                },
            }
            for arm, measures in values.items()
        },
    }


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Rows of a table, the head first: means in percent with their intervals."""
    measures = list(next(iter(result["arms"].values()))["measures"])
    first = next(arm for arm in result["arms"] if arm != UNTRAINED)
    head = ["arm", *(CONDITIONS.get(m, m) for m in measures), f"against {first}: {measures[0]}"]
    rows = [head]
    for arm, found in result["arms"].items():
        gain = found["measures"][measures[0]]["gain"]
        cells = [_cell(found["measures"][measure]) for measure in measures]
        rows.append([arm, *cells, "" if gain is None else _cell(gain, "+")])
    return rows


def _expanded(arms: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each arm with a list for a value as several arms, of every combination."""
    for name, changes in arms.items():
        listed = {key: value for key, value in changes.items() if isinstance(value, list)}
        for chosen in itertools.product(*listed.values()):
            picked = dict(zip(listed, chosen, strict=True))
            label = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in picked.items())
            yield (f"{name}, {label}" if label else name), {**changes, **picked}


def _one_run(
    settings: AblationSettings, run: Run, source: QuestionSet, folder: Path
) -> dict[str, Any]:
    """Trains into `folder`, evaluates, and takes the folder away."""
    model = str(settings.settings.get("model", ""))
    if run.arm != UNTRAINED:
        flags = {**settings.settings, **run.changes, "seed": run.seed, "output_dir": str(folder)}
        flags |= {"resume_from_checkpoint": "last", "report_to": "none"}
        if not (folder / "config.json").exists():  # else it was trained, and not evaluated
            # A recipe goes first: of two settings the later one counts
            ordered = sorted(flags.items(), key=lambda flag: flag[0] != "config")
            train(settings.stage, [f"--{name}={_flag(value)}" for name, value in ordered])
        model = str(folder)
    mllm = MLLM.from_pretrained(model)
    if settings.stage == "reranker":
        measures = _reranker_measures(mllm, settings.test, source, folder)
    else:
        questions = [q for q in source.questions if q.gold and q.answers]
        by_condition = accuracy_by_condition(
            Generator(mllm),
            source,
            questions[: settings.test.num_questions],
            max_new_tokens=settings.test.max_new_tokens,
        )
        measures = {name: statistics.fmean(values) for name, values in by_condition.items()}
    result: dict[str, Any] = {"measures": measures}
    state = folder / "trainer_state.json"
    if state.exists():
        history = json.loads(state.read_text())["log_history"]
        result["losses"] = [entry["loss"] for entry in history if "loss" in entry]
    if not settings.keep_models:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _reranker_measures(
    mllm: MLLM, test: TestSettings, source: QuestionSet, folder: Path
) -> dict[str, float]:
    evaluated = evaluate(
        source,
        Models(
            DualEncoder.from_pretrained(str(test.encoder)),
            Reranker(mllm, template=source.template),
        ),
        EvaluationSettings(
            pools=("full",),
            num_candidates=test.num_candidates,
            num_questions=test.num_questions,
            num_timed=0,
        ),
        work=folder.parent / "vectors",
        progress=False,
    )
    found = evaluated.figures["pools"]["full"]
    figures = {**found["reranked"], **found["kept"]["natural"]}
    return {name: figures[name]["value"] for name in _RERANKER_MEASURES}


def _summary(values: Sequence[float]) -> dict[str, Any]:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"values": list(values), "mean": mean, "low": None, "high": None}
    reach = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return {"values": list(values), "mean": mean, "low": mean - reach, "high": mean + reach}


def _cell(summary: Mapping[str, Any], sign: str = "") -> str:
    mean = f"{100 * summary['mean']:{sign}.1f}"
    if summary["low"] is None:
        return mean
    return f"{mean} ({100 * summary['low']:{sign}.1f} to {100 * summary['high']:{sign}.1f})"


def _flag(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
