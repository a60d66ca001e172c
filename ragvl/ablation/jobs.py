"""The runs of a grid, each with a name for all that its result depends on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ragvl.ablation.grid import UNTRAINED, AblationSettings, Problems, Run
from ragvl.data.formats import Purpose, open_questions
from ragvl.data.images import ImageError
from ragvl.data.picture import Picture
from ragvl.data.questions import Modality, QuestionSet
from ragvl.identity import file_bytes_name, name_of
from ragvl.training.command import Plan, RunSettings

# Settings of a run that its result does not depend on
NO_INGREDIENTS = ("config", "output_dir", "resume_from_checkpoint", "report_to", "disable_tqdm")

# Where a run finds what it is made from: this is named by what it holds, wherever it lies
_PLACES = ("model", "data", "ranking", "eval_ranking")
_SETTINGS_FILES = ("deepspeed", "fsdp_config")


@dataclass(frozen=True)
class Job:
    """A run, with all that it is made from.

    Attributes:
        run: the run.
        plan: its settings.
        model: fingerprint of the model that it starts from.
        result: the file of its result, named by everything that this depends on.
        folder: its model, while there is one, named by what it is trained from: where models are
            kept, another test does not train them again.
    """

    run: Run
    plan: Plan
    model: str
    result: Path
    folder: Path


def plan_jobs(settings: AblationSettings, test_name: str, work: Path) -> list[Job]:
    """Every run, with a name for all that it depends on.

    Args:
        settings: the grid.
        test_name: names all that the models are tested on.
        work: where results and models go.

    Raises:
        ValueError: runs cannot be made from what is there; the message names them.
    """
    jobs, problems, ingredients = [], Problems(), _Ingredients()
    for run, plan in settings.planned():
        own = plan.run
        try:
            model = ingredients.model(
                own.model, own.dtype, own.attn_implementation, own.trust_remote_code
            )
            learned: list[str] = []
            if run.arm != UNTRAINED:
                learned = [*ingredients.data(plan), _values(plan)]
        except (ValueError, OSError, ImportError) as error:
            problems.add(run, error)
            continue
        trained = name_of("model", settings.stage, model, learned)
        name = name_of("run", settings.stage, test_name, model, learned)
        jobs.append(Job(run, plan, model, work / f"run-{name}.json", work / f"model-{trained}"))
    settings.refuse(problems)
    return jobs


def data_name(path: Path, source: QuestionSet) -> str:
    """Names the content of a data set, the same wherever it lies.

    All files of the folder are read, and its pictures; each once in a process.

    Args:
        path: what `source` was opened from.
        source: one split of it.

    Raises:
        OSError: a file is gone.
    """
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    names = [(file.name, file_bytes_name(file)) for file in files]
    return name_of("data", names, [_picture_name(picture) for picture in _pictures(source)])


def _pictures(source: QuestionSet) -> Iterator[Picture]:
    for question in source.questions:
        yield from question.pictures
    for id in source.document_ids():
        try:
            pictures = source.document(id).pictures
        except ImageError:
            continue
        for picture in pictures:
            if picture.path is None:
                return  # they are rows of one file, which lies beside the annotations
            yield picture


def _picture_name(picture: Picture) -> str | None:
    try:
        return picture.digest()
    except ImageError:  # those that cannot be read are alike
        return None


class _Ingredients:
    """What runs are made from; each is looked at once, however many runs share it."""

    def __init__(self) -> None:
        self.model = cache(self._model)
        self._data = cache(self._data_of)

    def data(self, plan: Plan) -> list[str]:
        """Names the content of what a run learns from."""
        run = plan.run
        splits = [run.split] if run.eval_split is None else [run.split, run.eval_split]
        names = [self._data(run.data, split, "train", run.modality) for split in splits]
        if plan.ranking is not None:
            files = (plan.ranking.ranking, plan.ranking.eval_ranking)
            names += [file_bytes_name(file) for file in files if file is not None]
        return names

    @staticmethod
    def _model(name: str, dtype: str, attention: str | None, trust: bool) -> str:
        settings = RunSettings(
            name, Path(), dtype=dtype, attn_implementation=attention, trust_remote_code=trust
        )
        return settings.load_model().fingerprint

    @staticmethod
    def _data_of(path: Path, split: str | None, purpose: Purpose, modality: Modality | None) -> str:
        opened = open_questions(path, split=split, purpose=purpose, modality=modality)
        return data_name(path, opened)


def _values(plan: Plan) -> str:
    """Every setting that counts; of one that names a file of settings what the file holds."""
    kept = {
        key: _content(value) if key in _SETTINGS_FILES else value
        for key, value in plan.values.items()
        if key not in (*NO_INGREDIENTS, *_PLACES)
    }
    return json.dumps(kept, sort_keys=True, default=str)


def _content(value: Any) -> Any:
    return file_bytes_name(value) if isinstance(value, str) and os.path.isfile(value) else value
