"""What a forked child makes anew: it has its parent's memory, and none of its other threads."""

from __future__ import annotations

import os
import sys
import weakref
from typing import Any, Protocol, TypeVar


class Renewable(Protocol):
    """Counts what threads do."""

    def renew(self) -> None:
        """Makes new what only threads of the parent would have ended.

        Runs in the child, before anything else there: no lock may be waited for.
        """


Lock = TypeVar("Lock")

_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_owners: weakref.WeakSet[Renewable] = weakref.WeakSet()


def fork_safe(lock: Lock) -> Lock:
    """`lock`, one of threading's, which every forked child then finds free."""
    _locks.add(lock)
    return lock


def renew_in_children(owner: Renewable) -> None:
    """Has `owner.renew()` called in every forked child, for as long as `owner` lives."""
    _owners.add(owner)


def _renew_all() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() > 1:
        # OpenMP would wait for threads that only the parent has, at the first large product
        torch.set_num_threads(1)
    for lock in list(_locks):
        lock._at_fork_reinit()
    for owner in list(_owners):
        owner.renew()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_all)
