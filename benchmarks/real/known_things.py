"""How far `blind` is solved by what the tower was taught: does one of its classes name the thing?

Some things that `blind` asks for are among ImageNet's classes. Of the others the tower was shown
none by its name: nothing is learned of what val and test ask for.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoImageProcessor, AutoTokenizer

from ragvl.data.formats import open_questions
from ragvl.data.questions import QuestionSet
from ragvl.retriever import DualEncoder
from real.dual_encoder import zero_shot
from real.layout import Layout
from real.weights import CLASS_NAMES

SET = "blind"
_CLOSE = (np.inf, 0.9, 0.7, 0.5, -np.inf)  # cosines of a thing's name and the closest class's
_EXAMPLES = 4


def measure(layout: Layout) -> dict[str, Any]:
    """Searches the pictures of `blind`'s test split for its things, by pictures alone.

    Returns:
        `pictures`, how many there are, and `rows`, each of things whose names are as close to a
        class's name: `most` and `least`, the group's ends (None at the last); `questions`, how many
        these are; `things`, some of them; `zero_shot` and `trained`, the shares of questions that
        a right picture is first for. Groups without any are left out.

    Raises:
        FileNotFoundError: the retriever is not made yet.
    """
    folder = layout.models / "retriever"
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"there is no {folder} yet: make it by `python -m real retriever`")
    weights = layout.weights / "efficientnet-lite0", layout.weights / "minilm"
    untrained = DualEncoder(
        zero_shot(*weights),
        AutoImageProcessor.from_pretrained(weights[0], backend="pil"),
        AutoTokenizer.from_pretrained(weights[1]),
        device="cpu",
    )
    encoders = {
        "zero_shot": untrained,
        "trained": DualEncoder.from_pretrained(folder, device="cpu"),
    }
    source = open_questions(layout.sets / SET, split="test")
    found = {name: _first(encoder, source) for name, encoder in encoders.items()}
    things = [question.id for question in source.questions]
    classes = json.loads((weights[0] / CLASS_NAMES).read_text())
    vectors = [untrained.encode_texts([f"a {name}" for name in part]) for part in (things, classes)]
    closest = (vectors[0] @ vectors[1].T).max(1)
    rows = []
    for most, least in pairwise(_CLOSE):
        group = (closest < most) & (closest >= least)
        if not group.any():
            continue
        rows.append(
            {
                "most": most if np.isfinite(most) else None,
                "least": least if np.isfinite(least) else None,
                "questions": int(group.sum()),
                "things": [things[row] for row in np.flatnonzero(group)[:_EXAMPLES]],
                **{name: float(hits[group].mean()) for name, hits in found.items()},
            }
        )
    return {"pictures": len(source.document_ids()), "rows": rows}


def _first(encoder: DualEncoder, source: QuestionSet) -> NDArray[np.bool_]:
    """Of each question, whether the most similar picture is a right one."""
    documents = [*source.documents()]
    pictures = encoder.encode_documents(documents)
    first = (encoder.encode_queries([one.query for one in source.questions]) @ pictures.T).argmax(1)
    return np.array(
        [
            documents[row].id in question.gold
            for row, question in zip(first, source.questions, strict=True)
        ]
    )
