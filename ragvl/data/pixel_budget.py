"""How many pixels may be decoded at the same time."""

from __future__ import annotations

import threading
import time
import weakref
from types import TracebackType

from ragvl.forks import fork_safe, renew_in_children

WAIT_SECONDS = 600.0
_POLL_SECONDS = 0.01  # little beside the decoding of pictures that are large together


class Hold:
    """The pixels of one picture: waiting for room, then being worked on until the block ends."""

    def __init__(self, budget: PixelBudget, pixels: int) -> None:
        self.pixels = pixels
        self.thread = threading.get_ident()
        self.has_room = False
        self.has_ended = False
        self._budget = budget

    def __enter__(self) -> None:
        try:
            self._budget.wait_for(self)
        except BaseException:
            self.has_ended = True
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.has_ended = True


class PixelBudget:
    """Pictures are worked on at the same time while their pixels together are within `total`.

    One that is larger than that is worked on alone. Thread-safe; a forked child begins anew.

    All follows from the holds that live, and is worked out anew in each step, of which there are no
    more than threads. So an interrupt may end a step anywhere: no room is lost.

    Args:
        total: the budget.
        wait_seconds: how long a picture waits for others.
    """

    def __init__(self, total: int, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self.total = total
        self._wait_seconds = wait_seconds
        self._lock = fork_safe(threading.Lock())
        self._holds: list[weakref.ref[Hold]] = []  # the first come first
        renew_in_children(self)

    def renew(self) -> None:
        """In a forked child, no picture is being worked on."""
        self._holds = []

    @property
    def used(self) -> int:
        """How many pixels are being worked on."""
        with self._lock:
            return sum(hold.pixels for hold in self._live() if hold.has_room)

    def hold(self, pixels: int) -> Hold:
        """Waits until there is room for a picture, and keeps it for the time of a `with` block.

        First come, first served, so that none waits for good. A thread that holds some already does
        not wait, since it might wait for itself.

        Raises:
            TimeoutError: others left no room for too long; raised when the block begins.
        """
        return Hold(self, pixels)

    def wait_for(self, hold: Hold) -> None:
        """Waits until there is room for `hold`; see `PixelBudget.hold`."""
        start = time.monotonic()
        with self._lock:
            self._holds.append(weakref.ref(hold))
        while not self._begins(hold):
            if time.monotonic() - start > self._wait_seconds:
                raise TimeoutError(
                    f"waited {self._wait_seconds:.0f} s for other pictures to be decoded"
                )
            time.sleep(_POLL_SECONDS)

    def _begins(self, hold: Hold) -> bool:
        with self._lock:
            live = self._live()
            working = [other for other in live if other.has_room]
            used = sum(other.pixels for other in working)
            is_next = next(other for other in live if not other.has_room) is hold
            has_room = not used or used + hold.pixels <= self.total
            holds_some = any(other.thread == hold.thread for other in working)
            hold.has_room = holds_some or (is_next and has_room)
            return hold.has_room

    def _live(self) -> list[Hold]:
        """The holds that have not ended."""
        live = [hold for ref in self._holds if (hold := ref()) is not None and not hold.has_ended]
        self._holds = [weakref.ref(hold) for hold in live]
        return live
