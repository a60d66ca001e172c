"""Rendezvous hashing: who owns a key among owners that come and go.

Each owner has a weight for each key, and the highest owns it. So nobody keeps a table; an owner
that is added takes from each other the same share, and of one that is lost only its own keys go
to others.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b


def weight(key: str, owner: str) -> int:
    """An owner's weight for a key, below 2**64: the same in every process."""
    digest = blake2b(key.encode(), key=_salt(owner), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def owner_of(key: str, owners: Iterable[str]) -> str:
    """The owner of a key, in whatever order owners come.

    Raises:
        ValueError: there are no owners.
    """
    return max(owners, key=lambda owner: (weight(key, owner), owner))


@lru_cache
def _salt(owner: str) -> bytes:
    return blake2b(owner.encode()).digest()
