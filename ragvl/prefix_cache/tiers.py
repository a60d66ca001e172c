"""The tiers below the device, and what each of them holds of a prefix."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import TypeVar

from ragvl.messages import reason
from ragvl.mllm import Prefilled, Prompt
from ragvl.prefix_cache.device import CachedPrefix
from ragvl.prefix_cache.disk import DiskTier
from ragvl.prefix_cache.lru import LruTier
from ragvl.prefix_cache.pages import PagePool
from ragvl.prefix_cache.payloads import Kind, UnusableRecordError, features_record, kv_record
from ragvl.prefix_cache.record import PrefixRecord, are_finite
from ragvl.prefix_cache.statistics import TierStatistics

logger = logging.getLogger(__name__)

T = TypeVar("T")
Tier = LruTier[PrefixRecord] | DiskTier


class LowerTiers:
    """Host memory and a folder, whichever there are; a lookup goes through them in this order.

    Args:
        host: records in host memory.
        disk: records in a folder.
        kind: what both hold; None for whichever is faster to get back from a tier, which the first
            prefix that it gets decides.
    """

    def __init__(
        self, host: LruTier[PrefixRecord] | None, disk: DiskTier | None, kind: Kind | None
    ) -> None:
        self.host = host
        self.disk = disk
        self._tiers = [tier for tier in (host, disk) if tier is not None]
        self._kinds: dict[Tier, Kind] = {}
        if kind is not None:
            self._kinds = dict.fromkeys(self._tiers, kind)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._tiers)

    @property
    def hold_kv(self) -> bool:
        """Whether all are known to hold keys and values, so that nothing else is needed of one."""
        return all(self._kinds.get(tier) == "kv" for tier in self._tiers)

    @property
    def kind(self) -> Kind | None:
        """What all hold; None where that is not decided, or differs."""
        kinds = {self._kinds.get(tier) for tier in self._tiers}
        return kinds.pop() if len(kinds) == 1 else None

    def decide(self, kind: Kind) -> None:
        """Has all hold this, as the cache of another process does."""
        self._kinds = dict.fromkeys(self._tiers, kind)

    def statistics(self) -> dict[str, TierStatistics]:
        """Of each tier there is, the faster first."""
        named = {"host": self.host, "disk": self.disk}
        return {name: tier.stats for name, tier in named.items() if tier is not None}

    def __contains__(self, key: str) -> bool:
        return any(key in tier for tier in self._tiers)

    def load(self, key: str, restore: Callable[[PrefixRecord], T]) -> T | None:
        """What `restore` makes of the record under `key`; None if no tier has one that it can use.

        The tiers above get a copy. `restore` refuses a record with an `UnusableRecordError`.
        """
        for level, tier in enumerate(self._tiers):
            record = tier.get(key)
            if record is None:
                continue
            try:
                result = restore(record)
            except UnusableRecordError as error:
                logger.warning("the record %s is computed again: %s", key, reason(error))
                continue
            for above in self._tiers[:level]:
                above.put(key, record)
            return result
        return None

    def keep(self, entry: CachedPrefix, prefix: Prompt, done: Prefilled, pool: PagePool) -> None:
        """Writes a prefix that has just been computed into `pool` to every tier."""
        if not self._tiers:
            return
        tensors = pool.read(entry.pages)
        if not are_finite(tensors.values()):
            logger.warning("the prefix %s is not kept: it holds NaN or infinity", entry.key)
            return
        for tier in self._tiers:
            record = kv_record(prefix, done, tensors)
            if tier not in self._kinds:
                seconds = _loading_seconds(tier, entry, record, pool)
                self._kinds[tier] = "kv" if seconds <= done.timer.seconds else "features"
            if self._kinds[tier] == "features" and done.pictures is not None:
                record = features_record(prefix, done)
            tier.put(entry.key, record)

    def put(self, key: str, record: PrefixRecord) -> None:
        """Writes a record to every tier, whatever they hold of prefixes."""
        for tier in self._tiers:
            tier.put(key, record)

    def remove(self, key: str) -> None:
        """Removes what is under `key` from every tier."""
        for tier in self._tiers:
            tier.remove(key)


def _loading_seconds(
    tier: Tier, entry: CachedPrefix, record: PrefixRecord, pool: PagePool
) -> float:
    """How long it takes to get a prefix's keys and values back from a tier."""
    reading = tier.reading_seconds(entry.key, record) if isinstance(tier, DiskTier) else 0.0
    if reading == math.inf:
        return reading
    start = time.perf_counter()
    if (ready := pool.load(entry.pages, record.tensors)) is not None:
        ready.synchronize()
    return reading + time.perf_counter() - start
