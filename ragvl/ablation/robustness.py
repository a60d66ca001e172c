"""What a generator answers from when its robustness is measured: good pictures, and bad ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from ragvl.data.document import Document
from ragvl.data.questions import Question, QuestionSet
from ragvl.evaluation.answers import answer_metrics
from ragvl.generator import Generator
from ragvl.ops import diffusion_noise

CONDITIONS: Mapping[str, str] = {
    "gold": "gold pictures",
    "irrelevant": "and an irrelevant one",
    "noised": "gold pictures, noised",
}
TEST_NOISE: Mapping[str, str | int] = {
    "kind": "diffusion",
    "place": "pixels",
    "timestep": 500,  # the paper's, in training
    "seed": 7,
}
"""Of the noised pictures; a result says so, since robustness depends on it."""


def accuracy_by_condition(
    generator: Generator,
    source: QuestionSet,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 32,
) -> dict[str, list[float]]:
    """How right the answer to each question is, by condition (see `CONDITIONS`).

    Args:
        generator: answers.
        source: has the documents.
        questions: with gold documents and answers.
        max_new_tokens: of an answer.
    """
    measure = next(iter(answer_metrics(source).values()))
    accuracy = {}
    for condition in CONDITIONS:
        answers = generator.answer_batch(
            [question.text for question in questions],
            [evidence(source, q, condition, number) for number, q in enumerate(questions)],
            max_new_tokens=max_new_tokens,
            progress=False,
        )
        pairs = zip(answers, questions, strict=True)
        accuracy[condition] = [measure(answer, question) for answer, question in pairs]
    return accuracy


def evidence(
    source: QuestionSet, question: Question, condition: str, number: int
) -> list[Document]:
    """The documents that a question is answered from; the same ones for every model.

    Args:
        source: has the documents.
        question: the question.
        condition: of `CONDITIONS`.
        number: the question's, which decides what is drawn.
    """
    rng = np.random.default_rng([int(TEST_NOISE["seed"]), number])
    ids = list(question.gold)
    if condition == "irrelevant":
        others = question.negatives or [i for i in source.document_ids() if i not in question.gold]
        ids.append(others[rng.integers(len(others))])
        rng.shuffle(ids)
    documents = [source.document(id) for id in ids]
    return documents if condition != "noised" else [noised(d, number) for d in documents]


def noised(document: Document, seed: int) -> Document:
    """A document with `TEST_NOISE` on its pixels, which run from -1 to 1."""
    pixels = torch.from_numpy(np.array(document.load(), dtype=np.float32)) / 127.5 - 1
    noisy = diffusion_noise(pixels, timestep=int(TEST_NOISE["timestep"]), seed=seed)
    array = ((noisy.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    return Document(Image.fromarray(array), document.caption, document.id)
