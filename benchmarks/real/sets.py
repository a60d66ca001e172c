"""A question set of the real world: documents and questions, the split of each."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ragvl.files import write_text
from real.layout import SPLITS, Layout

# Shares of what is split, in the order of SPLITS: a test of 200 questions comes first
SHARES = (0.38, 0.12, 0.5)


@dataclass(frozen=True)
class SetDocument:
    """A picture that is searched, with what a caption tells of it.

    Args:
        picture: its path below the pictures' folder, which is its id, too.
        split: of `SPLITS`.
        caption: None where there is none.
    """

    picture: str
    split: str
    caption: str | None = None


@dataclass(frozen=True)
class SetQuestion:
    """A question; its split is that of its gold pictures.

    Args:
        id: unlike any other's of the set.
        text: as it is asked.
        gold: pictures that answer it.
        answers: accepted answers, the preferred one first; empty where only finding is asked for.
        category: what it is about.
    """

    id: str
    text: str
    gold: tuple[str, ...]
    answers: tuple[str, ...] = ()
    category: str = "any"


class SetError(ValueError):
    """A question set that cannot be: its splits share something, or a gold picture is not there."""


@dataclass(frozen=True)
class RealSet:
    """Questions over pictures.

    Raises:
        SetError: a question has no gold picture, one that is no document, or several of different
            splits; an id or a document is there twice.
    """

    name: str
    documents: Sequence[SetDocument]
    questions: Sequence[SetQuestion]

    def __post_init__(self) -> None:
        _check_unique("document", (document.picture for document in self.documents))
        _check_unique("question", (question.id for question in self.questions))
        splits = self._splits
        for question in self.questions:
            there = {splits.get(picture) for picture in question.gold}
            if len(there) != 1 or None in there:
                raise SetError(f"{self.name}, {question.id}: gold pictures of splits {there}")

    @property
    def _splits(self) -> dict[str, str]:
        return {document.picture: document.split for document in self.documents}

    def split(self, name: str) -> list[SetQuestion]:
        """The questions of one split."""
        splits = self._splits
        return [question for question in self.questions if splits[question.gold[0]] == name]

    def pictures(self, split: str) -> list[str]:
        """The pictures of one split."""
        return [document.picture for document in self.documents if document.split == split]

    def write(self, layout: Layout) -> None:
        """Writes documents.jsonl and the splits' files into its folder, and what calibrates.

        A folder of `layout.calibration` has the questions of val once more. They search as many
        pictures as those of the test: val's, and some of train's. How much an order is to be
        trusted depends on among how many it was found.
        """
        splits = self._splits
        self._write(layout, layout.sets / self.name, splits, SPLITS)
        val, train, test = (self.pictures(split) for split in ("val", "train", "test"))
        more = _shuffled(train, salt=self.name)[: max(len(test) - len(val), 0)]
        searched = dict.fromkeys([*val, *more], "val")
        self._write(layout, layout.calibration / self.name, searched, ["val"])

    def _write(
        self, layout: Layout, folder: Path, documents: Mapping[str, str], splits: Iterable[str]
    ) -> None:
        """Writes these documents, by picture and split, and the questions of these splits."""
        folder.mkdir(parents=True, exist_ok=True)
        pictures = Path(os.path.relpath(layout.pictures, folder)).as_posix()
        write_lines(
            folder / "documents.jsonl",
            (
                {
                    "id": document.picture,
                    "image": f"{pictures}/{document.picture}",
                    **({"caption": document.caption} if document.caption else {}),
                    "split": documents[document.picture],
                }
                for document in self.documents
                if document.picture in documents
            ),
        )
        for split in splits:
            write_lines(
                folder / f"{split}.jsonl",
                (
                    {
                        "id": question.id,
                        "question": question.text,
                        **({"answer": list(question.answers)} if question.answers else {}),
                        "gold": list(question.gold),
                        "category": question.category,
                    }
                    for question in self.split(split)
                ),
            )


def _shuffled(keys: Iterable[str], *, salt: str) -> list[str]:
    return sorted(set(keys), key=lambda key: hashlib.sha256(f"{salt}\n{key}".encode()).hexdigest())


def _check_unique(kind: str, names: Iterable[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise SetError(f"{kind} {twice[0]} is there twice")


def split_of(keys: Iterable[str], *, salt: str, shares: Sequence[float] = SHARES) -> dict[str, str]:
    """A split of `SPLITS` for every key: the same for the same keys, and of the shares asked for.

    Args:
        keys: what may not be in two splits, descriptions for instance.
        salt: another one gives other splits.
        shares: of train, val and test.
    """
    order = _shuffled(keys, salt=salt)
    train = round(shares[0] * len(order))
    val = train + round(shares[1] * len(order))
    return {key: SPLITS[(rank >= train) + (rank >= val)] for rank, key in enumerate(order)}


def write_lines(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Writes a JSONL file, whole or not at all."""
    write_text(path, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
