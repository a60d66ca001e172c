"""What was computed for documents' prefixes, kept for later queries."""

from __future__ import annotations

from ragvl.prefix_cache.building import PrefixBuilder
from ragvl.prefix_cache.cache import CachedPrefix, PrefixCache, PrefixTooLargeError
from ragvl.prefix_cache.disk import DiskTier
from ragvl.prefix_cache.host import HostTier, TierStatistics
from ragvl.prefix_cache.record import PrefixRecord
from ragvl.prefix_cache.sizes import format_bytes, parse_bytes

__all__ = [
    "CachedPrefix",
    "DiskTier",
    "HostTier",
    "PrefixBuilder",
    "PrefixCache",
    "PrefixRecord",
    "PrefixTooLargeError",
    "TierStatistics",
    "format_bytes",
    "parse_bytes",
]
