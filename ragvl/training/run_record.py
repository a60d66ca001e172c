"""What a folder says of the run that trained its model; read without what training needs."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ragvl.files import write_text

RUN_FILE = "ragvl_run.json"  # whose run a folder holds, and whether its model is whole


def note_run(
    folder: Path, run: dict[str, Any], questions: Collection[str], *, finished: bool
) -> None:
    """Writes what a run is.

    Args:
        folder: where its model goes.
        run: what another run must share to go on from it.
        questions: names of the questions that it learns from.
        finished: whether its model is whole.
    """
    noted = {**run, "finished": finished, "questions": sorted(questions)}
    write_text(folder / RUN_FILE, json.dumps(noted, indent=2) + "\n")


def noted_run(folder: Path) -> dict[str, Any]:
    """What `note_run` wrote, if it did. Earlier versions did not say whether a run finished."""
    try:
        noted = json.loads((folder / RUN_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def is_finished(folder: Path) -> bool:
    """Whether training saved the folder's model to the end; files alone do not show it."""
    return bool(noted_run(folder).get("finished"))


def learned_questions(folder: Path) -> frozenset[str]:
    """Names of the questions that the folder's model was trained on, as far as it says so.

    See `ragvl.data.questions.question_name`.
    """
    names = noted_run(folder).get("questions")
    return frozenset(map(str, names)) if isinstance(names, list) else frozenset()
