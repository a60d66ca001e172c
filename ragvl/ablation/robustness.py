"""What a generator answers from when its robustness is measured: good pictures, and bad ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ragvl.data.document import Document
from ragvl.data.questions import Question, QuestionSet
from ragvl.evaluation.answers import answer_metrics
from ragvl.generator import Generator
from ragvl.ops import diffusion_noise

TEST_NOISE: Mapping[str, str | int] = {"kind": "diffusion", "place": "pixels", "seed": 7}
"""Of the noised pictures; a result says so, since robustness depends on it."""

_SEED = int(TEST_NOISE["seed"])


@dataclass(frozen=True)
class Condition:
    """What all questions are answered from in one test; the same for every model.

    Attributes:
        name: of the measure.
        documents: of each question, ids in the order of the prompt.
        timestep: of the noise on the pictures; None leaves them as they are.
    """

    name: str
    documents: Sequence[Sequence[str]]
    timestep: int | None = None

    def evidence(self, source: QuestionSet, number: int) -> list[Document]:
        """The documents that the question of that number is answered from."""
        documents = [source.document(id) for id in self.documents[number]]
        if self.timestep is None:
            return documents
        return [noised(document, number, self.timestep) for document in documents]

    def noise_ratio(self, questions: Sequence[Question]) -> float:
        """The share of all documents shown that are not gold."""
        shown = [
            id in question.gold
            for question, ids in zip(questions, self.documents, strict=True)
            for id in ids
        ]
        return 1 - sum(shown) / max(1, len(shown))


def conditions(
    source: QuestionSet,
    questions: Sequence[Question],
    *,
    distractors: Sequence[int] = (),
    timesteps: Sequence[int] = (),
) -> Iterator[Condition]:
    """Gold documents alone, with distractors, and noised.

    Args:
        source: has the documents.
        questions: with gold documents.
        distractors: so many among the gold ones, each with random ones ("random 2"), and with the
            data set's own as far as it lists any ("hard 2"; none where it lists none at all); more
            hold the fewer.
        timesteps: of diffusion noise on gold pictures ("noised 500").
    """
    gold = [tuple(question.gold) for question in questions]
    yield Condition("gold", gold)
    ids = source.document_ids()
    kinds = ("random", "hard") if any(question.negatives for question in questions) else ("random",)
    for kind in kinds:
        others = [
            _others(question, ids, number, max(distractors), hard=kind == "hard")
            for number, question in enumerate(questions)
            if distractors
        ]
        for count in distractors:
            shown = [
                _shuffled([*own, *row[:count]], number)
                for number, (own, row) in enumerate(zip(gold, others, strict=True))
            ]
            yield Condition(f"{kind} {count}", shown)
    for timestep in timesteps:
        yield Condition(f"noised {timestep}", gold, timestep)


def accuracy(
    generator: Generator,
    source: QuestionSet,
    questions: Sequence[Question],
    condition: Condition,
    *,
    max_new_tokens: int = 32,
) -> list[float]:
    """How right the answer to each question is under a condition.

    Args:
        generator: answers.
        source: has the documents.
        questions: with answers; those of the condition.
        condition: what they are answered from.
        max_new_tokens: of an answer.
    """
    measure = next(iter(answer_metrics(source).values()))
    answers = generator.answer_batch(
        [question.text for question in questions],
        [condition.evidence(source, number) for number in range(len(questions))],
        max_new_tokens=max_new_tokens,
        progress=False,
    )
    return [measure(*pair) for pair in zip(answers, questions, strict=True)]


def noised(document: Document, seed: int, timestep: int) -> Document:
    """A document with diffusion noise on its pixels, which run from -1 to 1."""
    pixels = torch.from_numpy(np.array(document.load(), dtype=np.float32)) / 127.5 - 1
    noisy = diffusion_noise(pixels, timestep=timestep, seed=seed)
    array = ((noisy.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    return Document(Image.fromarray(array), document.caption, document.id)


def _others(
    question: Question, ids: Sequence[str], number: int, count: int, *, hard: bool
) -> list[str]:
    """`count` documents that are not gold, as far as there are so many."""
    rng = np.random.default_rng([_SEED, number])
    own = [id for id in question.negatives if id not in question.gold]
    chosen = [own[i] for i in rng.permutation(len(own))[:count]] if hard else []
    left = [id for id in ids if id not in question.gold and id not in chosen]
    return chosen + [left[i] for i in rng.permutation(len(left))[: count - len(chosen)]]


def _shuffled(ids: list[str], number: int) -> list[str]:
    np.random.default_rng([_SEED, number, len(ids)]).shuffle(ids)
    return ids
