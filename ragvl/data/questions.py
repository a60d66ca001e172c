"""Questions with the documents that answer them: what every data set looks like to the rest."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from ragvl.data.document import Document
from ragvl.data.images import ImageError
from ragvl.data.picture import Picture
from ragvl.data.problems import Problems, brief_quoted, no_use
from ragvl.data.query import Query
from ragvl.identity import document_name, file_version_name, name_of
from ragvl.messages import shown

logger = logging.getLogger(__name__)

Pool = Literal["full", "gold"]
POOLS: tuple[Pool, ...] = ("full", "gold")
Modality = Literal["image", "text", "both"]
"""Which documents of a data set that has pictures and texts, and the questions about those."""
SHOWN_MODALITY: dict[Modality, str] = {
    "image": "",
    "text": ", texts",
    "both": ", pictures and texts",
}


@dataclass(frozen=True)
class Question:
    """A question with what is known about it.

    Attributes:
        id: unique in its data set.
        text: the question; of caption retrieval the caption that is looked for.
        answers: accepted answers, the first is the preferred one; or the parts of one answer, where
            `QuestionSet.answer_metric` says so. Empty where none is known.
        category: what kind of question it is, in the data set's own words.
        gold: ids of the documents that answer it; empty where none is known.
        negatives: ids of the documents that the data set lists as distractors.
        image: the file of a picture that is asked about.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    category: str
    gold: tuple[str, ...]
    negatives: tuple[str, ...]
    image: Path | None = None

    @cached_property
    def query(self) -> Query:
        """What is asked: the text, and the picture if there is one."""
        return Query(self.text, self.image)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The picture that is asked about, if there is one."""
        return () if self.image is None else self.query.pictures

    @property
    def content(self) -> tuple[str, ...]:
        """Names what is asked: others after another text, or after the picture's file changed."""
        return self.text, *map(_version, self.pictures)


@dataclass(frozen=True)
class Search:
    """Questions that are searched for in one pool of documents.

    Attributes:
        questions: the questions.
        document_ids: the pool.
    """

    questions: Sequence[Question]
    document_ids: Sequence[str]


def question_name(id: str | None, text: str) -> str:
    """Names a question whatever its data set is called."""
    return name_of("question", id, text)[:12]


