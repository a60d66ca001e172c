"""What is wrong with a data set's files, for the person who has to put them right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ragvl.data.captions import Protocol
from ragvl.data.document import Document
from ragvl.data.formats import open_questions, possible_splits, recognised
from ragvl.data.images import ImageError
from ragvl.data.jsonl import DOCUMENTS
from ragvl.data.problems import DataError, Problems
from ragvl.data.questions import Modality
from ragvl.data.reading import is_file
from ragvl.data.sources import Documents, is_document_file
from ragvl.progress import ProgressBar

_OF_NO_USE = "of no use"


@dataclass(frozen=True)
class CheckReport:
    """The result of `check_questions`.

    Attributes:
        questions: how many can be used; None of a list of documents alone.
        documents: how many different ones there are, of a data set that questions name.
        problems: what is wrong with the rest.
    """

    questions: int | None
    documents: int
    problems: Problems

    @property
    def is_of_use(self) -> bool:
        """Whether there is anything that can be used."""
        return bool(self.documents if self.questions is None else self.questions)


def check_splits(
    source: str | Path,
    *,
    split: str | None = None,
    images: str | Path | None = None,
    protocol: Protocol | None = None,
    modality: Modality | None = None,
    pictures: bool = False,
    progress: bool = False,
) -> dict[str | None, CheckReport]:
    """`check_questions` of each split that a data set has, by name; None is one without a name.

    Of a list of documents alone, `check_documents`.

    Args:
        source: see `open_questions`.
        split: the only one to look at; by default all.
        images: see `open_questions`.
        protocol: see `open_questions`.
        modality: see `open_questions`.
        pictures: see `check_questions`.
        progress: see `check_questions`.

    Raises:
        OSError, UnknownFormatError, ValueError: see `open_questions`.
    """
    if _lists_documents_alone(Path(source)):
        checked = check_documents(source, split=split, pictures=pictures, progress=progress)
        return {split: checked}
    reports: dict[str | None, CheckReport] = {}
    missing: dict[str | None, FileNotFoundError] = {}
    for name in possible_splits(source) if split is None else [split]:
        try:
            reports[name] = check_questions(
                source,
                split=name,
                images=images,
                protocol=protocol,
                modality=modality,
                pictures=pictures,
                progress=progress,
            )
        except FileNotFoundError as error:
            missing[name] = error
    if not reports:
        raise next(iter(missing.values()))
    kind, _ = recognised(source)
    if kind == "folder":  # its splits are its files
        return reports
    # Of a split that is not there, nothing is, not even what is broken
    is_there = {name: set(one.problems.counts) != {_OF_NO_USE} for name, one in reports.items()}
    there = {name: one for name, one in reports.items() if is_there[name]} or reports
    if kind == "captions":  # in one file: the split is there, and its pictures are missing
        there |= {name: _of_missing_pictures(error) for name, error in missing.items()}
    return there


def _of_missing_pictures(error: FileNotFoundError) -> CheckReport:
    problems = Problems()
    problems.add("missing pictures", str(error))
    return CheckReport(0, 0, problems)


def check_documents(
    source: str | Path,
    *,
    split: str | None = None,
    pictures: bool = False,
    progress: bool = False,
) -> CheckReport:
    """Reads a list of documents and says what is wrong.

    Args:
        source: see `Documents`.
        split: only documents of this split; by default all.
        pictures: decode every picture too; otherwise only whether it is there.
        progress: show a bar where decoding takes more than a second.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    problems = Problems()
    try:
        documents = Documents(source, split=split)
    except DataError as error:
        problems.add(_OF_NO_USE, str(error))
        return CheckReport(None, 0, problems)
    count = 0
    for document in _shown(documents, len(documents), progress=progress and pictures):
        try:
            for picture in document.pictures if pictures else ():
                picture.load()
        except ImageError as error:
            documents.problems.add("broken picture", str(error))
        else:
            count += 1
    return CheckReport(None, count, documents.problems)


def _shown(documents: Iterable[Document], total: int, *, progress: bool) -> Iterable[Document]:
    """The documents, with a bar once a second has passed."""
    return ProgressBar(
        documents, desc="decode", total=total, unit="document", delay=1.0, disable=not progress
    )


def _lists_documents_alone(source: Path) -> bool:
    if source.is_dir():
        return [one.name for one in source.glob("*.jsonl")] == [DOCUMENTS]
    return is_file(source) and is_document_file(source)


def check_questions(
    source: str | Path,
    *,
    split: str | None = None,
    images: str | Path | None = None,
    protocol: Protocol | None = None,
    modality: Modality | None = None,
    pictures: bool = False,
    progress: bool = False,
) -> CheckReport:
    """Reads a split of a data set and says what is wrong.

    Of one of which nothing can be used, the report has no questions.

    Args:
        source: see `open_questions`.
        split: see `open_questions`.
        images: see `open_questions`.
        protocol: see `open_questions`.
        modality: see `open_questions`.
        pictures: decode every picture too; otherwise only whether it is there. A question of which
            a gold document cannot be decoded is of no use then.
        progress: show a bar where decoding takes more than a second.

    Raises:
        OSError, UnknownFormatError, ValueError: see `open_questions`.
    """
    try:
        data_set = open_questions(
            source, split=split, images=images, protocol=protocol, modality=modality
        )
    except DataError as error:
        if error.problems is None:
            raise
        error.problems.add(_OF_NO_USE, str(error))
        return CheckReport(0, 0, error.problems)
    usable = data_set.questions
    if pictures:
        total = len(data_set.document_ids())
        documents = _shown(data_set.documents(), total, progress=progress)
        readable = {str(one.id) for one in data_set.decodable(documents)}
        usable = list(data_set.answerable(usable, readable))
    return CheckReport(len(usable), len(data_set.document_ids()), data_set.problems)
