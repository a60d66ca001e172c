"""WebQA's published files: annotations in JSON, pictures in imgs.tsv with an index.

Layout as released with Chang et al., "WebQA: Multihop and Multimodal QA" (CVPR 2022).
"""

from __future__ import annotations

import base64
import binascii
import errno
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from ragvl.data.document import Document
from ragvl.data.images import ImageError
from ragvl.data.json_file import read_json_entries
from ragvl.data.problems import Problems, brief, brief_quoted
from ragvl.data.questions import SHOWN_MODALITY, Modality, Pool, Question, QuestionSet
from ragvl.data.reading import existing, is_file, place, read_lines
from ragvl.data.schemas import FIRST_ERROR, String, StringOrNumber, Text, parsed
from ragvl.data.validation import (
    MissingPictures,
    TextTable,
    each_once,
    given_answers,
    is_of_another_split,
    pictures_are_there,
)
from ragvl.files import open_regular
from ragvl.identity import document_name, file_version_name
from ragvl.messages import reason

_ROWS_PER_SHARD = 10_000_000  # an image's row in imgs.tsv is its id modulo this
_MAX_ROW = 64 * 2**20  # bytes; a row without its line end is not searched for it to the file's end
_NUMBER = re.compile(r"[0-9]{1,19}")
_SPLITS = ("train", "val", "test")
_BESIDE = "a WebQA folder holds it beside the annotations"
ROWS = "imgs.tsv"
ANNOTATIONS = "WebQA_train_val.json"


class ImageRows:
    """imgs.tsv, read row by row: a 34 GB file is never read through, nor kept open.

    Where a row begins stands in imgs.lineidx.new, lines of an image's id, a tab and the byte
    offset of its row; or else by imgs.lineidx, the offsets alone, in the order of the rows.
    """

    def __init__(self, folder: Path, problems: Problems) -> None:
        self._path = existing(folder / ROWS, _BESIDE)
        self._version = file_version_name(self._path)
        self._size = self._path.stat().st_size
        if not self._size:
            problems.add("empty file", place(self._path))
        by_id = folder / "imgs.lineidx.new"
        self._offset_of: dict[str, int] | None = None
        self._offsets: list[int] = []  # -1 where the index's line is lost: others keep their number
        if is_file(by_id):
            self._offset_of = self._read_offsets_by_id(by_id, problems)
        else:
            index = existing(folder / "imgs.lineidx", _BESIDE)
            self._offsets = self._read_offsets(index, problems)
        known = self._offsets if self._offset_of is None else self._offset_of.values()
        self._starts = sorted(offset for offset in known if offset >= 0)

    def _read_offsets(self, index: Path, problems: Problems) -> list[int]:
        offsets: list[int] = []
        for number, line in read_lines(index, problems):
            offsets += [-1] * (number - 1 - len(offsets))
            offset = self._checked(line, place(index, number), problems)
            offsets.append(-1 if offset is None else offset)
        return offsets

    def _read_offsets_by_id(self, index: Path, problems: Problems) -> dict[str, int]:
        offset_of: dict[str, int] = {}
        for number, line in read_lines(index, problems):
            where = place(index, number)
            image_id, _, text = line.rpartition("\t")
            offset = self._checked(text, where, problems)
            if offset is None:
                continue
            if image_id.strip() in offset_of:
                problems.add("duplicate id", f"{where}: image {brief(image_id)}")
                continue
            offset_of[image_id.strip()] = offset
        return offset_of

    def _checked(self, text: str, where: str, problems: Problems) -> int | None:
        """The offset that a line of the index holds; None if there can be no row."""
        if not _NUMBER.fullmatch(text.strip()):
            problems.add("broken line", f"{where} holds no offset: {brief(text)}")
            return None
        if int(text) >= self._size:
            size = f"{place(self._path)} has {self._size:,} bytes"
            problems.add("offset past the end", f"{where}: {text.strip()}, but {size}")
            return None
        return int(text)

    def __contains__(self, image_id: str) -> bool:
        """Whether the index tells where the row of `image_id` begins, within the file."""
        return self._offset(image_id) >= 0

    def __getitem__(self, image_id: str) -> bytes:
        """The encoded picture (PNG or JPEG bytes) of `image_id`.

        Raises:
            KeyError: there is no such row.
            ImageError: the row cannot be read, holds another picture, has no end, or is not base64.
        """
        name, file = f"image {brief(image_id)}", place(self._path)
        if image_id not in self:
            raise KeyError(f"{name}: {file} has no row for it")
        start = self._offset(image_id)
        # No further than where another row begins, whatever the file holds
        following = bisect_right(self._starts, start)
        bound = self._starts[following] if following < len(self._starts) else self._size
        try:
            row = self._read(start, min(bound - start, _MAX_ROW))
        except OSError as error:
            raise ImageError(f"{name}: {file} cannot be read: {error.strerror}") from error
        if not row.endswith(b"\n") and bound > start + _MAX_ROW:
            raise ImageError(
                f"{name}: its row at byte {start} of {file} does not end within {_MAX_ROW:,} bytes"
            )
        row_id, _, encoded = row.rstrip(b"\r\n").partition(b"\t")
        if row_id.decode("ascii", "replace") != image_id:
            raise ImageError(
                f"{name}: at byte {start} of {file} stands {row_id[:20]!r}; "
                "the index does not belong to this imgs.tsv"
            )
        try:
            return base64.b64decode(encoded, validate=True)
        except binascii.Error as error:
            raise ImageError(f"{name} of {file} is not base64: {reason(error)}") from error

    def _read(self, start: int, length: int) -> bytes:
        """The row that begins at `start`, with its end, but at most `length` bytes.

        The file is opened for it: so it may be cut short, and this object copied to another
        process, without harm.

        Raises:
            OSError: the file cannot be opened or read, or is shorter than it was.
        """
        with open_regular(self._path) as file:
            if (size := os.fstat(file.fileno()).st_size) < self._size:
                reason = f"it was cut from {self._size:,} to {size:,} bytes"
                raise OSError(errno.ESTALE, reason, str(self._path))
            file.seek(start)
            return file.readline(length)

    def version(self, image_id: str) -> str:
        """Names a picture's content by its place in the file, without reading it."""
        return f"{self._version}, byte {self._offset(image_id)}"

    def _offset(self, image_id: str) -> int:
        """Of the row; -1 where the index has none."""
        if self._offset_of is not None:
            return self._offset_of.get(image_id, -1)
        if not _NUMBER.fullmatch(image_id):
            return -1
        row = int(image_id) % _ROWS_PER_SHARD
        return self._offsets[row] if row < len(self._offsets) else -1


