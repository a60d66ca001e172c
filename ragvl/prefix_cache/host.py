"""Records in this process's memory."""

from __future__ import annotations

import threading
from collections import OrderedDict

from ragvl.forks import fork_safe
from ragvl.prefix_cache.record import PrefixRecord
from ragvl.prefix_cache.statistics import TierStatistics


class HostTier:
    """Keeps records in this process's memory, least recently used first to go. Thread-safe.

    Records are kept as they are, not copied.

    Args:
        max_bytes: the budget for the tensors; a record that is larger by itself is not kept.

    Attributes:
        stats: what has happened so far.
    """

    def __init__(self, max_bytes: int) -> None:
        self.stats = TierStatistics()
        self._max_bytes = max_bytes
        self._records: OrderedDict[str, PrefixRecord] = OrderedDict()
        self._lock = fork_safe(threading.Lock())
        self._unfinished = False  # a step has begun, which an interrupt may have ended

    def get(self, key: str) -> PrefixRecord | None:
        """The record under `key`, which is then the last one used; None if there is none."""
        with self._lock:
            record = self._records.get(key)
            if record is None:
                self.stats.misses += 1
            else:
                self.stats.hits += 1
                self._records.move_to_end(key)
            return record

    def put(self, key: str, record: PrefixRecord) -> None:
        """Keeps `record` in the place of what was under `key`, and evicts what is over budget."""
        with self._lock:
            self._begin()
            self._forget(key)
            if record.nbytes <= self._max_bytes:
                self._records[key] = record
                self.stats.bytes += record.nbytes
            while self.stats.bytes > self._max_bytes:
                self._forget(next(iter(self._records)))
                self.stats.evictions += 1
            self._unfinished = False

    def remove(self, key: str) -> None:
        """Forgets the record under `key`, if there is one."""
        with self._lock:
            self._begin()
            self._forget(key)
            self._unfinished = False

    def clear(self) -> None:
        """Forgets every record."""
        with self._lock:
            self._begin()
            self._records.clear()
            self.stats.bytes = 0
            self._unfinished = False

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def _begin(self) -> None:
        """Begins a change. Should an earlier one have ended half-way, bytes are counted anew."""
        if self._unfinished:
            self.stats.bytes = sum(record.nbytes for record in self._records.values())
        self._unfinished = True

    def _forget(self, key: str) -> None:
        record = self._records.pop(key, None)
        if record is not None:
            self.stats.bytes -= record.nbytes
