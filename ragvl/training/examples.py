"""From questions and documents to a model's inputs and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ragvl.data.document import Document
from ragvl.data.questions import QuestionSet
from ragvl.generator.prompt import generator_prompt
from ragvl.mllm import MLLM, CaptionLimit, Prompt, encode_document, too_long
from ragvl.reranker.prompts import Prompts
from ragvl.reranker.templates import PromptTemplate, resolve_template

if TYPE_CHECKING:
    from ragvl.training.ranking import RankingSample

IGNORE = -100  # the label of a position that does not count
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Example:
    """A prompt as it is rendered for the model, its documents, and the answer to learn."""

    prompt: str
    documents: Sequence[Document]
    answer: str


class RankingExamples(Dataset[Example]):
    """Yes and No samples, worded as a `Reranker` words its prompts.

    Args:
        samples: see `ranking_samples`.
        source: where their documents are.
        mllm: the model to train; worker processes get all but its weights.
        template: None is the data set's own: of captions `retrieval`; else `caption` for a
            document with a caption, and `plain` for one without.
        caption_tokens: cuts captions as a `Reranker` with the same does.

    Raises:
        ValueError: no samples, or a sample's document is not in `source`.
    """

    def __init__(
        self,
        samples: Sequence[RankingSample],
        source: QuestionSet,
        mllm: MLLM,
        template: PromptTemplate | None = None,
        *,
        caption_tokens: int | None = None,
    ) -> None:
        if not samples:
            raise ValueError("no samples to train on")
        known = set(source.document_ids())
        for number, sample in enumerate(samples):
            if sample.document not in known:
                raise ValueError(
                    f"sample {number} names document {sample.document!r}, which is not in the data "
                    "set: take the one that the ranking samples were made from"
                )
        self._samples = samples
        self._source = source
        template = template or resolve_template(source.template)
        self._prompts = Prompts(mllm.without_weights(), template, caption_tokens)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Example:
        sample = self._samples[index]
        document = self._source.document(sample.document)
        return Example(self._prompts.text(sample.question, document), [document], sample.answer)


class AnswerExamples(Dataset[Example]):
    """Questions with their own pictures and, up to `num_pictures`, irrelevant ones among them.

    The paper's data-level noise (section 3.3): the generator learns to find what matters among
    what does not. Which pictures are added, and the order of all, depend on the seed and the
    question's place alone, so that training that is taken up again sees the same samples.

    Args:
        source: its questions that have an answer and gold documents; others are left out.
        mllm: the model to train; worker processes get all but its weights.
        num_pictures: irrelevant pictures are added until there are so many; 0 adds none.
        hard: add what the data set lists as the question's distractors, where it lists any, else
            documents drawn at random.
        seed: of the draws.
        caption_tokens: cuts captions as a `Generator` with the same does.

    Raises:
        ValueError: no question has an answer and a gold document.
    """

    def __init__(
        self,
        source: QuestionSet,
        mllm: MLLM,
        *,
        num_pictures: int = 0,
        hard: bool = True,
        seed: int = 0,
        caption_tokens: int | None = None,
    ) -> None:
        self._questions = [q for q in source.questions if q.gold and source.target(q)]
        if not self._questions:
            raise ValueError("no question has both an answer and a gold document")
        self._source = source
        self._ids = source.document_ids()
        self._mllm = mllm.without_weights()
        self._captions = CaptionLimit(self._mllm, caption_tokens)
        self._num_pictures = num_pictures
        self._hard = hard
        self._seed = seed

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> Example:
        question = self._questions[index]
        documents = [self._source.document(id) for id in self._evidence(index)]
        captions = [self._captions(document.caption) for document in documents]
        template, fields = generator_prompt(question.text, captions)
        return Example(
            self._mllm.render(template, **fields), documents, self._source.target(question)
        )

    def num_own_pictures(self, index: int) -> int:
        """How many gold documents the question has."""
        return len(self._questions[index].gold)

    def _evidence(self, index: int) -> list[str]:
        question = self._questions[index]
        rng = np.random.default_rng([self._seed, index])
        chosen = list(question.gold)
        wanted = min(self._num_pictures, len(self._ids)) - len(chosen)
        if wanted > 0:
            hard = [id for id in question.negatives if id not in chosen] if self._hard else []
            chosen += [hard[i] for i in rng.permutation(len(hard))[:wanted]]
        while len(chosen) < min(self._num_pictures, len(self._ids)):
            candidate = self._ids[int(rng.integers(len(self._ids)))]
            if candidate not in chosen:
                chosen.append(candidate)
        rng.shuffle(chosen)
        return chosen


class Collator:
    """Makes a batch of examples: the keyword arguments of the model's forward, and labels."""

    def __init__(self, mllm: MLLM) -> None:
        self._mllm = mllm.without_weights()

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """See `MLLM.collate`; `labels` (B, T) int64 are the answers' tokens, elsewhere `IGNORE`.

        On the CPU, so that it can be done ahead in worker processes.

        Raises:
            ImageError: a picture cannot be read.
            PromptTooLongError: an example does not fit the model's context; the message names its
                documents.
        """
        prompts, labels = zip(*map(self._encode, range(len(examples)), examples), strict=True)
        batch = self._mllm.collate(prompts, device=_CPU)
        return {**batch, "labels": pad_sequence(list(labels), True, IGNORE)}

    def _encode(self, index: int, example: Example) -> tuple[Prompt, Tensor]:
        """The prompt with its answer, and the labels of both."""
        mllm = self._mllm
        images = [encode_document(mllm, document) for document in example.documents]
        prompt = mllm.encode_prompt(example.prompt, images)
        answer = mllm.encode_answer(example.prompt, example.answer)
        length = len(prompt) + len(answer)
        if length > mllm.max_length:
            raise too_long(mllm, length, example.documents, index=index, answer=example.answer)
        labels = torch.full((length,), IGNORE)
        labels[len(prompt) :] = torch.tensor(answer)
        return Prompt([*prompt.input_ids, *answer], prompt.images), labels
