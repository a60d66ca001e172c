"""Your own questions: a JSONL file, one question a line.

    {"id": "q1", "question": "What color is the roof?", "answer": "red",
     "images": ["a.jpg", "b.jpg"], "captions": ["Harbour, 1987", "Museum"], "gold": ["b.jpg"]}

`images` are paths relative to the file, or absolute; all lines' images together are the documents,
each known by its path as it is written (./a.jpg is a.jpg). `gold` names those of the line's own
images that answer it. `answer` may be a list of accepted answers. `captions` (one for each image,
or null), `answer`, `gold` and `category` may be left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ragvl.data.document import Document
from ragvl.data.problems import Problems, brief_quoted
from ragvl.data.questions import Pool, Question, QuestionSet
from ragvl.data.reading import Listings, existing, place, read_lines
from ragvl.data.schemas import FIRST_ERROR, Paths, Text, parsed
from ragvl.data.validation import (
    CaptionTable,
    MissingPictures,
    each_once,
    given_answers,
    pictures_are_there,
)


class QuestionLine(BaseModel):
    """A line of the file, as the module describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Text
    question: Text
    answer: str | Annotated[tuple[str, ...], FIRST_ERROR] | None = None
    images: Annotated[Paths, Field(min_length=1)]
    captions: Annotated[tuple[str | None, ...], FIRST_ERROR] | None = None
    gold: Paths = ()
    category: str = "any"

    @model_validator(mode="after")
    def _check(self) -> QuestionLine:
        if len(set(self.images)) < len(self.images):
            raise ValueError("images names one twice")
        if self.captions is not None and len(self.captions) != len(self.images):
            raise ValueError(f"{len(self.captions)} captions for {len(self.images)} images")
        return self

    @property
    def answers(self) -> tuple[str, ...]:
        """Accepted answers, as they are written."""
        if self.answer is None:
            return ()
        return (self.answer,) if isinstance(self.answer, str) else self.answer

    def documents(self) -> Iterator[tuple[str, str | None]]:
        """Images with their captions, None where there is none to read."""
        captions = self.captions or [None] * len(self.images)
        for image, caption in zip(self.images, captions, strict=True):
            yield image, caption if caption and caption.strip() else None


class JsonlQuestions(QuestionSet):
    """Questions of such a file.

    Args:
        file: the file; .gz is unpacked.
        strict: stop at the first problem.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: no question is left, or `strict` met a problem.
    """

    def __init__(self, file: str | Path, *, strict: bool = False) -> None:
        path = existing(Path(file), "expected a JSONL file, one question a line")
        self.name = path.name.removesuffix(".gz").removesuffix(".jsonl")
        self.problems = Problems(strict)
        self._folder = path.parent
        self._listings = Listings()
        self._missing = MissingPictures(self._why_missing, self.problems)
        self._captions = CaptionTable(self.problems)
        self._gold: dict[str, None] = {}  # ordered set
        self.questions: list[Question] = []
        seen: set[str] = set()
        for number, text in read_lines(path, self.problems):
            where = place(path, number)
            parse = QuestionLine.model_validate_json
            line = parsed(parse, text, "broken line", where, self.problems)
            if line is None:
                continue
            if line.id in seen:
                self.problems.add("duplicate id", f"{where}: {brief_quoted(line.id)}")
                continue
            seen.add(line.id)
            self._add(line, where)
        self.check()

    def _add(self, line: QuestionLine, where: str) -> None:
        gold = each_once(line.gold, where, self.problems)
        if strangers := [image for image in gold if image not in line.images]:
            message = f"{where}: {brief_quoted(strangers[0])} is none of the line's images"
            self.problems.add("gold not among images", message)
            return
        missing = self._missing.among(line.images, where)
        if not pictures_are_there(gold, missing, where, self.problems):
            return
        answers = line.answers
        if line.answer is not None:
            answers = given_answers(answers, where, self.problems)
        there = {image: caption for image, caption in line.documents() if image not in missing}
        for image, caption in there.items():
            self._captions.add(image, caption, where)
        self._gold |= dict.fromkeys(gold)
        self.questions.append(
            Question(
                id=line.id,
                text=line.question,
                answers=answers,
                category=line.category,
                gold=gold,
                # Where no gold is known, the others are not known to be distractors either
                negatives=tuple(image for image in there if gold and image not in gold),
            )
        )

    def _why_missing(self, image: str) -> str | None:
        path = os.path.join(self._folder, image)
        return None if self._listings.has_file(path) else place(path)

    def document_ids(self, pool: Pool = "full") -> list[str]:
        """Every line's images, or the ones that are gold to some line; see `QuestionSet`."""
        return list(self._gold if pool == "gold" else self._captions)

    def document(self, document_id: str) -> Document:
        """One document; see `QuestionSet`."""
        return Document(
            self._folder / document_id, caption=self._captions[document_id], id=document_id
        )
