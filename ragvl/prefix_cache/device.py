"""Prefixes whose keys and values lie in pages on the model's device, and who is using them.

Which page is whose follows from two things: the prefixes that are kept, and the leases that live.
The rest (free pages, idle prefixes, counts) is kept beside them so that each step takes the same
time however many prefixes there are. Should an interrupt end a step half-way, or a lease be lost
without an end, the next step makes the rest anew: no page is lost.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import TracebackType
from typing import Concatenate, ParamSpec, TypeVar

import torch

from ragvl.forks import fork_safe, renew_in_children
from ragvl.prefix_cache.pages import PagePool
from ragvl.prefix_cache.sizes import format_bytes
from ragvl.prefix_cache.statistics import TierStatistics

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0  # how soon a waiting thread notices a lease that was lost without an end
_MAX_HOLDERS = 5  # named in an error


class PrefixTooLargeError(ValueError):
    """One document's prefix needs more memory than the cache has on the device."""


class PrefixCacheBusyError(RuntimeError):
    """Other calls held the device's memory for too long; the message says who."""


class LeaseFullError(Exception):
    """There is no room for one more prefix in this lease: end it first."""


@dataclass(eq=False)
class CachedPrefix:
    """A prefix whose keys, values and states are on the device.

    Attributes:
        key: its name.
        input_ids: its token ids.
        expansions: what stands for each of its pictures in the prompt's text.
        next_position: the position of the token after it.
        pages: where its states, and its keys and values, are.
        ready: when they are, on a GPU that may still be at it; None once they are known to be.
        dropped: how many of its tokens have no keys and values there: of its pictures, none of
            them after the last picture's end.
        users: how many leases hold it; it is not evicted before they end.
    """

    key: str
    input_ids: list[int]
    expansions: tuple[str, ...]
    next_position: int
    pages: list[int]
    ready: torch.cuda.Event | None = None
    dropped: int = 0
    users: int = 0

    def wait(self) -> None:
        """Lets what is queued on the current stream from now on see the whole prefix."""
        if (ready := self.ready) is not None:
            ready.wait()

    def finish(self) -> None:
        """Waits until nothing writes to its pages any more."""
        if (ready := self.ready) is not None:
            ready.synchronize()
            self.ready = None


class Lease:
    """The prefixes that one call uses; none is evicted before the `with` block ends.

    A lease that holds nothing waits for room. One that holds something never does: two leases could
    wait for each other.
    """

    def __init__(self, tier: DeviceTier) -> None:
        self.entries: list[CachedPrefix] = []
        self.reserved: dict[int, list[int]] = {}  # pages that are no prefix's yet, by the first
        self.thread = threading.current_thread()
        self.since = time.monotonic()
        self._tier = tier

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tier.end(self)

    def num_pages(self) -> int:
        """How many pages it keeps from others."""
        held = sum(len(entry.pages) for entry in self.entries)
        return held + sum(len(pages) for pages in self.reserved.values())


P = ParamSpec("P")
R = TypeVar("R")


def _step(
    change: Callable[Concatenate[DeviceTier, P], R],
) -> Callable[Concatenate[DeviceTier, P], R]:
    """Runs `change` under the lock; what an interrupt leaves half done, the next one mends."""

    @functools.wraps(change)
    def run(tier: DeviceTier, *args: P.args, **kwargs: P.kwargs) -> R:
        with tier._lock:
            tier._begin()
            result = change(tier, *args, **kwargs)
            tier._stepping = None
            return result

    return run


