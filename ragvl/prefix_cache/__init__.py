"""What is computed once for a document: its prefix, or else its pictures' visual tokens."""

from __future__ import annotations

from ragvl.prefix_cache.cache import PrefixCache
from ragvl.prefix_cache.device import (
    CachedPrefix,
    DeviceTier,
    PrefixCacheBusyError,
    PrefixTooLargeError,
)
from ragvl.prefix_cache.memory import available_bytes
from ragvl.prefix_cache.pages import PAGE_TOKENS, PagePool, page_table, pages_in_turn
from ragvl.prefix_cache.pictures import PictureSupply, SuppliedPicture
from ragvl.prefix_cache.reuse import picture_suffix_problem, reuse_problem
from ragvl.prefix_cache.sizes import format_bytes, parse_bytes
from ragvl.prefix_cache.statistics import TierStatistics
from ragvl.prefix_cache.supply import PrefixSupply, Supplied

__all__ = [
    "PAGE_TOKENS",
    "CachedPrefix",
    "DeviceTier",
    "PagePool",
    "PictureSupply",
    "PrefixCache",
    "PrefixCacheBusyError",
    "PrefixSupply",
    "PrefixTooLargeError",
    "Supplied",
    "SuppliedPicture",
    "TierStatistics",
    "available_bytes",
    "format_bytes",
    "page_table",
    "pages_in_turn",
    "parse_bytes",
    "picture_suffix_problem",
    "reuse_problem",
]
