"""Checks that all data sets share, so that they note the same problems by the same names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Literal

from ragvl.data.problems import Problems, brief_quoted


def each_once(ids: Sequence[str], where: str, problems: Problems) -> tuple[str, ...]:
    """The ids without repetitions, which are noted."""
    unique = tuple(dict.fromkeys(ids))
    if len(unique) < len(ids):
        problems.add("named twice", f"{where}: {brief_quoted(Counter(ids).most_common(1)[0][0])}")
    return unique


def given_answers(answers: Sequence[str], where: str, problems: Problems) -> tuple[str, ...]:
    """The answers that say something; it is noted if one does not, or there is none."""
    given = tuple(answer for answer in answers if answer.strip())
    if not given or len(given) < len(answers):
        problems.add("empty answer", where)
    return given


def pictures_are_there(
    gold: Iterable[str], missing: Collection[str], where: str, problems: Problems
) -> bool:
    """Whether a question's gold documents all have pictures; it is noted if not."""
    lost = [id for id in gold if id in missing]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        problems.add("gold picture missing", f"{where}: {brief_quoted(lost[0])}{more}")
    return not lost


def is_of_another_split(
    entry: Any, split: str, known: Collection[str], where: str, problems: Problems
) -> bool:
    """Whether an entry is not of `split`; it is noted if it is of none that is known."""
    if not isinstance(entry, dict):
        return False  # what is wrong with its layout is noted where that is read
    own = entry.get("split")
    if own == split:
        return False
    if own not in known:
        named = brief_quoted(own) if isinstance(own, str) else type(own).__name__
        problems.add("unknown split", f"{where}: {named} is none of {', '.join(known)}")
    return True


class MissingPictures:
    """Which documents have a picture; each is looked for once, and noted once if it has none."""

    def __init__(self, why_missing: Callable[[str], str | None], problems: Problems) -> None:
        """`why_missing` says what is wrong with a document's picture, None if it is there."""
        self._why_missing = why_missing
        self._problems = problems
        self._is_there: dict[str, bool] = {}

    def among(self, ids: Collection[str], where: str) -> set[str]:
        """The ids of documents that have none."""
        for id in ids:
            if id not in self._is_there:
                why = self._why_missing(id)
                self._is_there[id] = why is None
                if why is not None:
                    self._problems.add("missing picture", f"{where}: {why}")
        return {id for id in ids if not self._is_there[id]}


class TextTable:
    """Captions or texts of documents: the first that is not empty is kept, and another one noted.

    Args:
        problems: where that is noted.
        what: what they are called.
    """

    def __init__(self, problems: Problems, what: Literal["caption", "text"] = "caption") -> None:
        self._problems = problems
        self._what = what
        self._texts: dict[str, str | None] = {}

    def add(self, id: str, text: str | None, where: str) -> None:
        """Notes a document with what its caption or text is said to be."""
        kept = self._texts.setdefault(id, text)
        if text and not kept:
            self._texts[id] = text
        elif text and text != kept:
            message = f"{where}: {brief_quoted(id)} had another {self._what} before, which is kept"
            self._problems.add(f"two {self._what}s", message)

    def __getitem__(self, id: str) -> str | None:
        return self._texts[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __contains__(self, id: str) -> bool:
        return id in self._texts
