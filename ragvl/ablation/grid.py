"""A grid of settings and seeds, as one YAML file describes it, checked before anything is trained.

stage: generator                  # or reranker
settings:                         # of `ragvl train`, for every run
  model: ragvl/assets/tiny-base
  data: world
  config: tiny-generator
  max_steps: 100
arms:                             # what each changes; a list makes an arm of each value
  plain: {noise.data_level: 0, noise.token_level: none}
  the paper's method: {noise.data_level: 2, noise.token_level: tokens}
  token level: {noise.token_level: tokens, noise.timestep: [500, 900]}
  low resource: {share: [0.025, 0.05, 0.2]}
seeds: [0, 1, 2]
test: {data: world, split: test}  # a reranker's with its encoder
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from ragvl.data.questions import Modality
from ragvl.files import open_regular
from ragvl.messages import MAX_ERROR, reason, validation_reason
from ragvl.training.command import Plan, plan

UNTRAINED = "untrained"
_MAX_BYTES = 1 << 20

_ELSEWHERE = {
    "seed": "seeds: is where seeds go",
    "output_dir": "--out is where results go",
    "resume_from_checkpoint": "a run that was broken off goes on by itself",
}
_NAMED_RUNS = 3  # in a message about several


class TestSettings(BaseModel):
    """What the trained models are tested on.

    Attributes:
        data: a data set; see `open_questions`.
        split: of it.
        modality: of WebQA and MultimodalQA, which documents; see `open_questions`.
        num_questions: only so many, the first ones; all by default.
        encoder: the retriever's model; of a generator for `noise_ratios`.
        num_candidates: how many documents the retriever hands over.
        max_new_tokens: of a generator's answer.
        distractors: of a generator: with how many irrelevant pictures among the gold ones.
        timesteps: of a generator: of noise on the pixels of gold pictures.
        noise_ratios: of a generator: it answers from what `encoder` and `reranker` keep, where so
            large a share of gold documents is swapped for wrong ones; see `EvaluationSettings`.
        reranker: of a generator, for `noise_ratios`.
    """

    __test__ = False  # no test of pytest's

    model_config = ConfigDict(extra="forbid")

    data: Path
    split: str | None = None
    modality: Modality | None = None
    num_questions: int | None = Field(None, ge=1)
    encoder: str | None = None
    num_candidates: int = Field(20, ge=1)
    max_new_tokens: int = Field(32, ge=1)
    distractors: list[Annotated[int, Field(ge=1)]] = [1]
    timesteps: list[Annotated[int, Field(ge=0, lt=1000)]] = [500]
    noise_ratios: list[Annotated[float, Field(ge=0, le=1)]] = []
    reranker: str | None = None

    @field_validator("distractors", "timesteps", "noise_ratios")
    @classmethod
    def _check_once(cls, values: list[float]) -> list[float]:
        if twice := _repeated(values):
            raise ValueError(f"{twice[0]} is there twice")
        return values


class AblationSettings(BaseModel):
    """The file, as the module describes it.

    Attributes:
        stage: what is trained.
        settings: flags of `ragvl train`, for every run.
        arms: what each changes, by name; the first is what the others are compared with.
        seeds: each arm is trained with each.
        test: what the trained models are tested on.
        untrained: evaluate the model that all start from as well.
        keep_models: do not delete a model once it is evaluated; another test then takes it.
    """

    model_config = ConfigDict(extra="forbid")

    stage: Literal["reranker", "generator"]
    settings: dict[str, Any]
    arms: dict[str, dict[str, Any]] = Field(min_length=1)
    seeds: list[Annotated[int, Field(strict=True, ge=0, lt=2**32)]] = Field(min_length=1)
    test: TestSettings
    untrained: bool = True
    keep_models: bool = False
    _file: Path | None = PrivateAttr(None)

    @field_validator("settings")
    @classmethod
    def _check_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        _refuse_elsewhere(settings)
        return settings

    @field_validator("arms")
    @classmethod
    def _check_arms(cls, arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, changes in arms.items():
            if name == UNTRAINED:
                raise ValueError(f"{name!r} is the row of the model that all arms start from")
            _refuse_elsewhere(changes)
            for key, value in changes.items():
                if isinstance(value, list):
                    _check_list(f"{name}.{key}", value)
        names = [name for name, _ in expanded(arms)]
        for name in names:
            if not name.strip() or "|" in name or len(name.splitlines()) > 1:
                raise ValueError(f"{name!r} cannot stand in a table: no | and no line ends")
        if twice := _repeated(names):
            raise ValueError(f"two arms are both called {twice[0]!r}")
        return arms

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: list[int]) -> list[int]:
        if twice := _repeated(seeds):
            raise ValueError(f"{twice[0]} is there twice: the same run again is no other sample")
        return seeds

    @model_validator(mode="after")
    def _check_encoder(self) -> Self:
        if self.stage == "reranker" and self.test.encoder is None:
            raise ValueError("test.encoder is missing: a reranker orders what a retriever found")
        if self.test.noise_ratios and None in (self.test.encoder, self.test.reranker):
            raise ValueError(
                "test.noise_ratios are about what is retrieved and reranked: test.encoder and "
                "test.reranker are needed"
            )
        return self

    @classmethod
    def read(cls, path: Path) -> AblationSettings:
        """Reads the file, and checks the settings of every run.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not such a file, or runs cannot be made from it; the message names
                every place.
        """
        try:
            settings = cls.model_validate(_load(path))
        except ValidationError as error:
            raise ValueError(f"{path}: {validation_reason(error, None)}") from error
        settings._file = path
        settings.planned()
        return settings

    def runs(self) -> Iterator[Run]:
        """Every arm with every seed, seed by seed, so that a broken-off grid has whole rounds."""
        if self.untrained:
            yield Run(UNTRAINED, {}, 0)
        arms = list(expanded(self.arms))
        for seed in self.seeds:
            for name, changes in arms:
                yield Run(name, changes, seed)

    def flags(self, run: Run, folder: Path) -> list[str]:
        """Flags of `ragvl train` for a run that goes into `folder`."""
        flags = {"report_to": "none", **self.settings, **run.changes}
        flags |= {"seed": run.seed, "output_dir": folder, "resume_from_checkpoint": "last"}
        # A recipe goes first: of two settings the later one counts
        ordered = sorted(flags.items(), key=lambda flag: flag[0] != "config")
        return [f"--{name}={_flag(value)}" for name, value in ordered]

    def planned(self) -> list[tuple[Run, Plan]]:
        """Every run with its settings.

        Raises:
            ValueError: the settings of a run cannot be used; the message names each such run.
        """
        planned, problems = [], Problems()
        for run in self.runs():
            try:
                planned.append((run, plan(self.stage, self.flags(run, Path("unused")))))
            except ValueError as error:
                problems.add(run, error)
        self.refuse(problems)
        return planned

    def refuse(self, problems: Problems) -> None:
        """Ends with what is wrong, if anything is.

        Raises:
            ValueError: something is; the message names the file, the arms and the seeds.
        """
        if problems:
            raise ValueError(self.in_file(str(problems)))

    def in_file(self, message: str) -> str:
        """The message, after the name of the file that the settings are from."""
        return message if self._file is None else f"{self._file}: {message}"


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

    def __str__(self) -> str:
        return self.arm if self.arm == UNTRAINED else f"arm {self.arm!r}, seed {self.seed}"


class Problems:
    """What is wrong with which runs; runs with the same problem are named together."""

    def __init__(self) -> None:
        self._runs: dict[str, list[Run]] = {}

    def add(self, run: Run, error: Exception) -> None:
        """Notes what is wrong with a run."""
        self._runs.setdefault(reason(error, MAX_ERROR), []).append(run)

    def __bool__(self) -> bool:
        return bool(self._runs)

    def __str__(self) -> str:
        return "; ".join(f"{_some(runs)}: {message}" for message, runs in self._runs.items())


def expanded(arms: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each arm with a list for a value as several arms, of every combination."""
    for name, changes in arms.items():
        listed = {key: value for key, value in changes.items() if isinstance(value, list)}
        for chosen in itertools.product(*listed.values()):
            picked = dict(zip(listed, chosen, strict=True))
            label = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in picked.items())
            yield (f"{name}, {label}" if label else name), {**changes, **picked}


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would silently take the later one."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, key in enumerate(keys):
            if any(key.value == before.value for before in keys[:number]):
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                )
        return node


