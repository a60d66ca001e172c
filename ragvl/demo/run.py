"""Runs the whole of RagVL on the drawn world with the shipped tiny models, and measures it."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from importlib.resources import as_file, files

from ragvl.data.synthetic import Places, write_world
from ragvl.data.webqa import WebQA
from ragvl.evaluation.evaluate import Evaluation, evaluate
from ragvl.evaluation.models import Models
from ragvl.evaluation.settings import EvaluationSettings
from ragvl.generator import Generator
from ragvl.reranker import THRESHOLDS_FILE, Reranker, SavedThresholds
from ragvl.retriever import DualEncoder

WORLD_SEED = 0
NUM_PLACES = 520  # three pictures each


def run_demo(*, num_questions: int | None = None, progress: bool = True) -> Evaluation:
    """Draws the test world, then retrieves, reranks and answers over both pools.

    Args:
        num_questions: only the first so many questions; all 520 by default.
        progress: show progress bars.

    Raises:
        ValueError: `num_questions` is below 1.
    """
    with as_file(files("ragvl") / "assets") as assets:
        thresholds = SavedThresholds.load(assets / "tiny-reranker" / THRESHOLDS_FILE)
        assert thresholds is not None  # they come along
        settings = EvaluationSettings(
            thresholds=("natural", *thresholds.values),
            num_questions=num_questions,
            max_new_tokens=8,
        )
        reranker = Reranker.from_pretrained(
            assets / "tiny-reranker",
            dtype="float32",  # that of its thresholds
            thresholds=thresholds,
        )
        models = Models(
            DualEncoder.from_pretrained(assets / "tiny-retriever"),
            reranker,
            Generator.from_pretrained(assets / "tiny-generator"),
        )
        return evaluate(_drawn_world(), models, settings, progress=progress)


def _drawn_world() -> WebQA:
    """The test world, in files that stay while it is in use: a report reads their pictures."""
    folder = tempfile.mkdtemp()
    try:
        write_world(folder, Places(), counts={"test": NUM_PLACES}, seed=WORLD_SEED)
        source = WebQA(folder, split="test")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(source, shutil.rmtree, folder, ignore_errors=True)
    source.name = "drawn places, test"
    return source
