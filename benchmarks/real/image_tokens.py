"""What prefixes with a quarter of a picture's tokens cost on real pictures, trained for it or not.

Sets and retriever are those that were evaluated before, so vectors and the first row's scores are
read from there. On the drawn world `bench_image_tokens.py` compares ways to choose tokens, too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, NamedTuple

from ragvl import PrefixCache, Reranker
from ragvl.compression import Compression
from ragvl.data.formats import open_questions
from ragvl.data.questions import QuestionSet
from ragvl.evaluation.evaluate import evaluate
from ragvl.evaluation.models import Models
from ragvl.evaluation.result import read_evaluation
from ragvl.evaluation.settings import EvaluationSettings
from ragvl.mllm import MLLM
from ragvl.retriever import DualEncoder, Fusion, ReciprocalRank, TextEncoder, parse_fusion
from real.layout import Layout

logger = logging.getLogger(__name__)

SHARE = 0.25
TRAINED, CONTROL = "image_tokens", "image_tokens_control"  # folders among the models
SETS = ("blind", "screens", "named")
FIGURES = ("recall@1", "mrr", "f1")
_TEMPLATE = "instruction-first"
_WEIGHED = 20  # documents


class Setting(NamedTuple):
    """One way to keep prefixes.

    Attributes:
        reranker: a folder among the models.
        share: of a picture's tokens.
        compression: of keys and values.
    """

    reranker: str
    share: float = 1.0
    compression: Compression | None = None


SETTINGS = (
    Setting("reranker"),
    Setting("reranker", SHARE),
    Setting(TRAINED, SHARE),
    Setting(TRAINED, SHARE, "int4"),
    Setting(CONTROL),
)


def measure(
    layout: Layout,
    *,
    sets: Sequence[str] = SETS,
    settings: Sequence[Setting] = SETTINGS,
    num_questions: int = 200,
    num_candidates: int = 20,
) -> dict[str, Any]:
    """Ranks test questions with each setting.

    Args:
        layout: has the models, the sets, and what was evaluated of them.
        sets: names of question sets.
        settings: what is compared.
        num_questions: of each set, the first ones.
        num_candidates: of each question.

    Returns:
        a row for each set and setting: figures of the ranking, and bytes of a document's prefix.

    Raises:
        FileNotFoundError: a model is not trained yet.
    """
    for setting in settings:
        folder = layout.models / setting.reranker
        if not (folder / "config.json").exists():
            raise FileNotFoundError(f"there is no {folder} yet: train it first")
    encoder = DualEncoder.from_pretrained(layout.models / "retriever", device="cpu")
    texts = TextEncoder.from_pretrained(str(layout.weights / "minilm"), device="cpu")
    rows = []
    for setting in settings:
        folder = layout.models / setting.reranker
        mllm = MLLM.from_pretrained(folder, device="cpu", dtype="bfloat16")
        for name in sets:
            source = open_questions(layout.sets / name, split="test")
            models = Models(
                encoder,
                _reranker(mllm, setting),
                text_encoder=texts,
                fusion=_fusion(layout, name),
            )
            evaluated = EvaluationSettings(
                pools=("full",),
                num_candidates=num_candidates,
                num_questions=num_questions,
                num_timed=0,
            )
            work = layout.root / "evaluated" / name / "work"
            result = evaluate(source, models, evaluated, work=work).result
            pool = result.pools["full"]
            figures = {**pool.reranked, **pool.kept["natural"]}
            row = {
                "set": name,
                **setting._asdict(),
                "questions": result.num_questions,
                "bytes_per_document": _bytes(_reranker(mllm, setting), source),
                **{measure: asdict(figures[measure]) for measure in FIGURES},
            }
            logger.info("%s", row)
            rows.append(row)
    state = json.loads((layout.models / TRAINED / "trainer_state.json").read_text())
    return {
        "candidates": num_candidates,
        "training_steps": state["global_step"],
        "rows": rows,
    }


def _reranker(mllm: MLLM, setting: Setting) -> Reranker:
    cache = PrefixCache("4GiB", image_tokens=setting.share, compression=setting.compression)
    return Reranker(mllm, template=_TEMPLATE, prefix_cache=cache)


def _bytes(reranker: Reranker, source: QuestionSet) -> float:
    """What the prefix of a document takes; the mean of some."""
    reranker.warm([*islice(source.documents(), _WEIGHED)], progress=False)
    cache = reranker.prefix_cache
    return cache.statistics()["device"].bytes / len(cache)


def _fusion(layout: Layout, name: str) -> Fusion:
    """The one that was estimated for the set, or else reciprocal ranks."""
    done = layout.root / "evaluated" / name / "result.json"
    saved = read_evaluation(done).models.fusion if done.exists() else None
    return ReciprocalRank() if saved is None else parse_fusion(saved)
