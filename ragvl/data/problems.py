"""What is wrong with a data set's files: counted and named, and fatal where the caller asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ragvl.messages import quoted, shown

_NAMED = 20  # problems of a kind that are kept in words; the others are counted
_NAME_SHOWN = 60  # characters of a name
_LONGEST = 400  # characters of a message


class DataError(ValueError):
    """A data set's file that cannot be used, or not all of it; the message names the place.

    Attributes:
        problems: what was wrong before, where the error is not about one problem.
    """

    def __init__(self, message: str, problems: Problems | None = None) -> None:
        super().__init__(message)
        self.problems = problems


@dataclass
class Problems:
    """Problems by kind, such as "missing picture"; memory does not grow with their number.

    Attributes:
        strict: raise at the first one.
        counts: how many of each kind.
        messages: the first twenty of each kind, in words that any terminal can print.
    """

    strict: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    messages: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, message: str) -> None:
        """Notes one.

        Raises:
            DataError: `strict` is set.
        """
        if self.strict:
            raise DataError(shown(f"{kind}: {message}", _LONGEST))
        self.counts[kind] += 1
        named = self.messages.setdefault(kind, [])
        if len(named) < _NAMED:
            named.append(shown(message, _LONGEST))

    def __len__(self) -> int:
        return self.counts.total()

    def lines(self) -> Iterator[str]:
        """All of it for a person to read."""
        for kind, count in self.counts.items():
            yield f"{kind}: {count}"
            for message in self.messages[kind]:
                yield f"  {message}"
            if count > len(self.messages[kind]):
                yield f"  and {count - len(self.messages[kind])} more"

    def __str__(self) -> str:
        return ", ".join(f"{count} x {kind}" for kind, count in self.counts.items())


def no_use(message: str, problems: Problems) -> DataError:
    """The error that a data set is of no use, with its problems, the first of them in words."""
    first = next((named[0] for named in problems.messages.values()), "")
    details = f"; {problems}; the first: {first}" if first else ""
    return DataError(shown(message + details, 2 * _LONGEST), problems)


def brief(name: object) -> str:
    """A name from a file as a message may hold it, beside others."""
    return shown(name, _NAME_SHOWN)


def brief_quoted(name: object) -> str:
    """`brief` in quotation marks."""
    return quoted(name, _NAME_SHOWN)
