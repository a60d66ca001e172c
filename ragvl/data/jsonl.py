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
import sqlite3
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ragvl.data.document import Document
from ragvl.data.files import Listings, existing, place, read_lines
from ragvl.data.images import ImageError
from ragvl.data.problems import Problems, quoted
from ragvl.data.questions import Pool, Question, QuestionSet
from ragvl.data.schemas import FIRST_ERROR, Paths, Text, parsed
from ragvl.data.validation import (
    CaptionTable,
    each_once,
    given_answers,
    pictures_are_there,
    two_captions,
)

_CACHE_KIB = 8192  # of the table of ids while a file is checked
_IDS_AT_ONCE = 500  # in one question to the table, which has a limit


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

    def but(
        self, missing: Collection[str], gold: tuple[str, ...], answers: tuple[str, ...]
    ) -> QuestionLine:
        """The line without some of its images, with these for gold and answer."""
        kept = [(image, caption) for image, caption in self.documents() if image not in missing]
        images, captions = tuple(i for i, _ in kept), tuple(c for _, c in kept)
        return self.model_copy(
            update={"images": images, "captions": captions, "gold": gold, "answer": answers}
        )


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
        self._captions = CaptionTable(Problems())  # reading the lines has noted what is wrong
        self._gold: dict[str, None] = {}
        self.questions: list[Question] = []
        with _Table() as table:
            for usable in _Lines(path, self.problems, table):
                self._add(usable.line)
        self.check()

    def _add(self, line: QuestionLine) -> None:
        # Where no gold is known, the images are not known to be distractors either
        others = [image for image in line.images if line.gold and image not in line.gold]
        self.questions.append(
            Question(
                id=line.id,
                text=line.question,
                answers=line.answers,
                category=line.category,
                gold=line.gold,
                negatives=tuple(others),
            )
        )
        for image, caption in line.documents():
            self._captions.add(image, caption, "")
        self._gold |= dict.fromkeys(line.gold)

    def document_ids(self, pool: Pool = "full") -> list[str]:
        """Every line's images, or those that are gold to some line; see `QuestionSet`."""
        return list(self._gold if pool == "gold" else self._captions)

    def document(self, document_id: str) -> Document:
        """One document; see `QuestionSet`."""
        return Document(
            self._folder / document_id, caption=self._captions[document_id], id=document_id
        )


