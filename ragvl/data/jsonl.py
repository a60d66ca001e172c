"""Your own questions: a JSONL file, one question a line.

    {"id": "q1", "question": "What color is the roof?", "answer": "red",
     "images": ["a.jpg", "b.jpg"], "captions": ["Harbour, 1987", "Museum"], "gold": ["b.jpg"]}

`images` are paths relative to the file; all lines' images together are the documents, each known by
its path as it is written. `gold` names those of the line's own images that answer it. `answer` may
be a list of accepted answers. `captions` (one for each image, or null), `answer`, `gold` and
`category` may be left out.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from ragvl.data.document import Document
from ragvl.data.files import existing, read_lines
from ragvl.data.images import ImageError
from ragvl.data.problems import Problems
from ragvl.data.questions import Pool, Question, QuestionSet

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_CACHE_KIB = 8192  # of the table of ids while a file is checked


class QuestionLine(BaseModel):
    """A line of the file, as the module describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: _Text
    question: _Text
    answer: str | tuple[str, ...] | None = None
    images: tuple[_Text, ...]
    captions: tuple[str | None, ...] | None = None
    gold: tuple[str, ...] = ()
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
        """Accepted answers."""
        if self.answer is None:
            return ()
        given = (self.answer,) if isinstance(self.answer, str) else self.answer
        return tuple(answer for answer in given if answer.strip())

    def documents(self) -> Iterator[tuple[str, str | None]]:
        """Images with their captions."""
        yield from zip(self.images, self.captions or [None] * len(self.images), strict=True)

    def without(self, images: Collection[str]) -> QuestionLine:
        """The line without some of its images."""
        kept = [(image, caption) for image, caption in self.documents() if image not in images]
        return self.model_copy(
            update={"images": tuple(i for i, _ in kept), "captions": tuple(c for _, c in kept)}
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
        self._captions: dict[str, str | None] = {}
        self._gold: dict[str, None] = {}
        self.questions: list[Question] = []
        with _Seen() as seen:
            for _, line in _usable_lines(path, self.problems, seen):
                self._add(line)
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
            self._captions.setdefault(image, caption)
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
    with _Seen() as seen:
        for number, line in _usable_lines(path, problems, seen):
            questions += 1
            if not pictures:
                continue
            for image in line.images:
                if seen.first("decoded", image):
                    try:
                        Document(path.parent / image).load()
                    except ImageError as error:
                        problems.add("broken picture", f"{path}, line {number}: {error}")
        return questions, seen.count("image")


def _usable_lines(
    path: Path, problems: Problems, seen: _Seen
) -> Iterator[tuple[int, QuestionLine]]:
    """Numbers and lines that can be used, without images that are not there."""
    for number, text in read_lines(path, problems):
        where = f"{path}, line {number}"
        try:
            line = QuestionLine.model_validate_json(text)
        except ValidationError as error:
            problems.add("broken line", f"{where}: {_in_words(error)}")
            continue
        if not seen.first("question", line.id):
            problems.add("duplicate id", f"{where}: {line.id!r}")
            continue
        if strangers := [image for image in line.gold if image not in line.images]:
            message = f"{where}: {strangers[0]!r} is none of the line's images"
            problems.add("gold not among images", message)
            continue
        missing = set()
        for image, caption in line.documents():
            if not seen.first("image", image, caption):
                if not seen.agrees("image", image, caption):
                    message = f"{where}: {image!r} had another caption before, which is kept"
                    problems.add("two captions", message)
            elif not os.path.isfile(path.parent / image):
                seen.first("missing", image)
                problems.add("missing picture", f"{where}: {path.parent / image}")
            if seen.known("missing", image):
                missing.add(image)
        if missing.isdisjoint(line.gold):
            yield number, line.without(missing) if missing else line


class _Seen:
    """Which ids were met, in a table on disk, so that memory does not grow with the file."""

    def __enter__(self) -> _Seen:
        self._file = tempfile.NamedTemporaryFile(suffix=".sqlite")
        self._table = sqlite3.connect(self._file.name, isolation_level=None)
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("PRAGMA synchronous = OFF")
        self._table.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._table.execute(
            "CREATE TABLE seen (kind TEXT, id TEXT, text BLOB, PRIMARY KEY (kind, id))"
            " WITHOUT ROWID"
        )
        self._table.execute("BEGIN")
        return self

    def __exit__(self, *_: object) -> None:
        self._table.close()
        self._file.close()

    def first(self, kind: str, id: str, text: str | None = None) -> bool:
        """Whether this is the first of the kind with that id; notes it with the text."""
        with closing(
            self._table.execute(
                "INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", (kind, id, _digest(text))
            )
        ) as inserted:
            return inserted.rowcount == 1

    def agrees(self, kind: str, id: str, text: str | None) -> bool:
        """Whether the first came with the same text."""
        query = "SELECT text FROM seen WHERE kind = ? AND id = ?"
        return self._table.execute(query, (kind, id)).fetchone()[0] == _digest(text)

    def known(self, kind: str, id: str) -> bool:
        """Whether there was one."""
        query = "SELECT 1 FROM seen WHERE kind = ? AND id = ?"
        return self._table.execute(query, (kind, id)).fetchone() is not None

    def count(self, kind: str) -> int:
        """How many different ones there were."""
        return int(
            self._table.execute("SELECT COUNT(*) FROM seen WHERE kind = ?", (kind,)).fetchone()[0]
        )


def _digest(text: str | None) -> bytes | None:
    return None if text is None else hashlib.blake2b(text.encode(), digest_size=8).digest()


def _in_words(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else str(first["msg"])
