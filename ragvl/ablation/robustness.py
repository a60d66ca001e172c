"""What a generator answers from when its robustness is measured: good pictures, and bad ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

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
_ANSWERS_AT_ONCE = 256  # whose pictures are held


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

    def evidence(self, document: Callable[[str], Document], number: int) -> list[Document]:
        """The documents that the question of that number is answered from.

        Args:
            document: gives the one of an id.
            number: of the question.
        """
        documents = [document(id) for id in self.documents[number]]
        if self.timestep is None:
            return documents
        return [noised(document, number, self.timestep) for document in documents]

    def asked(self, number: int) -> tuple[int, tuple[str, ...], int | None]:
        """What is the same where the question of that number is asked in the same way."""
        return number, tuple(self.documents[number]), self.timestep

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
    conditions: Sequence[Condition],
    *,
    max_new_tokens: int = 32,
) -> dict[str, list[float]]:
    """How right the answer to each question is under each condition, by the condition's name.

    Args:
        generator: answers.
        source: has the documents.
        questions: with answers; those of the conditions.
        conditions: what they are answered from.
        max_new_tokens: of an answer.
    """
    measure = next(iter(answer_metrics(source).values()))
    judged: dict[str, list[float]] = {condition.name: [] for condition in conditions}
    # All conditions of some questions together: they share pictures, and prompts of one length
    count = max(1, _ANSWERS_AT_ONCE // max(1, len(conditions)))
    for start in range(0, len(questions), count):
        document = cache(source.document)
        numbers = range(start, min(start + count, len(questions)))
        asked = {
            condition.asked(number): (questions[number].text, condition.evidence(document, number))
            for number in numbers
            for condition in conditions
        }
        texts, evidence = zip(*asked.values(), strict=True)
        answers = generator.answer_batch(
            texts, evidence, max_new_tokens=max_new_tokens, progress=False
        )
        answered = dict(zip(asked, answers, strict=True))
        for condition in conditions:
            judged[condition.name] += [
                measure(answered[condition.asked(number)], questions[number]) for number in numbers
            ]
    return judged


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
