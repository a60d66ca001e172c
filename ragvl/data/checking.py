"""What is wrong with a data set's files, for the person who has to put them right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ragvl.data.captions import Protocol
from ragvl.data.formats import open_questions, possible_splits
from ragvl.data.problems import DataError, Problems
from ragvl.data.questions import Modality

_OF_NO_USE = "of no use"


@dataclass(frozen=True)
class CheckReport:
    """The result of `check_questions`.

    Attributes:
        questions: how many can be used.
        documents: how many different ones they name.
        problems: what is wrong with the rest.
    """

    questions: int
    documents: int
    problems: Problems


def check_splits(
    source: str | Path,
    *,
    split: str | None = None,
    images: str | Path | None = None,
    protocol: Protocol | None = None,
    modality: Modality | None = None,
    pictures: bool = False,
) -> dict[str | None, CheckReport]:
    """`check_questions` of each split that a data set has, by name; None is one without a name.

    Args:
        source: see `open_questions`.
        split: the only one to look at; by default all.
        images: see `open_questions`.
        protocol: see `open_questions`.
        modality: see `open_questions`.
        pictures: see `check_questions`.

    Raises:
        OSError, UnknownFormatError, ValueError: see `open_questions`.
    """
    reports: dict[str | None, CheckReport] = {}
    missing: list[FileNotFoundError] = []
    for name in possible_splits(source) if split is None else [split]:
        try:
            reports[name] = check_questions(
                source,
                split=name,
                images=images,
                protocol=protocol,
                modality=modality,
                pictures=pictures,
            )
        except FileNotFoundError as error:
            missing.append(error)
    if not reports:
        raise missing[0]
    # Of a split that is not there, nothing is, not even what is broken
    is_there = {name: set(one.problems.counts) != {_OF_NO_USE} for name, one in reports.items()}
    return {name: one for name, one in reports.items() if is_there[name]} or reports


def check_questions(
    source: str | Path,
    *,
    split: str | None = None,
    images: str | Path | None = None,
    protocol: Protocol | None = None,
    modality: Modality | None = None,
    pictures: bool = False,
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
        readable = {str(one.id) for one in data_set.decodable(data_set.documents())}
        usable = list(data_set.answerable(usable, readable))
    return CheckReport(len(usable), len(data_set.document_ids()), data_set.problems)
