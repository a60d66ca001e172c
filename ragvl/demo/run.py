"""Runs the whole of RagVL on the drawn world with the shipped tiny models, and measures it."""

from __future__ import annotations

import tempfile
from importlib.resources import as_file, files

from transformers.utils import logging as transformers_logging

from ragvl.data.synthetic import Places, write_world
from ragvl.data.webqa import WebQA
from ragvl.evaluation.evaluate import Evaluation, EvaluationSettings, evaluate
from ragvl.evaluation.stages import Models
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
    transformers_logging.disable_progress_bar()  # loading tiny models takes no time
    with tempfile.TemporaryDirectory() as folder, as_file(files("ragvl") / "assets") as assets:
        write_world(folder, Places(), counts={"test": NUM_PLACES}, seed=WORLD_SEED)
        thresholds = SavedThresholds.load(assets / "tiny-reranker" / THRESHOLDS_FILE)
        assert thresholds is not None  # they come along
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
        source = WebQA(folder, split="test")
        source.name = "drawn places, test"
        settings = EvaluationSettings(
            thresholds=("natural", *thresholds.values),
            num_questions=num_questions,
            max_new_tokens=8,
        )
        return evaluate(source, models, settings, progress=progress)
