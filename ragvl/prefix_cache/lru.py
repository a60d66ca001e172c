"""Values in this process's memory, or on its device, the least recently used first to go."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

from ragvl.forks import fork_safe
from ragvl.prefix_cache.statistics import TierStatistics


class Sized(Protocol):
    """What takes memory."""

    @property
    def nbytes(self) -> int:
        """How much, in bytes."""


V = TypeVar("V", bound=Sized)


class LruTier(Generic[V]):
    """Keeps values, such as records, least recently used first to go. Thread-safe.

    They are kept as they are, not copied.

    Args:
        max_bytes: the budget for them; one that is larger by itself is not kept.

    Attributes:
        stats: what has happened so far.
    """

    def __init__(self, max_bytes: int) -> None:
        self.stats = TierStatistics()
        self._max_bytes = max_bytes
        self._values: OrderedDict[str, V] = OrderedDict()
        self._lock = fork_safe(threading.Lock())
        self._unfinished = False  # a step has begun, which an interrupt may have ended

    def get(self, key: str) -> V | None:
        """The value under `key`, which is then the last one used; None if there is none."""
        with self._lock:
            value = self._values.get(key)
            if value is None:
                self.stats.misses += 1
            else:
                self.stats.hits += 1
                self._values.move_to_end(key)
            return value

    def put(self, key: str, value: V) -> None:
        """Keeps `value` in the place of what was under `key`, and evicts what is over budget."""
        with self._lock:
            self._begin()
            self._forget(key)
            if value.nbytes <= self._max_bytes:
                self._values[key] = value
                self.stats.bytes += value.nbytes
            while self.stats.bytes > self._max_bytes:
                self._forget(next(iter(self._values)))
                self.stats.evictions += 1
            self._unfinished = False

    def remove(self, key: str) -> None:
        """Forgets the value under `key`, if there is one."""
        with self._lock:
            self._begin()
            self._forget(key)
            self._unfinished = False

    def clear(self) -> None:
        """Forgets every value."""
        with self._lock:
            self._begin()
            self._values.clear()
            self.stats.bytes = 0
            self._unfinished = False

    @property
    def untouched_bytes(self) -> int:
        """What is promised to it, and has not been taken."""
        return self._max_bytes - self.stats.bytes

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def _begin(self) -> None:
        """Begins a change. Should an earlier one have ended half-way, bytes are counted anew."""
        if self._unfinished:
            self.stats.bytes = sum(value.nbytes for value in self._values.values())
        self._unfinished = True

    def _forget(self, key: str) -> None:
        value = self._values.pop(key, None)
        if value is not None:
            self.stats.bytes -= value.nbytes