def _unquoted(text: str) -> str:
    """WebQA's strings carry a pair of quotation marks of their own."""
    return text.strip().removeprefix('"').removesuffix('"').strip()


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return text


_Unquoted = Annotated[String, AfterValidator(_unquoted)]


_Id = Annotated[StringOrNumber, StringConstraints(min_length=1)]


class _ImageFact(BaseModel):
    id: _Id = Field(alias="image_id")
    caption: String


class _TextFact(BaseModel):
    id: _Id = Field(alias="snippet_id")
    fact: Text


_ImageFacts = Annotated[list[_ImageFact], FIRST_ERROR]
_TextFacts = Annotated[list[_TextFact], FIRST_ERROR]
_Facts = Sequence[_ImageFact | _TextFact]


class _Sample(BaseModel):
    Q: Annotated[_Unquoted, AfterValidator(_not_empty)]
    Qcate: String


class _KnownSample(_Sample):
    A: Annotated[list[_Unquoted], FIRST_ERROR]
    img_posFacts: _ImageFacts
    img_negFacts: _ImageFacts
    txt_posFacts: list[Any] = []
    txt_negFacts: list[Any] = []


class _TestSample(_Sample):
    img_Facts: _ImageFacts
    txt_Facts: list[Any] = []


# Facts in words are looked at only where they are wanted
class _KnownSampleWithTexts(_KnownSample):
    txt_posFacts: _TextFacts = []
    txt_negFacts: _TextFacts = []


class _TestSampleWithTexts(_TestSample):
    txt_Facts: _TextFacts = []


