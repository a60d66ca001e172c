"""How long a checkpoint's prompts are, and what is cut from one that is longer."""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

from ragvl.arguments import checked_count

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lengths:
    """Limits in tokens, as a checkpoint's authors set them; what goes past one is cut off.

    Attributes:
        prompt: of a whole prompt; None cuts none, and one that does not fit the model's context is
            an error.
        last: so many tokens at a prompt's end are kept, whatever is cut before them.
        keep_end: kept are those that the template puts behind query and document, however many.
        keep_special: special tokens are kept, too, and pictures; others are cut in their stead.
        text: of a text document by itself; the rest is room for the query.

    Raises:
        TypeError: a limit is no whole number.
        ValueError: a limit is below 1, or `prompt` holds no more than the `last` tokens.
    """

    prompt: int | None = None
    last: int = 0
    keep_end: bool = False
    keep_special: bool = False
    text: int | None = None

    def __post_init__(self) -> None:
        for name, unset in (("prompt", None), ("last", 0), ("text", None)):
            value = getattr(self, name)
            if value != unset:
                checked_count(name, value)
        if self.prompt is not None and self.prompt <= self.last:
            raise ValueError(f"prompt={self.prompt}: no room before the last {self.last} tokens")

    def cut(self, ids: Sequence[int], special: Collection[int], picture: int) -> list[int]:
        """A prompt's token ids, or as many as it may have.

        A prompt that stays too long without a word that could go, or that would lose a part of a
        picture, is left as it is.

        Args:
            ids: the prompt's.
            special: the ids that `keep_special` is about.
            picture: the id that pictures consist of.
        """
        whole = [*ids]
        if self.prompt is None or len(whole) <= self.prompt:
            return whole
        end = len(whole) - self.last
        room = self.prompt - self.last
        if not self.keep_special:
            return whole if picture in whole[room:end] else whole[:room] + whole[end:]
        kept = {picture, *special}
        room -= sum(token in kept for token in whole[:end])
        if room <= 0:
            return whole
        cut = []
        for token in whole[:end]:
            room -= token not in kept
            if token in kept or room >= 0:
                cut.append(token)
        return cut + whole[end:]


NO_LIMITS = Lengths()


class Cuts:
    """Counts what is cut, for one line of the log about all of it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._names: dict[tuple[str, int], dict[Hashable, str]] = {}

    def add(self, kind: str, limit: int, name: str, key: Hashable) -> None:
        """Something was cut.

        Args:
            kind: what it is, in the plural.
            limit: how many tokens it has now.
            name: what to call it.
            key: tells it from others, where it is cut again.
        """
        with self._lock:
            self._names.setdefault((kind, limit), {})[key] = name

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Logs what is cut in its block, if anything is."""
        try:
            yield
        finally:
            with self._lock:
                names, self._names = self._names, {}
            self._report(names)

    @staticmethod
    def _report(names: Mapping[tuple[str, int], Mapping[Hashable, str]]) -> None:
        for (kind, limit), cut in names.items():
            logger.warning(
                "%s cut to %d tokens, since this checkpoint takes no more: %d, the first %s",
                kind,
                limit,
                len(cut),
                next(iter(cut.values())),
            )