class DeviceTier:
    """Keeps prefixes in a pool's pages, least recently used first to go. Thread-safe.

    Args:
        pool: the pages.
        page_bytes: what one takes.
        keep: False forgets a prefix when its last lease ends.
        wait_seconds: how long a lease waits for others to give up memory.

    Attributes:
        stats: what has happened so far.
    """

    def __init__(self, pool: PagePool, page_bytes: int, *, keep: bool, wait_seconds: float) -> None:
        self.pool = pool
        self.page_bytes = page_bytes
        self.stats = TierStatistics()
        self._keep = keep
        self._wait_seconds = wait_seconds
        # The truth: the prefixes, and the leases that live
        self._entries: dict[str, CachedPrefix] = {}
        self._leases: dict[int, weakref.ref[Lease]] = {}
        # What follows from it. The lowest free pages go first, so that those from `_touched` on
        # have never been written to.
        self._free = list(range(pool.size - 1, -1, -1))
        self._touched = 0
        self._idle: OrderedDict[str, CachedPrefix] = OrderedDict()
        self._idle_pages = 0
        self._stepping: int | None = None  # the thread whose step has begun and not ended
        self._lost = False  # a lease went without an end
        self._forked = False
        # Only entered by `with`, which an interrupt cannot part from the taking of a plain lock. A
        # threading.Condition it can.
        self._lock = fork_safe(threading.Lock())
        self._waiting: list[threading.Lock] = []
        renew_in_children(self)

    # --- what is there --------------------------------------------------------------------------

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def untouched_bytes(self) -> int:
        """What is reserved, and has not been written to, so that the system still lends it out."""
        return (self.pool.size - self._touched) * self.page_bytes

    # --- leases ---------------------------------------------------------------------------------

    def lease(self) -> Lease:
        """A lease that holds nothing yet."""
        if self._forked:
            self._forked = False
            logger.warning(
                "process %s was forked: torch computes with one thread here", os.getpid()
            )
        lease = Lease(self)
        self._register(lease)
        return lease

    @_step
    def use(self, key: str, lease: Lease) -> CachedPrefix | None:
        """The prefix, which `lease` then holds; None if it is not here."""
        entry = self._entries.get(key)
        if entry is None:
            self.stats.misses += 1
        else:
            self.stats.hits += 1
            self._take(entry, lease)
        return entry

    def check_fits(self, length: int) -> None:
        """Refuses a prefix that has no place here even alone, by how many tokens it keeps.

        Raises:
            PrefixTooLargeError: it is larger than the pool.
        """
        if (count := self.pool.num_pages(length)) > self.pool.size:
            raise PrefixTooLargeError(
                f"its prefix of {length} tokens takes {format_bytes(count * self.page_bytes)} and "
                f"the prefix cache has {format_bytes(self.pool.size * self.page_bytes)}: give it "
                "more (prefix_cache=...)"
            )

    def reserve(self, lengths: Sequence[int], lease: Lease) -> list[list[int]]:
        """Pages for prefixes of so many tokens, until `lease` ends.

        For as many of the first as there is room for, at least one. Idle prefixes go for it.

        Raises:
            PrefixTooLargeError: one is larger than the pool.
            LeaseFullError: there is no room for the first, and the lease holds something.
            PrefixCacheBusyError: other leases left no room for too long.
        """
        self.check_fits(max(lengths))
        counts = [self.pool.num_pages(length) for length in lengths]
        start = time.monotonic()
        while True:
            bell = threading.Lock()
            bell.acquire()
            if taken := self._take_pages(counts, lease, bell):
                return taken
            if lease.num_pages():
                raise LeaseFullError
            left = start + self._wait_seconds - time.monotonic()
            if left <= 0 or self._waits_for_itself():
                raise PrefixCacheBusyError(self._busy(counts[0], time.monotonic() - start))
            bell.acquire(timeout=min(left, _POLL_SECONDS))

    @_step
    def insert(self, entry: CachedPrefix, lease: Lease) -> CachedPrefix:
        """Keeps a prefix whose pages `lease` has reserved and filled.

        Returns:
            The prefix that is kept under its key and held by `lease`: an earlier one where another
            thread was sooner.
        """
        known = self._entries.setdefault(entry.key, entry)
        self._take(known, lease)
        del lease.reserved[entry.pages[0]]
        if known is entry:
            self.stats.bytes += len(entry.pages) * self.page_bytes
        else:
            entry.finish()
            self._free.extend(reversed(entry.pages))
        return known

    @_step
    def give_back(self, pages: Sequence[int], lease: Lease) -> None:
        """Frees pages that `lease` has reserved, and that nothing writes to."""
        del lease.reserved[pages[0]]
        self._free.extend(reversed(pages))

    def end(self, lease: Lease) -> None:
        """Ends the use of what `lease` holds."""
        for entry in lease.entries:
            entry.finish()
        if self._stepping == threading.get_ident():
            # An interrupt ended a step of this thread, or the garbage collector ends the lease in
            # the middle of one: the next step sees to it
            self._leases.pop(id(lease), None)
            self._lost = True
            return
        for bell in self._close(lease):
            bell.release()

    # --- forgetting -----------------------------------------------------------------------------

    @_step
    def drop(self, key: str) -> None:
        """Forgets a prefix; leases that hold it may go on with it."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.stats.bytes -= len(entry.pages) * self.page_bytes
            if self._idle.pop(key, None) is not None:
                self._idle_pages -= len(entry.pages)
                self._free.extend(reversed(entry.pages))

    @_step
    def clear(self) -> None:
        """Forgets what is not in use."""
        while self._idle:
            self._evict()

    def renew(self) -> None:
        """In a forked child, only the leases of the thread that forked are still held."""
        self._waiting = []
        own = threading.get_ident()
        self._leases = {
            number: ref
            for number, ref in self._leases.items()
            if (lease := ref()) is not None and lease.thread.ident == own
        }
        self._lost = True  # another thread may have been in the middle of a step
        self._forked = True

    # --- steps of leases ------------------------------------------------------------------------

    @_step
    def _register(self, lease: Lease) -> None:
        self._leases[id(lease)] = weakref.ref(lease, self._lose)

    @_step
    def _take_pages(
        self, counts: Sequence[int], lease: Lease, bell: threading.Lock
    ) -> list[list[int]]:
        """As many of the wanted pages as there are; `bell` is released once there may be more."""
        room = len(self._free) + self._idle_pages
        fitting = [
            count for count, end in zip(counts, accumulate(counts), strict=True) if end <= room
        ]
        if not fitting:
            self._waiting.append(bell)
        while len(self._free) < sum(fitting):
            self._evict()
            self.stats.evictions += 1
        taken = []
        for count in fitting:
            pages = self._free[: -count - 1 : -1]
            del self._free[-count:]
            lease.reserved[pages[0]] = pages
            taken.append(pages)
        self._touched = max(self._touched, self.pool.size - len(self._free))
        return taken

    @_step
    def _close(self, lease: Lease) -> list[threading.Lock]:
        """Frees what a lease held; who waited for room is returned."""
        if self._leases.pop(id(lease), None) is not None:
            if lease.reserved:
                self._settle()
            else:
                for entry in lease.entries:
                    self._leave(entry)
        waiting, self._waiting = self._waiting, []
        return waiting

    # --- inside a step --------------------------------------------------------------------------

    def _begin(self) -> None:
        """Begins a step: what an earlier one left half done is put right."""
        unfinished, self._stepping = self._stepping is not None, threading.get_ident()
        if unfinished or self._lost:
            self._lost = True  # until it is settled
            self._settle()

    def _settle(self) -> None:
        """Finds anew what follows from the prefixes and the leases."""
        self.pool.synchronize()  # work of a lease that was lost, or that an error ended, may go on
        self._lost = False  # before the leases are looked at: one that goes meanwhile sets it again
        leases = [lease for ref in self._leases.values() if (lease := ref()) is not None]
        self._leases = {id(lease): self._leases[id(lease)] for lease in leases}
        users = Counter(id(entry) for lease in leases for entry in lease.entries)
        entries = list(self._entries.values())
        for entry in [*entries, *(entry for lease in leases for entry in lease.entries)]:
            entry.users = users[id(entry)]
        idle = OrderedDict.fromkeys((*self._idle, *self._entries))  # the longest idle come first
        self._idle = OrderedDict(
            (key, self._entries[key])
            for key in idle
            if key in self._entries and not self._entries[key].users
        )
        if not self._keep:
            self._entries = {e.key: e for e in entries if e.users}
            self._idle = OrderedDict()
        taken: set[int] = set()
        for lease in leases:
            taken.update(*lease.reserved.values())
            taken.update(*(entry.pages for entry in lease.entries))
        for entry in self._entries.values():
            taken.update(entry.pages)
        self._free = [page for page in range(self.pool.size - 1, -1, -1) if page not in taken]
        self._idle_pages = sum(len(entry.pages) for entry in self._idle.values())
        held = sum(len(entry.pages) for entry in self._entries.values())
        self.stats.bytes = held * self.page_bytes

    def _take(self, entry: CachedPrefix, lease: Lease) -> None:
        lease.entries.append(entry)
        entry.users += 1
        if self._idle.pop(entry.key, None) is not None:
            self._idle_pages -= len(entry.pages)

    def _leave(self, entry: CachedPrefix) -> None:
        entry.users -= 1
        if entry.users:
            return
        if self._entries.get(entry.key) is not entry:  # dropped meanwhile
            self._free.extend(reversed(entry.pages))
            return
        self._idle[entry.key] = entry
        self._idle_pages += len(entry.pages)
        if not self._keep:
            self._evict()

    def _evict(self) -> None:
        """Forgets the prefix that has been idle longest."""
        key, entry = self._idle.popitem(last=False)
        del self._entries[key]
        self._free.extend(reversed(entry.pages))
        self._idle_pages -= len(entry.pages)
        self.stats.bytes -= len(entry.pages) * self.page_bytes

    # --- outside of one -------------------------------------------------------------------------

    def _lose(self, _: weakref.ref[Lease]) -> None:
        # May run anywhere, under the lock as well: no more than this
        self._lost = True

    def _holders(self) -> list[Lease]:
        leases = [ref() for ref in list(self._leases.values())]
        return [lease for lease in leases if lease is not None and lease.num_pages()]

    def _waits_for_itself(self) -> bool:
        """Whether all that is in use is in use by this very thread, which will not end it."""
        own = threading.get_ident()
        holders = self._holders()
        return bool(holders) and all(lease.thread.ident == own for lease in holders)

    def _busy(self, count: int, seconds: float) -> str:
        now = time.monotonic()
        held = [
            f"{lease.thread.name} holds {format_bytes(lease.num_pages() * self.page_bytes)} "
            f"for {now - lease.since:.0f} s"
            for lease in self._holders()
        ]
        more = [f"and {len(held) - _MAX_HOLDERS} more"] if len(held) > _MAX_HOLDERS else []
        wanted, size = (format_bytes(n * self.page_bytes) for n in (count, self.pool.size))
        holders = "; ".join([*held[:_MAX_HOLDERS], *more]) or "nobody holds any"
        return f"waited {seconds:.0f} s for {wanted} of the prefix cache's {size}: {holders}"