def check_jsonl(file: str | Path, problems: Problems, *, pictures: bool = False) -> tuple[int, int]:
    """Reads a file line by line and notes what is wrong, without holding it in memory.

    Args:
        file: the file.
        problems: where it is noted.
        pictures: decode every picture too; otherwise only whether it is there.

    Returns:
        How many lines can be used, and how many different images they name.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = existing(Path(file), "expected a JSONL file, one question a line")
    questions = 0
    with _Table() as table:
        for usable in _Lines(path, problems, table):
            questions += 1
            for image in usable.new_images if pictures else ():
                try:
                    Document(path.parent / image).load()
                except ImageError as error:
                    problems.add("broken picture", f"{usable.where}: {error}")
        return questions, table.count_images()


@dataclass(frozen=True)
class _Usable:
    """A line that can be used, without images that are not there.

    Attributes:
        where: what to call it.
        line: what it says.
        new_images: those that no usable line before it names.
    """

    where: str
    line: QuestionLine
    new_images: Sequence[str]


class _Lines:
    """The lines of a file that can be used; what is wrong with the others is noted."""

    def __init__(self, path: Path, problems: Problems, table: _Table) -> None:
        self._path, self._problems, self._table = path, problems, table
        self._listings = Listings()

    def __iter__(self) -> Iterator[_Usable]:
        for number, text in read_lines(self._path, self._problems):
            where = place(self._path, number)
            line = parsed(
                QuestionLine.model_validate_json, text, "broken line", where, self._problems
            )
            if line is None:
                continue
            if not self._table.is_first(line.id):
                self._problems.add("duplicate id", f"{where}: {quoted(line.id)}")
                continue
            gold = each_once(line.gold, where, self._problems)
            if strangers := [image for image in gold if image not in line.images]:
                message = f"{where}: {quoted(strangers[0])} is none of the line's images"
                self._problems.add("gold not among images", message)
                continue
            known = self._table.images(line.images)
            missing = self._missing(line, known, where)
            if not pictures_are_there(gold, missing, where, self._problems):
                continue
            answers = line.answers
            if line.answer is not None:
                answers = given_answers(answers, where, self._problems)
            line = line.but(missing, gold, answers)
            yield _Usable(where, line, self._note_new(line, known, where))

    def _missing(self, line: QuestionLine, known: dict[str, _Image], where: str) -> set[str]:
        """The line's images that are not there; each is noted once."""
        folder = str(self._path.parent)  # joined to each image, for which a Path is slow
        new = []
        for image in line.images:
            if image not in known and not self._listings.has_file(
                path := os.path.join(folder, image)
            ):
                self._problems.add("missing picture", f"{where}: {place(path)}")
                new.append((image, False, None))
        self._table.note(new)
        missing = {image for image, found in known.items() if not found.is_there}
        return missing.union(image for image, _, _ in new)

    def _note_new(self, line: QuestionLine, known: dict[str, _Image], where: str) -> list[str]:
        """Notes images that are new, or have a caption now; those that are new."""
        changed = []
        new = []
        for image, caption in line.documents():
            before = known.get(image)
            digest = None if caption is None else hash(caption)
            if before is None:
                new.append(image)
            if before is None or (before.caption is None and digest is not None):
                changed.append((image, True, digest))
            elif digest is not None and digest != before.caption:
                self._problems.add("two captions", two_captions(image, where))
        self._table.note(changed)
        return new


class _Image(NamedTuple):
    """What is known of an image: whether it is there, and its caption's hash."""

    is_there: bool
    caption: int | None = None


class _Table:
    """What was met, in a table on disk, so that memory does not grow with the file."""

    def __enter__(self) -> _Table:
        self._file = tempfile.NamedTemporaryFile(suffix=".sqlite")
        self._table = sqlite3.connect(self._file.name, isolation_level=None)
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("PRAGMA synchronous = OFF")
        self._table.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._table.execute("CREATE TABLE question (id TEXT PRIMARY KEY) WITHOUT ROWID")
        self._table.execute(
            "CREATE TABLE image (id TEXT PRIMARY KEY, is_there INT, caption INT) WITHOUT ROWID"
        )
        self._table.execute("BEGIN")
        return self

    def __exit__(self, *_: object) -> None:
        self._table.close()
        self._file.close()

    def is_first(self, id: str) -> bool:
        """Whether this is the first question with that id."""
        inserted = self._table.execute("INSERT OR IGNORE INTO question VALUES (?)", (id,))
        with closing(inserted):
            return inserted.rowcount == 1

    def images(self, ids: Sequence[str]) -> dict[str, _Image]:
        """What is known of those of the ids that were noted."""
        found: dict[str, _Image] = {}
        for start in range(0, len(ids), _IDS_AT_ONCE):
            some = ids[start : start + _IDS_AT_ONCE]
            marks = ", ".join("?" * len(some))
            query = f"SELECT id, is_there, caption FROM image WHERE id IN ({marks})"
            for id, is_there, caption in self._table.execute(query, some):
                found[id] = _Image(bool(is_there), caption)
        return found

    def note(self, images: Iterable[tuple[str, bool, int | None]]) -> None:
        """Notes images by id, or changes what is noted of them."""
        self._table.executemany("INSERT OR REPLACE INTO image VALUES (?, ?, ?)", images)

    def count_images(self) -> int:
        """How many of the noted ones are there."""
        query = "SELECT COUNT(*) FROM image WHERE is_there"
        return int(self._table.execute(query).fetchone()[0])
