"""Keeps what was computed, so that an evaluation that was broken off goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from tqdm.auto import tqdm

Key = TypeVar("Key", bound=Hashable)


class Journal(Generic[Key]):
    """Keys with values in a file of JSON lines, which grows as they are computed.

    A last line that was broken off is cut away.

    Args:
        path: the file; made with its folder if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[Key, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    try:
                        key, value = json.loads(line)
                    except ValueError:
                        break
                    self._values[_hashable(key)] = value
                    whole += len(line)
            with path.open("r+b") as file:
                file.truncate(whole)

    def __getitem__(self, key: Key) -> Any:
        return self._values[key]

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def fill(
        self,
        keys: Iterable[Key],
        compute: Callable[[list[Key]], Iterable[Any]],
        *,
        block: int,
        title: str,
        progress: bool,
    ) -> None:
        """Computes what is missing, a block of keys at a time; each block is kept at once.

        Args:
            keys: what is wanted; in this order.
            compute: values of some keys.
            block: so many keys at a time.
            title: what the bar says.
            progress: show a bar.
        """
        missing = [key for key in dict.fromkeys(keys) if key not in self._values]
        bar = tqdm(total=len(missing), desc=title, disable=not progress or not missing)
        with self._path.open("a", encoding="utf-8") as file, bar:
            for start in range(0, len(missing), block):
                part = missing[start : start + block]
                for key, value in zip(part, compute(part), strict=True):
                    self._values[key] = value
                    file.write(json.dumps([key, value], ensure_ascii=False) + "\n")
                file.flush()
                bar.update(len(part))

    def __iter__(self) -> Iterator[Key]:
        return iter(self._values)


def _hashable(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
