"""Questions with the documents that answer them: what every data set looks like to the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ragvl.data.document import Document

Pool = Literal["full", "gold"]


@dataclass(frozen=True)
class Question:
    """A question with what is known about it.

    Attributes:
        id: unique in its data set.
        text: the question.
        answers: accepted answers; the first is the preferred one.
        category: what kind of question it is, in the data set's own words.
        gold: ids of the documents that answer it.
        negatives: ids of the documents that the data set lists as distractors.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    category: str
    gold: tuple[str, ...]
    negatives: tuple[str, ...]


class QuestionSet(Protocol):
    """One split of a data set."""

    @property
    def questions(self) -> Sequence[Question]:
        """Its questions, in order."""

    def document_ids(self, pool: Pool = "full") -> list[str]:
        """Ids of the retrieval pool: every document, or gold ones only."""

    def document(self, document_id: str) -> Document:
        """One document; KeyError if there is none of that id."""