class WebQA(QuestionSet):
    """One split of a WebQA folder: its questions, its documents, and which document is gold.

    A picture's fact is a picture with its caption, a text's its `fact`, by its `snippet_id`. Of a
    file whose samples have `img_Facts` in the place of `img_posFacts` and `img_negFacts`, as the
    published test file has, neither gold documents nor answers are known.

    Args:
        folder: holds the annotations, imgs.tsv, and imgs.lineidx or imgs.lineidx.new; without
            pictures, the annotations are enough.
        split: "train", "val" or "test", as the annotations name it.
        modality: which facts are documents. Questions that are answered from others alone are left
            aside.
        annotations: the name of the JSON file; by default WebQA_test.json for "test" where there
            is one, else WebQA_train_val.json.
        strict: stop at the first problem.

    Raises:
        FileNotFoundError: a file is missing.
        DataError: no question is left, or `strict` met a problem.
    """

    answer_metric = "webqa"

    def __init__(
        self,
        folder: str | Path,
        *,
        split: str = "val",
        modality: Modality = "image",
        annotations: str | None = None,
        strict: bool = False,
    ) -> None:
        folder = Path(folder)
        if annotations is None:
            has_test_file = split == "test" and is_file(folder / "WebQA_test.json")
            annotations = "WebQA_test.json" if has_test_file else ANNOTATIONS
        path = existing(folder / annotations, _BESIDE)
        self.name = f"{folder.resolve().name}, {split}{SHOWN_MODALITY[modality]}"
        self._modality = modality
        self.problems = Problems(strict)
        self.questions: list[Question] = []
        self._rows = None if modality == "text" else ImageRows(folder, self.problems)
        self._missing = MissingPictures(self._why_missing, self.problems)
        self._captions = TextTable(self.problems)
        self._texts = TextTable(self.problems, "text")
        self._gold: dict[str, None] = {}  # ordered set
        seen: set[str] = set()
        for guid, sample in read_json_entries(path, self.problems):
            where = f"{place(path)}: sample {brief(guid)}"
            if guid in seen:
                self.problems.add("duplicate id", where)
                continue
            seen.add(guid)
            if not is_of_another_split(sample, split, _SPLITS, where, self.problems):
                self._add(guid, sample, where)
        self.check()

    def _add(self, guid: str, sample: Any, where: str) -> None:
        layout: type[_Sample]
        if not isinstance(sample, dict) or "img_Facts" not in sample:
            layout = _KnownSample if self._modality == "image" else _KnownSampleWithTexts
        else:
            layout = _TestSample if self._modality == "image" else _TestSampleWithTexts
        valid = parsed(layout.model_validate, sample, "broken sample", where, self.problems)
        if isinstance(valid, _KnownSample):
            self._add_known(guid, valid, where)
        elif isinstance(valid, _TestSample):
            facts = self._wanted(valid.img_Facts, valid.txt_Facts)
            self._keep(guid, valid, (), (), facts, where)

    def _wanted(self, images: Sequence[_ImageFact], texts: Sequence[_TextFact]) -> _Facts:
        if self._modality == "both":
            return [*images, *texts]
        return images if self._modality == "image" else texts

    def _add_known(self, guid: str, sample: _KnownSample, where: str) -> None:
        positive = self._wanted(sample.img_posFacts, sample.txt_posFacts)
        negative = self._wanted(sample.img_negFacts, sample.txt_negFacts)
        gold = each_once([fact.id for fact in positive], where, self.problems)
        if not gold and (sample.img_posFacts or sample.txt_posFacts):
            return  # a question about the others
        if not gold:
            self.problems.add("no gold picture", f"{where} has no gold facts at all")
        others = each_once([fact.id for fact in negative], where, self.problems)
        for id in (id for id in others if id in gold):
            self.problems.add("gold is a distractor", f"{where}: document {brief(id)}")
        answers = given_answers(sample.A, where, self.problems)
        self._keep(guid, sample, answers, gold, [*positive, *negative], where)

    def _keep(
        self,
        guid: str,
        sample: _Sample,
        answers: tuple[str, ...],
        gold: tuple[str, ...],
        facts: _Facts,
        where: str,
    ) -> None:
        ids = dict.fromkeys(fact.id for fact in facts)
        images = {fact.id: fact.caption for fact in facts if isinstance(fact, _ImageFact)}
        texts = {fact.id: fact.fact for fact in facts if isinstance(fact, _TextFact)}
        for id in ids:
            if (id in images or id in self._captions) and (id in texts or id in self._texts):
                message = f"{where}: {brief_quoted(id)} is a picture and a text"
                self.problems.add("two documents of one id", message)
                return
        missing = self._missing.among(images, where)
        if not pictures_are_there(gold, missing, where, self.problems):
            return
        for fact in facts:
            if isinstance(fact, _TextFact):
                self._texts.add(fact.id, fact.fact, where)
            elif fact.id not in missing:
                self._captions.add(fact.id, fact.caption, where)
        self._gold |= dict.fromkeys(gold)
        # Where no gold is known, the others are not known to be distractors either
        others = [id for id in ids if gold and id not in gold and id not in missing]
        self.questions.append(
            Question(guid, sample.Q, answers, sample.Qcate, gold, negatives=tuple(others))
        )

    @property
    def _images(self) -> ImageRows:
        assert self._rows is not None, "documents without pictures"
        return self._rows

    def _why_missing(self, image_id: str) -> str | None:
        return (
            None if image_id in self._images else f"image {brief(image_id)}: the index has no row"
        )

    def document_ids(self, pool: Pool = "full") -> list[str]:
        """Every document that the split names, pictures first, or gold ones; see `QuestionSet`."""
        return list(self._gold) if pool == "gold" else [*self._captions, *self._texts]

    def document(self, document_id: str) -> Document:
        """One document, its picture read from disk now; see `QuestionSet`."""
        if document_id in self._texts:
            return Document(text=self._texts[document_id], id=document_id)
        caption = self._captions[document_id]
        return Document(image=self._images[document_id], caption=caption, id=document_id)

    def other_documents(self) -> Iterator[Document]:
        """Texts; see `QuestionSet`."""
        return map(self.document, self._texts)

    def document_name(self, document_id: str) -> str:
        """Names a document's content, without reading its row; see `QuestionSet`."""
        if document_id in self._texts:
            return super().document_name(document_id)
        return document_name(self._captions[document_id], self._images.version(document_id))


def write_submission(path: str | Path, answered: Iterable[tuple[str, Iterable[str], str]]) -> None:
    """WebQA's submission file, {guid: {"sources": [image ids], "answer": text}}.

    Args:
        path: where to write.
        answered: each question's guid, the ids of the documents it was answered from, the answer.
    """
    entries = {
        guid: {"sources": [int(id) if _NUMBER.fullmatch(id) else id for id in sources], "answer": a}
        for guid, sources, a in answered
    }
    Path(path).write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
