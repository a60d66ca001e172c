"""What a forked child makes anew: it has its parent's memory, and none of its other threads."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable
from typing import Protocol


class Renewable(Protocol):
    """Holds locks, or counts what threads do."""

    def renew(self) -> None:
        """Makes new what only threads of the parent would have released.

        Runs in the child, before anything else there: no lock may be waited for.
        """


_owners: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_in_children(owner: Renewable) -> None:
    """Has `owner.renew()` called in every forked child, for as long as `owner` lives."""
    _owners.add(owner)


def call_in_children(function: Callable[[], None]) -> None:
    """Has `function()` called in every forked child, for what lives as long as the process."""
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=function)


def _renew_all() -> None:
    owners = list(_owners)
    torch = sys.modules.get("torch")
    if owners and torch is not None and torch.get_num_threads() > 1:
        # OpenMP would wait for threads that only the parent has, at the first large product
        torch.set_num_threads(1)
    for owner in owners:
        owner.renew()


call_in_children(_renew_all)
