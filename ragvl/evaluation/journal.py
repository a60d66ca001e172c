"""Keeps what was computed, so that an evaluation that was broken off goes on where it was."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from itertools import tee
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

from ragvl.blocks import Done
from ragvl.evaluation.pace import Pace
from ragvl.files import open_regular, whole_file
from ragvl.identity import json_checksum
from ragvl.messages import shown
from ragvl.progress import ProgressBar

Key = TypeVar("Key", bound=Hashable)
logger = logging.getLogger(__name__)

_MAX_BYTES = 2**34  # of a journal
_MAX_LINE_BYTES = 2**20


@contextmanager
def work_folder(work: Path | None) -> Iterator[Path]:
    """A folder for what is computed: `work`, or one that is gone afterwards."""
    if work is not None:
        yield work
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)


class Journal(Generic[Key]):
    """Keys with values in a file of JSON lines, which grows as they are computed.

    A line is a key, its value and a checksum of both. A last line that was broken off is cut away.
    Lines that are damaged, or hold no such value, or contradict each other are left out with one
    warning, and what they were about is computed again.

    Args:
        path: the file; made with its folder if it is not there.
        is_value: whether something that JSON can hold may be a value; anything by default.

    Raises:
        UnusableFileError: `path` is no regular file, or too large for a journal.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, *, is_value: Callable[[Any], bool] = lambda _: True) -> None:
        self._path = path
        self._is_value = is_value
        self._values: dict[Key, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._read()

    def __getitem__(self, key: Key) -> Any:
        return self._values[key]

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def fill(
        self,
        keys: Iterable[Key],
        compute: Callable[[Iterator[list[Key]]], Iterable[Done]],
        *,
        pace: Pace[Key],
        title: str,
        unit: str = "it",
        progress: bool,
    ) -> None:
        """Computes what is missing, a block of keys at a time; each block is kept at once.

        A value that is none (`is_value`) says that there could be none this time: it is known to
        this object, and not written down, so that it is tried again another time.

        Args:
            keys: what is wanted; in this order.
            compute: values of each block of keys, in order.
            pace: how many keys at a time.
            title: what the bar says.
            unit: what the bar counts.
            progress: show a bar.
        """
        missing = [key for key in dict.fromkeys(keys) if key not in self._values]
        hidden = not progress or not missing
        bar = ProgressBar(total=len(missing), desc=title, unit=unit, disable=hidden)
        with self._path.open("a", encoding="utf-8") as file, bar:
            asked, kept = tee(pace.blocks(missing))
            for part, done in zip(kept, compute(asked), strict=True):
                pace.learn(done.seconds)
                for key, value in zip(part, done.result, strict=True):
                    self._values[key] = value
                    if self._is_value(value):
                        file.write(_line(key, value))
                file.flush()
                bar.update(len(part))

    def __iter__(self) -> Iterator[Key]:
        return iter(self._values)

    def _read(self) -> None:
        """Takes what the file holds, and takes out of the file what cannot be used."""
        contradicted: set[Key] = set()
        damaged, torn = 0, False
        with open_regular(self._path, max_bytes=_MAX_BYTES) as file:
            while line := file.readline(_MAX_LINE_BYTES):
                torn = not line.endswith(b"\n")
                entry = _entry(line)
                if entry is None or not self._is_value(entry[1]):
                    damaged += not torn
                    continue
                key, value = entry
                if repr(self._values.setdefault(key, value)) != repr(value):  # NaN is not NaN
                    contradicted.add(key)
        for key in contradicted:
            del self._values[key]
        if damaged or contradicted:
            logger.warning(
                "%s: %d lines are damaged, and %d keys have several values; what they were about "
                "is computed again",
                shown(self._path),
                damaged,
                len(contradicted),
            )
        if damaged or contradicted or torn:
            with whole_file(self._path) as draft, draft.open("w", encoding="utf-8") as whole:
                whole.writelines(_line(key, value) for key, value in self._values.items())


def _line(key: Any, value: Any) -> str:
    return json.dumps([key, value, _checksum(key, value)]) + "\n"


def _checksum(key: Any, value: Any) -> str:
    return json_checksum([key, value])[:8]


def _entry(line: bytes) -> tuple[Any, Any] | None:
    """A line's key and value; None where it is damaged."""
    try:
        key, value, checksum = json.loads(line)
        return (_hashable(key), value) if checksum == _checksum(key, value) else None
    except (ValueError, TypeError, RecursionError):  # no JSON, no list of three
        return None


def _hashable(value: Any) -> Any:
    """JSON's lists as the tuples that they were.

    Raises:
        TypeError: it holds what is no key.
    """
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    hash(value)
    return value
