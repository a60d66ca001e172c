"""Your own questions: a JSONL file, one question a line.

    {"id": "q1", "question": "What color is the roof?", "answer": "red",
     "images": ["a.jpg", "b.jpg"], "captions": ["Harbour, 1987", "Museum"], "gold": ["b.jpg"]}

`images` are files' paths, relative to this one or absolute, each known by its path as it is written
(./a.jpg is a.jpg). Other documents stand beside them or in their place: `texts`, and `documents`,
which are `DocumentLine`s with an id:

    {"id": "q2", "question": "Who built the mill?", "texts": ["Anna Brandt built it in 1871."],
     "documents": [{"id": "page 7", "parts": [{"image": "page-7.png"}, "Deed of sale"]}],
     "gold": ["Anna Brandt built it in 1871.", "page 7"]}

A question may be about a picture, `"question_image": "photo.jpg"`.

All lines' documents together are what is searched. `gold` names those that answer it: images by
their paths, texts word for word, `documents` by their ids; in a line of images alone, or of texts
alone, a number is a position, from 0. Ids may be whole numbers, and a list's only entry may stand
without brackets. `answer`, or `answers`, may be a list of accepted ones. Of `images`, `texts` and
`documents` one is needed; `captions` (one for each image, or null), `answer`, `gold`,
`distractors` and `category` may be left out.

A file `documents.jsonl` in the folder lists documents that are searched, too, so that no question
has to name each: a `DocumentLine` with an id a line, of the split that it names, which is the name
of the questions' file, or of every split. Questions name those by their ids, and need none of
their own:

    {"id": "mill", "image": "mill.jpg", "caption": "The mill, 1871", "split": "test"}

    {"id": "q3", "question": "What turns the mill?", "answer": "wind", "gold": ["mill"],
     "distractors": ["harbour"]}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StrictInt, model_validator

from ragvl.data.document import Document
from ragvl.data.lines import DocumentLine, read_documents
from ragvl.data.problems import Problems, brief_quoted
from ragvl.data.questions import Pool, Question, QuestionSet
from ragvl.data.reading import Listings, existing, is_file, place, read_lines, why_missing
from ragvl.data.schemas import FIRST_ERROR, ONE_OR_MORE, Id, Paths, Text, parsed, plain_path
from ragvl.data.validation import (
    MissingPictures,
    TextTable,
    each_once,
    given_answers,
    pictures_are_there,
)
from ragvl.identity import name_of

_EXAMPLE = '{"id": "q1", "question": "What color?", "images": ["a.jpg"], "gold": ["a.jpg"]}'
DOCUMENTS = "documents.jsonl"  # lists what is searched, in a folder of questions
_ID_LENGTH = 16  # digits of a text's name


_Names = Annotated[tuple[Text | StrictInt, ...], FIRST_ERROR, ONE_OR_MORE]


class NamedDocument(DocumentLine):
    """A document with an id."""

    id: Id


class QuestionLine(BaseModel):
    """A line of the file, as the module describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Id
    question: Text
    question_image: Text | None = None
    answer: str | Annotated[tuple[str, ...], FIRST_ERROR] | None = Field(
        default=None, validation_alias=AliasChoices("answer", "answers")
    )
    images: Paths = ()
    captions: Annotated[tuple[str | None, ...], FIRST_ERROR, ONE_OR_MORE] | None = None
    texts: Annotated[tuple[Text, ...], FIRST_ERROR, ONE_OR_MORE] = ()
    documents: Annotated[tuple[NamedDocument, ...], FIRST_ERROR] = ()
    gold: _Names = ()
    distractors: _Names = ()
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
        if len(self.ids) < count:
            raise ValueError("an image, a text or a document has another one's name")
        if both := set(self.named(self.gold)).intersection(self.named(self.distractors)):
            raise ValueError(f"{brief_quoted(both.pop())} is both gold and a distractor")
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

    def named(self, documents: Sequence[str | int]) -> list[str]:
        """What the line calls documents that are given by their names or, as numbers, positions.

        A number is a position, from 0, in a line of images or texts alone; elsewhere it is an id.

        Raises:
            ValueError: there is none in that position, or it may be an image or a text.
        """
        positions = [one for one in documents if isinstance(one, int)]
        if not positions or self.documents or not (self.images or self.texts):
            return list(map(str, documents))
        if self.images and self.texts:
            raise ValueError(f"{positions[0]} may be an image or a text: name it")
        there = self.images or self.texts
        if wrong := [one for one in positions if not 0 <= one < len(there)]:
            raise ValueError(f"there is no document {wrong[0]}, counted from 0")
        return [there[one] if isinstance(one, int) else one for one in documents]

    def id_of(self, name: str) -> str:
        """The id of the document that the line calls so; `name` itself, if it is none of its own.

        Images are known by any spelling of their paths.
        """
        return self.ids.get(name) or self.ids.get(plain_path(name), name)

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


