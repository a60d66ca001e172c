"""What is wrong with a data set's files, for the person who has to put them right."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

from ragvl.data.captions import Protocol
from ragvl.data.formats import open_questions
from ragvl.data.problems import DataError, Problems
from ragvl.data.questions import Modality


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


def check_questions(
    source: str | Path,
    *,
    split: str | None = None,
    images: str | Path | None = None,
    protocol: Protocol | None = None,
    modality: Modality | None = None,
    pictures: bool = False,
) -> CheckReport:
    """Reads a data set's files and says what is wrong.

    Of a data set of which nothing can be used, the report has no questions.

    Args:
        source: see `open_questions`.
        split: see `open_questions`.
        images: see `open_questions`.
        protocol: see `open_questions`.
        modality: see `open_questions`.
        pictures: decode every picture too; otherwise only whether it is there.

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
        error.problems.add("of no use", str(error))
        return CheckReport(0, 0, error.problems)
    if pictures:
        deque(data_set.decodable(data_set.documents()), maxlen=0)
        deque(data_set.askable(data_set.questions), maxlen=0)
    return CheckReport(len(data_set.questions), len(data_set.document_ids()), data_set.problems)
