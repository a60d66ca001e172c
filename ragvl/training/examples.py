"""From questions and documents to a model's inputs and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ragvl.data.document import Document
from ragvl.data.picture import Picture
from ragvl.data.query import Query
from ragvl.data.questions import QuestionSet, one_of_each_kind, question_name, refuse_pictures
from ragvl.generator.prompt import generator_prompt
from ragvl.mllm import (
    MLLM,
    CaptionLimit,
    ImageInputs,
    Prompt,
    Prompting,
    encode_picture,
    too_long,
)
from ragvl.mllm.inputs import placed
from ragvl.reranker.prompts import Prompts, shared_length
from ragvl.reranker.templates import Template, pictures_in_order, resolve_template
from ragvl.training.fewer_image_tokens import PICTURE_SIZES, PREFIX_LENGTHS

if TYPE_CHECKING:
    from ragvl.training.ranking import RankingSample

IGNORE = -100  # the label of a position that does not count
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Example:
    """A prompt with the answer to learn.

    Attributes:
        prompt: as it is rendered for the model.
        documents: what it is about.
        answer: what is learned.
        pictures: in the order of the prompt; None for those of the documents.
        prefix: makes, of the documents' pictures, what prompts with any question begin with; None
            where that is not known.
    """

    prompt: str
    documents: Sequence[Document]
    answer: str
    pictures: Sequence[Picture] | None = None
    prefix: Callable[[Sequence[ImageInputs]], Prompt] | None = field(default=None, compare=False)


class RankingExamples(Dataset[Example]):
    """Yes and No samples, worded as a `Reranker` words its prompts.

    Args:
        samples: see `ranking_samples`.
        source: where their documents are.
        prompting: that of the model to train; it goes to worker processes.
        template: None is the data set's own: of captions `retrieval`; else `auto`, which is
            `caption` for a picture with a caption, `plain` for one without, `document` for all
            else.
        caption_tokens: cuts captions as a `Reranker` with the same does.

    Raises:
        ValueError: no samples, or a sample's document is not in `source`.
            Or the template has no place for a question's picture.
        DocumentError: the template has no place for a sample's document.
    """

    def __init__(
        self,
        samples: Sequence[RankingSample],
        source: QuestionSet,
        prompting: Prompting,
        template: Template | None = None,
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
        self._prompts = Prompts(prompting.on_cpu(), template, caption_tokens)
        self._asked_about: dict[str | None, Path] = {
            q.id: q.image for q in source.questions if q.image is not None
        }
        wanted = {sample.document for sample in samples}
        others = (one for one in source.other_documents() if one.id in wanted)
        for document in one_of_each_kind(others):
            self._prompts.check_document(document)
        pictured = (sample for sample in samples if sample.question_id in self._asked_about)
        for sample in islice(pictured, 1):
            self._prompts.check(self._query(sample), source.document(sample.document))

    @property
    def template_name(self) -> str:
        """What the template of their prompts is called."""
        return self._prompts.template.name

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Example:
        sample = self._samples[index]
        query = self._query(sample)
        document = self._source.document(sample.document)
        prompt = self._prompts.text(query, document)
        pictures = pictures_in_order(self._prompts.template, query, document)
        prefix = partial(self._prompts.prefix, document)
        return Example(prompt, [document], sample.answer, pictures, prefix)

    def question_name(self, index: int) -> str:
        """Names the question of an example; see `ragvl.data.questions.question_name`."""
        sample = self._samples[index]
        return question_name(sample.question_id, sample.question)

    def _query(self, sample: RankingSample) -> Query:
        return Query(sample.question, self._asked_about.get(sample.question_id))


class AnswerExamples(Dataset[Example]):
    """Questions with their own pictures and, up to `num_pictures`, irrelevant ones among them.

    The paper's data-level noise (section 3.3): the generator learns to find what matters among
    what does not. Which pictures are added, and the order of all, depend on the seed and the
    question's place alone, so that training that is taken up again sees the same samples.

    Args:
        source: its questions that have an answer and gold documents; others are left out.
        prompting: that of the model to train; it goes to worker processes.
        num_pictures: irrelevant pictures are added until there are so many; 0 adds none.
        hard: add what the data set lists as the question's distractors, where it lists any, else
            documents drawn at random.
        seed: of the draws.
        caption_tokens: cuts captions as a `Generator` with the same does.

    Raises:
        ValueError: no question has an answer and a gold document, or one has a picture.
    """

    def __init__(
        self,
        source: QuestionSet,
        prompting: Prompting,
        *,
        num_pictures: int = 0,
        hard: bool = True,
        seed: int = 0,
        caption_tokens: int | None = None,
    ) -> None:
        self._questions = [q for q in source.questions if q.gold and source.target(q)]
        if not self._questions:
            raise ValueError("no question has both an answer and a gold document")
        refuse_pictures(self._questions)
        self._source = source
        self._ids = source.document_ids()
        self._prompting = prompting.on_cpu()
        self._captions = CaptionLimit(self._prompting, caption_tokens)
        self._num_pictures = num_pictures
        self._hard = hard
        self._seed = seed

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> Example:
        question = self._questions[index]
        documents = [self._source.document(id) for id in self._evidence(index)]
        shortened = [*map(self._captions.shortened, documents)]
        template, fields = generator_prompt(question.text, shortened)
        prompt = self._prompting.render(template, **fields)
        return Example(prompt, documents, self._source.target(question))

    def question_name(self, index: int) -> str:
        """Names the question of an example; see `ragvl.data.questions.question_name`."""
        question = self._questions[index]
        return question_name(question.id, question.text)

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
    """Makes a batch of examples: the keyword arguments of the model's forward, and labels.

    Args:
        mllm: the model to train; worker processes get all but its weights.
        marks_prefixes: batches also say where prompts' prefixes end; see `fewer_image_tokens`.
    """

    def __init__(self, mllm: MLLM, *, marks_prefixes: bool = False) -> None:
        self._prompting = mllm.prompting.on_cpu()
        self._dtype = mllm.dtype
        self._marks_prefixes = marks_prefixes

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """`Prompting.collate`'s batch, and `labels` (B, T) int64: answers' tokens, else `IGNORE`.

        On the CPU, so that it can be done ahead in worker processes.

        Raises:
            ImageError: a picture cannot be read.
            PromptTooLongError: an example does not fit the model's context; the message names its
                documents.
        """
        prompts, labels, prefixes = zip(
            *map(self._encode, range(len(examples)), examples), strict=True
        )
        batch = placed(self._prompting.collate(prompts), _CPU, self._dtype)
        batch["labels"] = pad_sequence(list(labels), True, IGNORE)
        if self._marks_prefixes:
            batch[PREFIX_LENGTHS] = torch.tensor([length for length, _ in prefixes])
            batch[PICTURE_SIZES] = pad_sequence([torch.tensor(own) for _, own in prefixes], True, 0)
        return batch

    def _encode(self, index: int, example: Example) -> tuple[Prompt, Tensor, tuple[int, list[int]]]:
        """The prompt with its answer, the labels of both, and what `_prefix` says of it."""
        prompting = self._prompting
        pictures = example.pictures
        if pictures is None:
            pictures = [p for document in example.documents for p in document.pictures]
        images = [encode_picture(prompting, picture) for picture in pictures]
        prompt = prompting.encode_prompt(example.prompt, images)
        answer = prompting.encode_answer(example.prompt, example.answer)
        length = len(prompt) + len(answer)
        if length > prompting.max_length:
            raise too_long(
                prompting.max_length, length, example.documents, index=index, answer=example.answer
            )
        labels = torch.full((length,), IGNORE)
        labels[len(prompt) :] = torch.tensor(answer)
        prefix = self._prefix(example, prompt) if self._marks_prefixes else (0, [0])
        return Prompt([*prompt.input_ids, *answer], prompt.images), labels, prefix

    def _prefix(self, example: Example, prompt: Prompt) -> tuple[int, list[int]]:
        """Where a prompt's rest begins, and how many tokens its prefix's pictures have.

        (0, [0]) where it cannot go on from a prefix with all of its pictures.
        """
        if example.prefix is None:
            raise ValueError("image_tokens is about rerankers: only their prompts have prefixes")
        known = {
            id(picture): image
            for picture, image in zip(example.pictures or (), prompt.images, strict=True)
        }
        images = [known[id(p)] for document in example.documents for p in document.pictures]
        prefix = example.prefix(images).input_ids
        shared = shared_length(prompt.input_ids, prefix)
        if not images or self._prompting.image_token_id in prefix[shared:]:
            return 0, [0]
        return shared, [image.num_tokens for image in images]