class QuestionSet(ABC):
    """One split of a data set. Questions are held in memory, pictures read when they are needed.

    A question of which a gold document lacks a picture is left out, and so is a distractor that
    lacks one; `problems` counts and names them.

    Attributes:
        name: what results call it: data set and split.
        questions: its questions, in order.
        problems: what is wrong with its files, so far as it was noticed.
        answer_metric: how answers are judged; see `ragvl.evaluation.answers`.
        template: the prompt that a reranker's questions are put in, by its name in `TEMPLATES`.
    """

    name: str
    questions: Sequence[Question]
    problems: Problems
    answer_metric: Literal["webqa", "multimodalqa", "exact"] = "exact"
    template: Literal["auto", "retrieval"] = "auto"

    @abstractmethod
    def document_ids(self, pool: Pool = "full") -> list[str]:
        """Ids of the retrieval pool: every document, or gold ones only.

        The release of RagVL fills its pool with gold documents only; both are reported here.
        """

    @abstractmethod
    def document(self, document_id: str) -> Document:
        """One document, its picture read no earlier than now.

        Raises:
            KeyError: there is none of that id.
            ImageError: its picture cannot be read.
        """

    def other_documents(self) -> Iterator[Document]:
        """The documents that are not one picture, such as texts; no picture is read for it."""
        return iter(())

    def texts(self) -> set[str]:
        """Ids of the documents without a picture."""
        return {str(document.id) for document in self.other_documents() if not document.pictures}

    def document_name(self, document_id: str) -> str:
        """Names a document's content: another after a text of it or a picture's file changed.

        No picture is decoded or read; see `identity.file_version_name`.

        Raises:
            KeyError: there is none of that id.
        """
        document = self.document(document_id)
        if document.image is not None:
            return document_name(document.caption, _version(document.pictures[0]))
        parts = [part if isinstance(part, str) else (_version(part),) for part in document.parts]
        return name_of("parts", parts)

    @property
    def gold(self) -> dict[str, tuple[str, ...]]:
        """Ids of the documents that answer a question, by the question's id."""
        return {question.id: question.gold for question in self.questions}

    def target(self, question: Question) -> str:
        """The answer to learn; empty where none is known."""
        if self.answer_metric == "multimodalqa":
            return ", ".join(question.answers)
        return next(filter(None, question.answers), "")

    def documents(
        self, pool: Pool = "full", *, ids: Iterable[str] | None = None
    ) -> Iterator[Document]:
        """Documents, one at a time; one that cannot be read is a problem, and is left out.

        Args:
            pool: which documents.
            ids: only these.

        Raises:
            DataError: one cannot be read, and `problems.strict` is set.
        """
        for document_id in self.document_ids(pool) if ids is None else ids:
            try:
                yield self.document(document_id)
            except ImageError as error:
                self.problems.add("broken picture", str(error))

    def decodable(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents whose pictures can be decoded; any other is a problem, and is left out.

        Raises:
            DataError: one cannot be decoded, and `problems.strict` is set.
        """
        for document in documents:
            try:
                for picture in document.pictures:
                    picture.load()
            except ImageError as error:
                self.problems.add("broken picture", str(error))
            else:
                yield document

    def askable(self, questions: Iterable[Question]) -> Iterator[Question]:
        """The questions whose pictures can be decoded; any other is a problem, and is left out.

        Raises:
            DataError: one cannot be decoded, and `problems.strict` is set.
        """
        for question in questions:
            try:
                for picture in question.pictures:
                    picture.load()
            except ImageError as error:
                message = f"question {brief_quoted(question.id)}: {error}"
                self.problems.add("question picture broken", message)
            else:
                yield question

    def answerable(
        self, questions: Iterable[Question], readable: Container[str]
    ) -> Iterator[Question]:
        """The questions that can be read, as their gold documents can all; others are problems.

        As a gold document without a picture, so one with a broken picture leaves nothing to find.

        Args:
            questions: some of its questions.
            readable: ids of the documents that can be read.

        Raises:
            DataError: there is one that is not, and `problems.strict` is set.
        """
        for question in self.askable(questions):
            if broken := [id for id in question.gold if id not in readable]:
                asked, gold = brief_quoted(question.id), brief_quoted(broken[0])
                self.problems.add("gold picture broken", f"question {asked}: document {gold}")
            else:
                yield question

    def searches(self, pool: Pool = "full") -> list[Search]:
        """Which questions are searched for in which documents: usually all in all."""
        return [Search(self.questions, self.document_ids(pool))]

    def check(self) -> None:
        """Warns of problems, once the files are read.

        Raises:
            DataError: no question is left.
        """
        if not self.questions:
            raise no_use(f"{self.name} has no usable question", self.problems)
        if len(self.problems):
            logger.warning("%s: %s", shown(self.name), self.problems)


def refuse_pictures(questions: Iterable[Question]) -> None:
    """Refuses questions with pictures, which a generator is not asked.

    Raises:
        ValueError: there is one; the message names it.
    """
    if pictured := next((question for question in questions if question.image is not None), None):
        raise ValueError(
            f"question {brief_quoted(pictured.id)} has a picture, and a generator answers "
            "questions in words"
        )


def one_of_each_kind(documents: Iterable[Document]) -> Iterator[Document]:
    """One document for each order of pictures and texts that there is among them."""
    kinds: set[tuple[bool, ...]] = set()
    for document in documents:
        kind = tuple(isinstance(part, str) for part in document.parts)
        if kind not in kinds:
            kinds.add(kind)
            yield document


def _version(picture: Picture) -> str:
    return picture.digest() if picture.path is None else file_version_name(picture.path)