@dataclass
class _Listed:
    """What a file of documents says, those of the split apart.

    Attributes:
        file: the file; None if there is none.
        of_split: ids of the split's documents.
        lost: those of them that lack a picture.
        elsewhere: other documents' splits, by id.
    """

    file: Path | None = None
    of_split: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    elsewhere: dict[str, str] = field(default_factory=dict)

    def why_not(self, id: str) -> str:
        """What is wrong with an id that is none of the line's; "" if it is listed."""
        if id in self.of_split:
            return ""
        if id in self.elsewhere:
            return f"is a document of the split {brief_quoted(self.elsewhere[id])}"
        also = "" if self.file is None else f", nor in {DOCUMENTS}"
        return f"is none of the line's documents{also}"


class JsonlQuestions(QuestionSet):
    """Questions of such a file, and the documents that the folder's `documents.jsonl` lists.

    Args:
        file: the file; .gz is unpacked.
        strict: stop at the first problem.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: no question is left, or `strict` met a problem.
    """

    def __init__(self, file: str | Path, *, strict: bool = False) -> None:
        path = existing(Path(file), "expected a JSONL file, one question a line")
        split = path.name.removesuffix(".gz").removesuffix(".jsonl")
        self.name = f"{path.resolve().parent.name}, {split}"
        self.problems = Problems(strict)
        self._folder = path.parent
        self._listings = Listings()
        self._missing = MissingPictures(self._why_missing, self.problems)
        self._captions = TextTable(self.problems)
        self._described: dict[str, DocumentLine] = {}
        self._ids: dict[str, None] = {}  # ordered set
        self._gold: dict[str, None] = {}
        self._listed = _Listed()
        if path.name != DOCUMENTS and is_file(self._folder / DOCUMENTS):
            self._read_listed(self._folder / DOCUMENTS, split=split)
        self.questions: list[Question] = []
        seen: set[str] = set()
        for number, text in read_lines(path, self.problems):
            where = place(path, number)
            parse = QuestionLine.model_validate_json
            line = parsed(parse, text, "broken line", where, self.problems, expected=_EXAMPLE)
            if line is None:
                continue
            if line.id in seen:
                self.problems.add("duplicate id", f"{where}: {brief_quoted(line.id)}")
                continue
            seen.add(line.id)
            self._add(line, where)
        self.check()

    def _read_listed(self, file: Path, split: str) -> None:
        """Takes the documents of a split from the file that lists them."""
        self._listed.file = file
        for line, where in read_documents(file, self.problems):
            if line.id is None:
                self.problems.add("broken line", f"{where}: id: Field required")
            elif not line.is_of(split):
                self._listed.elsewhere[line.id] = str(line.split)
            else:
                self._listed.of_split.add(line.id)
                if self._missing.among(line.images, where):
                    self._listed.lost.add(line.id)
                    continue
                self._described[line.id] = line
                self._ids[line.id] = None

    def _add(self, line: QuestionLine, where: str) -> None:
        if not line.ids and self._listed.file is None:
            why = f"at least one of images, texts and documents is needed, or a {DOCUMENTS}"
            self.problems.add("broken line", f"{where}: {why}")
            return
        gold = self._known(line, line.named(line.gold), "gold", where)
        if gold is None:
            return
        distractors = self._known(line, line.named(line.distractors), "distractor", where)
        if distractors is None:
            return
        if line.question_image and self._missing.among([line.question_image], where):
            self.problems.add("question picture missing", where)
            return
        described = {document.id: document for document in line.described()}
        of_line: list[str | NamedDocument] = [*line.images, *described.values()]
        if clash := next((one for one in of_line if self._is_another(one)), None):
            name = clash if isinstance(clash, str) else clash.id
            message = f"{where}: {brief_quoted(name)} was another document before"
            self.problems.add("two documents of one id", message)
            return
        missing = self._missing.among(line.images, where)
        missing |= {id for id, one in described.items() if self._missing.among(one.images, where)}
        missing |= self._listed.lost.intersection((*gold, *distractors))
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
        # Where no gold is known, the line's others are not known to be distractors either
        others = dict.fromkeys([*(there if gold else ()), *distractors])
        not_negative = missing.union(gold)
        self.questions.append(
            Question(
                id=line.id,
                text=line.question,
                answers=answers,
                category=line.category,
                gold=gold,
                negatives=tuple(id for id in others if id not in not_negative),
                image=self._folder / line.question_image if line.question_image else None,
            )
        )

    def _known(
        self, line: QuestionLine, names: Sequence[str], kind: str, where: str
    ) -> tuple[str, ...] | None:
        """Ids of documents that a line names; None, and a problem, if there is not such a one."""
        ids = [line.id_of(name) for name in names]
        own = set(line.ids.values())
        for name, id in zip(names, ids, strict=True):
            if id not in own and (why := self._listed.why_not(id)):
                message = f"{where}: {brief_quoted(name)} {why}"
                self.problems.add(f"{kind} not among documents", message)
                return None
        return each_once(ids, where, self.problems)

    def _is_another(self, document: str | NamedDocument) -> bool:
        """Whether an image or a described document has the id of an earlier document."""
        if isinstance(document, str):
            return document in self._described
        known = self._described.get(document.id, document)
        return document.id in self._captions or known != document

    def _why_missing(self, image: str) -> str | None:
        return why_missing(self._folder, image, self._listings.has_file)

    def document_ids(self, pool: Pool = "full") -> list[str]:
        """The listed and the lines' own, or those that are gold to a line; see `QuestionSet`."""
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
