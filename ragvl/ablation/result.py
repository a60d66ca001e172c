"""What an ablation measured: the schema of `ablation.json`, and of what is kept of each run.

Written and read as `ragvl.evaluation.result` describes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import Field, FiniteFloat

from ragvl.ablation.grid import UNTRAINED
from ragvl.evaluation.result import ABSENT, read_result


@dataclass(frozen=True)
class Training:
    """How long a model was trained: its `samples`, `steps` and `epochs`."""

    samples: int
    steps: int
    epochs: FiniteFloat


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What was measured of one run.

    Attributes:
        arm: whose run it is.
        seed: of the training.
        measures: by name.
        num_questions: over how many questions.
        training: how long; absent of the untrained model.
        losses: as logged in training; absent of the untrained model.
        token_weights: of a training with a noised pass: see `TokenWeights.total`.
        machine: where it was done.
        versions: of the packages that matter.
    """

    arm: str
    seed: int
    measures: Annotated[dict[str, FiniteFloat], MinLen(1)]
    num_questions: Annotated[int, Field(ge=1)]
    training: Training | None = field(default=None, metadata=ABSENT)
    losses: list[FiniteFloat] | None = field(default=None, metadata=ABSENT)
    token_weights: dict[str, FiniteFloat] = field(default_factory=dict, metadata=ABSENT)
    machine: dict[str, str]
    versions: dict[str, str]


@dataclass(frozen=True)
class SeedSummary:
    """Values of several seeds.

    Attributes:
        values: one a seed.
        mean: of them.
        low: the lower end of the mean's 95 % interval, Student's over seeds; None of one seed.
        high: its upper end.
    """

    values: list[float]
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class MeasureSummary(SeedSummary):
    """A measure of an arm.

    Attributes:
        gain: the difference to the baseline, seed by seed; None of the baseline itself, of the
            untrained model, and where the two have no seed in common.
    """

    gain: SeedSummary | None


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """What was measured of an arm.

    Results of earlier versions have only `changes` and `measures`.

    Attributes:
        changes: what it changes of the grid's settings.
        settings: every setting that is not the same in all arms, and a generator's noise.
        seeds: those that were done; none of the untrained model.
        model: fingerprint of the model that it started from.
        training: of its first seed; None of the untrained model.
        token_weights: means over its seeds; see `TokenWeights.total`.
        measures: by name.
    """

    changes: dict[str, Any]
    settings: dict[str, Any] | None = None
    seeds: list[int] = field(default_factory=list)
    model: str | None = None
    training: Training | None = None
    token_weights: dict[str, FiniteFloat] = field(default_factory=dict, metadata=ABSENT)
    measures: dict[str, MeasureSummary]


@dataclass(frozen=True)
class FailedRun:
    """A run that failed, and why."""

    arm: str
    seed: int
    reason: str


@dataclass(frozen=True)
class MeasuredBy:
    """A machine and its versions."""

    machine: dict[str, str]
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class AblationResult:
    """What an ablation measured.

    Results of earlier versions end with `arms` and lack `baseline`.

    Attributes:
        stage: what was trained, "reranker" or "generator".
        test: name of the data set that the models were tested on.
        num_questions: how many of its questions.
        settings: those of the grid, for every run.
        seeds: each arm was trained with each.
        baseline: the arm that gains are over.
        arms: what was measured, by arm.
        failed: the runs that failed.
        encoder: fingerprint of the retriever.
        reranker: fingerprint of the reranker that a generator was tested behind.
        lemmatizer: what brought WebQA's answers to their base form; None for other data.
        test_noise: of a generator's noised pictures.
        noise_ratios: by measure, the share of a generator's documents that are not gold.
        machine: where most runs were done.
        versions: of the packages that matter there.
        also_measured_by: where the other runs were done.
    """

    stage: str
    test: str
    num_questions: int
    settings: dict[str, Any]
    seeds: list[int]
    baseline: str | None = None
    arms: dict[str, ArmResult]
    failed: list[FailedRun] = field(default_factory=list)
    encoder: str | None = None
    reranker: str | None = None
    lemmatizer: str | None = None
    test_noise: dict[str, str | int] | None = None
    noise_ratios: dict[str, FiniteFloat] = field(default_factory=dict, metadata=ABSENT)
    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    also_measured_by: list[MeasuredBy] = field(default_factory=list)

    @property
    def measures(self) -> list[str]:
        """Names of what was measured of every arm."""
        return list(next(iter(self.arms.values())).measures)

    @property
    def trained(self) -> dict[str, ArmResult]:
        """The arms, but for the untrained model."""
        return {name: arm for name, arm in self.arms.items() if name != UNTRAINED}


def read_run(path: Path) -> RunResult:
    """What `ragvl ablate` keeps of one run; raises as `read_result` does."""
    return read_result(RunResult, path, "a run's result of `ragvl ablate`")
