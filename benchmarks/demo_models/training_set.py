"""The training split in memory, and the prompts that are drawn from it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ragvl.data.document import Document
from ragvl.data.questions import Question
from ragvl.data.webqa import WebQA
from ragvl.generator.prompt import generator_prompt
from ragvl.mllm import ConvolutionalVisionModel
from ragvl.reranker.templates import CAPTION

_PICTURES_AT_ONCE = 256


@dataclass(frozen=True)
class TrainingSet:
    """A split held in memory: questions, and each document's picture and caption."""

    questions: Sequence[Question]
    pixels: Tensor  # (documents, 3, SIZE, SIZE) uint8
    captions: Sequence[str]
    descriptions: Sequence[str]
    features: Tensor  # (documents, tokens, dim) what a vision tower gives; empty before `seen_by`
    row: dict[str, int]  # document id -> row of the three above
    gold_of: Sequence[Sequence[Question]]  # row -> the questions that this picture answers
    negative_of: Sequence[Sequence[Question]]  # row -> the questions whose hard negative it is

    @classmethod
    def read(cls, folder: Path, split: str) -> TrainingSet:
        """Reads what `write_world` wrote."""
        dataset = WebQA(folder, split=split)
        described = json.loads((folder / "descriptions.json").read_text())
        ids = dataset.document_ids()
        documents = [dataset.document(document_id) for document_id in ids]
        pictures = np.stack([np.asarray(document.load()) for document in documents])
        row = {document_id: i for i, document_id in enumerate(ids)}
        gold_of: list[list[Question]] = [[] for _ in ids]
        negative_of: list[list[Question]] = [[] for _ in ids]
        for question in dataset.questions:
            for document_id in question.gold:
                gold_of[row[document_id]].append(question)
            for document_id in question.negatives:
                negative_of[row[document_id]].append(question)
        return cls(
            questions=dataset.questions,
            pixels=torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(),
            captions=[document.caption or "" for document in documents],
            descriptions=[described[document_id] for document_id in ids],
            features=torch.empty(0),
            row=row,
            gold_of=gold_of,
            negative_of=negative_of,
        )

    @torch.no_grad()
    def seen_by(self, tower: ConvolutionalVisionModel) -> TrainingSet:
        """With what `tower` gives for each picture."""
        rows = torch.arange(len(self.captions)).split(_PICTURES_AT_ONCE)
        features = [
            tower(self.pixel_values(part.tolist()).to(tower.device)).last_hidden_state.cpu()
            for part in rows
        ]
        return dataclasses.replace(self, features=torch.cat(features))

    def pixel_values(self, rows: Sequence[int]) -> Tensor:
        """(rows, 3, SIZE, SIZE) float32, scaled as the shipped image processor scales them."""
        return (self.pixels[list(rows)].float() / 255 - 0.5) / 0.5


@dataclass(frozen=True)
class Group:
    """Prompts that begin with the same pictures and captions, each with its answer.

    What they share is computed once: the prompts' own ends see it, but not each other.
    """

    rows: tuple[int, ...]  # the pictures, in the prompts' order
    turns: tuple[tuple[str, str], ...]  # (prompt, answer)


def description_group(data: TrainingSet, rng: np.random.Generator) -> Group:
    """A picture and all that there is to see in it."""
    row = int(rng.integers(len(data.captions)))
    prompt = f"<image>\nImage Caption: {data.captions[row]}\nDescribe the image."
    return Group((row,), ((prompt, data.descriptions[row]),))


def relevance_group(data: TrainingSet, rng: np.random.Generator) -> Group:
    """A picture, questions that it answers (Yes) and that it is a hard negative of (No)."""
    while True:
        row = int(rng.integers(len(data.captions)))
        if data.gold_of[row] and data.negative_of[row]:
            break
    turns = []
    for questions, answer in ((data.gold_of[row], "Yes"), (data.negative_of[row], "No")):
        for i in rng.permutation(len(questions))[:3]:
            fields = {"query": questions[int(i)].text, "caption": data.captions[row]}
            turns.append((CAPTION.text.format(**fields), answer))
    return Group((row,), tuple(turns))


def gold_answer_group(data: TrainingSet, rng: np.random.Generator) -> Group:
    """Questions with their gold pictures."""
    return _answer_group(data, rng, distracted=0)


def answer_group(data: TrainingSet, rng: np.random.Generator) -> Group:
    """Questions with their gold pictures and, half of the time, a distractor among them."""
    return _answer_group(data, rng, distracted=0.5)


def _answer_group(data: TrainingSet, rng: np.random.Generator, *, distracted: float) -> Group:
    question = data.questions[int(rng.integers(len(data.questions)))]
    rows = [data.row[document_id] for document_id in question.gold]
    questions = [question]
    if len(rows) == 1:
        questions += [q for q in data.gold_of[rows[0]] if q.gold == question.gold and q != question]
        if rng.random() < distracted:
            rows.append(data.row[question.negatives[rng.integers(len(question.negatives))]])
    rng.shuffle(rows)
    # of which the prompt holds the captions alone
    documents = [Document(b"", caption=data.captions[row]) for row in rows]
    turns = []
    for question in questions[:4]:
        template, fields = generator_prompt(question.text, documents)
        turns.append((template.format(**fields), question.answers[0]))
    return Group(tuple(rows), tuple(turns))
