"""Your own questions: a JSONL file, one question a line.

    {"id": "q1", "question": "What color is the roof?", "answer": "red",
     "images": ["a.jpg", "b.jpg"], "captions": ["Harbour, 1987", "Museum"], "gold": ["b.jpg"]}

`images` are paths relative to the file, or absolute, each known by its path as it is written
(./a.jpg is a.jpg). Other documents stand beside them or in their place: `texts`, and `documents`,
which are `DocumentLine`s with an id:

    {"id": "q2", "question": "Who built the mill?", "texts": ["Anna Brandt built it in 1871."],
     "documents": [{"id": "page 7", "parts": [{"image": "page-7.png"}, "Deed of sale"]}],
     "gold": ["Anna Brandt built it in 1871.", "page 7"]}

A question may be about a picture, `"question_image": "photo.jpg"`.

All lines' documents together are what is searched. `gold` names those of the line's own that answer
it: images by their paths, texts word for word, `documents` by their ids. `answer` may be a list of
accepted answers. Of `images`, `texts` and `documents` one is needed; `captions` (one for each
image, or null), `answer`, `gold` and `category` may be left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, model_validator

from ragvl.data.document import Document
from ragvl.data.lines import DocumentLine
from ragvl.data.problems import Problems, brief_quoted
from ragvl.data.questions import Pool, Question, QuestionSet
from ragvl.data.reading import Listings, existing, place, read_lines
from ragvl.data.schemas import FIRST_ERROR, Paths, Text, parsed, plain_path
from ragvl.data.validation import (
    MissingPictures,
    TextTable,
    each_once,
    given_answers,
    pictures_are_there,
)
from ragvl.identity import name_of

_ID_LENGTH = 16  # digits of a text's name


class NamedDocument(DocumentLine):
    """A document with an id."""

    id: Text


class QuestionLine(BaseModel):
    """A line of the file, as the module describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Text
    question: Text
    question_image: Text | None = None
    answer: str | Annotated[tuple[str, ...], FIRST_ERROR] | None = None
    images: Paths = ()
    captions: Annotated[tuple[str | None, ...], FIRST_ERROR] | None = None
    texts: Annotated[tuple[Text, ...], FIRST_ERROR] = ()
    documents: Annotated[tuple[NamedDocument, ...], FIRST_ERROR] = ()
    gold: Annotated[tuple[Text, ...], FIRST_ERROR] = ()
    category: str = "any"

    @model_validator(mode="after")
    def _check(self) -> QuestionLine:
        for kind, names in (
            ("images", self.images),
            ("texts", self.texts),
            ("documents", [document.id for document in self.documents]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"{kind} names one twice")
        count = len(self.images) + len(self.texts) + len(self.documents)
        if not count:
            raise ValueError("at least one of images, texts and documents is needed")
        if len(self.ids) < count:
            raise ValueError("an image, a text or a document has another one's name")
        if self.captions is not None and len(self.captions) != len(self.images):
            raise ValueError(f"{len(self.captions)} captions for {len(self.images)} images")
        return self

    @property
    def answers(self) -> tuple[str, ...]:
        """Accepted answers, as they are written."""
        if self.answer is None:
            return ()
        return (self.answer,) if isinstance(self.answer, str) else self.answer

    @cached_property
    def ids(self) -> dict[str, str]:
        """Documents' ids by what the line calls them."""
        return {
            **{image: image for image in self.images},
            **{text: text_id(text) for text in self.texts},
            **{document.id: document.id for document in self.documents},
        }

    def gold_ids(self) -> list[str]:
        """Ids of the documents that answer it.

        Raises:
            KeyError: one is none of the line's.
        """
        paths = {name: plain_path(name) for name in self.gold if name not in self.ids}
        return [self.ids[paths.get(name, name)] for name in self.gold]

    def captioned(self) -> Iterator[tuple[str, str | None]]:
        """Images with their captions, None where there is none to read."""
        captions = self.captions or [None] * len(self.images)
        for image, caption in zip(self.images, captions, strict=True):
            yield image, caption if caption and caption.strip() else None

    def described(self) -> Iterator[NamedDocument]:
        """The other documents."""
        for text in self.texts:
            yield NamedDocument(id=text_id(text), text=text)
        yield from self.documents


def text_id(text: str) -> str:
    """The id of a text that has no other: the same whenever the text is."""
    return f"text-{name_of('text', text)[:_ID_LENGTH]}"


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
        self._captions = TextTable(self.problems)
        self._described: dict[str, NamedDocument] = {}
        self._ids: dict[str, None] = {}  # ordered set
        self._gold: dict[str, None] = {}
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
        try:
            gold = each_once(line.gold_ids(), where, self.problems)
        except KeyError as error:
            message = f"{where}: {brief_quoted(error.args[0])} is none of the line's documents"
            self.problems.add("gold not among documents", message)
            return
        if line.question_image and self._missing.among([line.question_image], where):
            self.problems.add("question picture missing", where)
            return
        described = {document.id: document for document in line.described()}
        named: list[str | NamedDocument] = [*line.images, *described.values()]
        if clash := next((one for one in named if self._is_another(one)), None):
            name = clash if isinstance(clash, str) else clash.id
            message = f"{where}: {brief_quoted(name)} was another document before"
            self.problems.add("two documents of one id", message)
            return
        missing = self._missing.among(line.images, where)
        missing |= {id for id, one in described.items() if self._missing.among(one.images, where)}
        if not pictures_are_there(gold, missing, where, self.problems):
            return
        answers = line.answers
        if line.answer is not None:
            answers = given_answers(answers, where, self.problems)
        for image, caption in line.captioned():
            if image not in missing:
                self._captions.add(image, caption, where)
        self._described |= {id: one for id, one in described.items() if id not in missing}
        there = [id for id in line.ids.values() if id not in missing]
        self._ids |= dict.fromkeys(there)
        self._gold |= dict.fromkeys(gold)
        self.questions.append(
            Question(
                id=line.id,
                text=line.question,
                answers=answers,
                category=line.category,
                gold=gold,
                # Where no gold is known, the others are not known to be distractors either
                negatives=tuple(id for id in there if gold and id not in gold),
                image=self._folder / line.question_image if line.question_image else None,
            )
        )

    def _is_another(self, document: str | NamedDocument) -> bool:
        """Whether an image or a described document has the id of an earlier document."""
        if isinstance(document, str):
            return document in self._described
        known = self._described.get(document.id, document)
        return document.id in self._captions or known != document

    def _why_missing(self, image: str) -> str | None:
        path = os.path.join(self._folder, image)
        return None if self._listings.has_file(path) else place(path)

    def document_ids(self, pool: Pool = "full") -> list[str]:
        """Every line's documents, or the ones that are gold to some line; see `QuestionSet`."""
        return list(self._gold if pool == "gold" else self._ids)

    def document(self, document_id: str) -> Document:
        """One document; see `QuestionSet`."""
        if document_id in self._described:
            return self._described[document_id].document(self._folder)
        return Document(
            self._folder / document_id, caption=self._captions[document_id], id=document_id
        )

    def other_documents(self) -> Iterator[Document]:
        """Texts, and documents of several parts; see `QuestionSet`."""
        for document in self._described.values():
            if document.image is None:
                yield document.document(self._folder)
