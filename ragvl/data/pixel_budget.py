"""How many pixels may be decoded at the same time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ragvl.forks import call_in_children


@dataclass
class _State:
    changed: threading.Condition = field(default_factory=threading.Condition)
    used: int = 0
    waiting: deque[object] = field(default_factory=deque)  # in order, so that none waits for good
    own: threading.local = field(default_factory=threading.local)  # `holds`: of this thread


class PixelBudget:
    """Pictures are worked on at the same time while their pixels together are within `total`.

    One that is larger than that is worked on alone. Thread-safe; a forked child begins anew.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._renew()
        call_in_children(self._renew)

    def _renew(self) -> None:
        self._state = _State()

    @property
    def used(self) -> int:
        """How many pixels are being worked on."""
        return self._state.used

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Waits until there is room for a picture, and keeps it for the time of the block.

        A thread that holds some already does not wait, since it might wait for itself.
        """
        state = self._state  # a fork within the block replaces it
        if getattr(state.own, "holds", False):
            yield
            return
        place = object()
        with state.changed:
            state.waiting.append(place)
            try:
                state.changed.wait_for(
                    lambda: (
                        state.waiting[0] is place
                        and (not state.used or state.used + pixels <= self.total)
                    )
                )
                state.used += pixels
            finally:
                state.waiting.remove(place)
                state.changed.notify_all()
        state.own.holds = True
        try:
            yield
        finally:
            state.own.holds = False
            if state is self._state:  # else this is a child, and the lock may never be free
                with state.changed:
                    state.used -= pixels
                    state.changed.notify_all()