def _load(path: Path) -> Any:
    try:
        with open_regular(path, max_bytes=_MAX_BYTES) as file:
            content = yaml.load(file.read().decode("utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(
            f"{path} is not YAML that can be used: {reason(error, MAX_ERROR)}"
        ) from error
    if not isinstance(content, dict):
        what = "it is empty" if content is None else f"it is a {type(content).__name__}"
        raise ValueError(f"{path}: {what}; expected keys stage, settings, arms, seeds and test")
    return content


def _refuse_elsewhere(settings: Iterable[str]) -> None:
    for key in settings:
        if key in _ELSEWHERE:
            raise ValueError(f"{key} is no setting of a grid: {_ELSEWHERE[key]}")


def _check_list(name: str, values: Sequence[Any]) -> None:
    if not values:
        raise ValueError(f"{name} is an empty list, which makes no arm")
    if twice := _repeated(values):
        raise ValueError(f"{name} has {twice[0]!r} twice")


def _repeated(values: Sequence[Any]) -> list[Any]:
    return [value for number, value in enumerate(values) if value in values[:number]]


def _some(runs: Sequence[Run]) -> str:
    named = ", ".join(f"{run}" for run in runs[:_NAMED_RUNS])
    more = len(runs) - _NAMED_RUNS
    return f"{named} and {more} more" if more > 0 else named


def _flag(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
