"""Results of earlier runs, checked before they are believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from ragvl.files import open_regular
from ragvl.messages import shown, validation_reason

_MAX_BYTES = 2**30


class ResultFileError(ValueError):
    """A file holds no such result; the message names it, and the place."""


class _Figure(BaseModel):
    value: FiniteFloat | None
    low: FiniteFloat | None
    high: FiniteFloat | None


_Figures = dict[str, _Figure]


class _Pool(BaseModel):
    retrieved: _Figures = {}
    reranked: _Figures = {}
    kept: dict[str, _Figures] = {}
    answers: dict[str, dict[str, _Figure | _Figures]] = {}


class _Evaluation(BaseModel):
    data: str
    num_questions: Annotated[int, Field(ge=0)]
    pools: dict[str, _Pool]


class _Training(BaseModel):
    samples: int
    steps: int
    epochs: FiniteFloat


class _AblationRun(BaseModel):
    model_config = ConfigDict(strict=True)

    arm: str
    seed: int
    measures: Annotated[dict[str, FiniteFloat], Field(min_length=1)]
    num_questions: Annotated[int, Field(ge=1)]
    machine: dict[str, Any]
    versions: dict[str, Any]
    training: _Training | None = None
    losses: list[FiniteFloat] = []


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """The `result.json` of `ragvl evaluate`.

    Raises:
        ResultFileError: the file holds something else.
        OSError: it cannot be read.
    """
    return _read(path, _Evaluation, "a result.json of `ragvl evaluate`")


def read_ablation_run(path: str | Path) -> dict[str, Any]:
    """What `ragvl ablate` keeps of one run.

    Raises:
        ResultFileError: the file holds something else.
        OSError: it cannot be read.
    """
    return _read(path, _AblationRun, "a run's result of `ragvl ablate`")


def _read(path: str | Path, model: type[BaseModel], what: str) -> dict[str, Any]:
    with open_regular(path, max_bytes=_MAX_BYTES) as file:
        content = file.read()
    try:
        model.model_validate_json(content)
    except ValidationError as error:
        why = validation_reason(error)
        raise ResultFileError(f"{shown(path)} is not {what}: {why}") from error
    return json.loads(content)
