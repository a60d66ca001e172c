"""What a tier counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TierStatistics:
    """What has happened in a tier since it was made.

    Attributes:
        hits: how often `get` returned a record.
        misses: how often it did not.
        bytes: held now.
        evictions: records that were removed to make room.
        errors: damaged files and failures of the disk.
    """

    hits: int = 0
    misses: int = 0
    bytes: int = 0
    evictions: int = 0
    errors: int = 0
