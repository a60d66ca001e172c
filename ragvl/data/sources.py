"""Documents from a folder of pictures, a data set, or a file with one document a line."""

from __future__ import annotations

import mimetypes
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ragvl.data.caption_file import CaptionFile
from ragvl.data.document import Document
from ragvl.data.formats import (
    CAPTION_LINES,
    KNOWN_FORMATS,
    UnknownFormatError,
    open_questions,
    recognised,
)
from ragvl.data.images import formats
from ragvl.data.jsonl import DOCUMENTS
from ragvl.data.lines import read_documents
from ragvl.data.problems import DataError, Problems, brief_quoted
from ragvl.data.questions import Modality, QuestionSet
from ragvl.data.reading import is_file, place, read_json_lines, why_missing
from ragvl.messages import reason


class Documents:
    """The documents of `source`, read one at a time as they are iterated over.

    Args:
        source: a folder of pictures, searched with its subfolders; a JSONL file with a
            `ListedDocument` a line, paths relative to the file, or a folder that holds it as
            `documents.jsonl`; or a data set that `open_questions` knows.
        split: of a data set; of a file of documents only those of this split, all by default.
        modality: of a data set; see `open_questions`.
        captions: of pictures that have none of their own.
        strict: stop at the first problem; otherwise it is left out and noted in `problems`.

    Attributes:
        problems: what cannot be used, such as a picture in a format that is not read here.
        passed_over: of a folder of pictures, how many files of each suffix are no pictures.

    Raises:
        FileNotFoundError: it does not exist.
        DataError: it holds nothing; or, also while iterating, `strict` met a problem.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        split: str | None = None,
        modality: Modality | None = None,
        captions: CaptionFile | None = None,
        strict: bool = False,
    ) -> None:
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"there is no {place(path)}")
        if is_file(path / DOCUMENTS):
            path /= DOCUMENTS
        self._split = split
        self._captions = captions
        self.problems = Problems(strict)
        self.passed_over: Counter[str] = Counter()
        self._source = path
        self._questions: QuestionSet | None = None
        self._paths: list[Path] = []
        is_folder = _is_picture_folder(path)
        if not (is_folder or is_document_file(path)):
            self._questions = open_questions(path, split=split, modality=modality, strict=strict)
        elif modality is not None:
            raise ValueError(f"modality={modality!r}: {place(path)} holds documents of any kind")
        elif is_folder:
            self._paths = self._pictures_in(path)
        if self._questions is not None:
            self.problems = self._questions.problems
            self._length = len(self._questions.document_ids())
        else:
            broken = Problems()
            self._length = len(self._paths) or sum(1 for _ in self._from_lines(broken))
            if not self._length and broken:
                (message, *_), *_ = broken.messages.values()
                raise DataError(f"{place(path)} holds no usable documents: {broken}, as {message}")
        if not self._length:
            of_split = "" if split is None else f" of the split {brief_quoted(split)}"
            raise DataError(
                f"{place(path)} holds no documents{of_split}: expected pictures, or {KNOWN_FORMATS}"
            )

    @property
    def data_set(self) -> str | None:
        """The data set and split whose documents these are; None of documents alone."""
        return None if self._questions is None else self._questions.name

    @property
    def num_unusable(self) -> int:
        """How many files or lines are left out; of a data set 0, see its `problems`."""
        return 0 if self._questions is not None else len(self.problems)

    def __len__(self) -> int:
        """How many there are."""
        return self._length

    def __iter__(self) -> Iterator[Document]:
        """The documents, in order."""
        for document in self._uncaptioned():
            yield document if self._captions is None else self._captions.captioned(document)

    def _uncaptioned(self) -> Iterator[Document]:
        if self._questions is not None:
            yield from self._questions.documents()
        elif self._paths:
            for path in self._paths:
                yield Document(path, id=str(path.relative_to(self._source)))
        else:
            yield from self._from_lines(self.problems)

    def _pictures_in(self, folder: Path) -> list[Path]:
        """Paths of what is named like a picture, sorted; other files are counted.

        Pipes and the like are among them: they cannot be read, and count as skipped.
        """

        def unreadable(error: OSError) -> None:
            self.problems.add("folder that cannot be read", reason(error))

        known, paths = _suffixes(), []
        captions = None if self._captions is None else os.path.abspath(self._captions.file)
        for at, _, names in os.walk(folder, onerror=unreadable):
            for path in (Path(at, name) for name in names):
                if path.suffix.lower() in known:
                    paths.append(path)
                elif (mimetypes.guess_type(path.name, strict=False)[0] or "").startswith("image/"):
                    self.problems.add("picture in a format that is not read here", place(path))
                elif os.path.abspath(path) != captions:
                    self.passed_over[path.suffix.lower() or "without a suffix"] += 1
        return sorted(paths)

    def _from_lines(self, problems: Problems) -> Iterator[Document]:
        if self._source.is_dir():
            return
        folder = self._source.parent
        for line, where in read_documents(self._source, problems):
            if not line.is_of(self._split):
                continue
            lost = next(filter(None, (why_missing(folder, one) for one in line.images)), None)
            if lost is None:
                yield line.document(folder)
            else:
                problems.add("missing picture", f"{where}: {lost}")


def _is_picture_folder(path: Path) -> bool:
    """Whether a folder is no data set; lines of captions alone may leave pictures of it out."""
    if not path.is_dir():
        return False
    try:
        return recognised(path)[1].name == CAPTION_LINES
    except UnknownFormatError:
        return True


def is_document_file(path: Path) -> bool:
    """Whether a file's lines are documents; questions' lines have a question."""
    if path.is_dir() or ".jsonl" not in path.suffixes:
        return False
    first = next(read_json_lines(path, Problems()), None)
    return first is None or not {"question", "images"}.intersection(first[1])


def _suffixes() -> set[str]:
    registered = Image.registered_extensions().items()
    known = formats()
    return {suffix for suffix, name in registered if name in known}
