"""Pages are never lost and never given out twice, whatever ends a call and whenever."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from interrupts import Interrupt
from prefix_cache.tools import Child, used_pages

from ragvl.mllm import KvLayout
from ragvl.prefix_cache import (
    PAGE_TOKENS,
    CachedPrefix,
    DeviceTier,
    PagePool,
    PrefixCacheBusyError,
    PrefixTooLargeError,
)
from ragvl.prefix_cache.device import Lease, LeaseFullError

LAYOUT = KvLayout.uniform(1, 1, 1, torch.float32)
PAGE_BYTES = LAYOUT.bytes_per_token() * PAGE_TOKENS


def make_tier(size: int, *, keep: bool = True, wait_seconds: float = 60.0) -> DeviceTier:
    pool = PagePool(LAYOUT, size, torch.device("cpu"))
    return DeviceTier(pool, PAGE_BYTES, keep=keep, wait_seconds=wait_seconds)


def put(tier: DeviceTier, lease: Lease, key: str, num_pages: int = 1) -> CachedPrefix:
    (pages,) = tier.reserve([num_pages * PAGE_TOKENS], lease)
    return tier.insert(CachedPrefix(key, [0], "", 1, pages), lease)


def check(tier: DeviceTier, *, used: int = 0) -> None:
    """Every page is free or one prefix's, and so many are in use."""
    assert used_pages(tier) == used
    held = [n for entry in tier._entries.values() for n in entry.pages]
    assert sorted(held + tier._free) == list(range(tier.pool.size))
    assert tier.stats.bytes == len(held) * PAGE_BYTES
    assert list(tier._idle) == [key for key in tier._idle if not tier._entries[key].users]
    assert len(tier._idle) == len(tier) or used


def work(tier: DeviceTier) -> None:
    """Every step that there is, with room to be made and a prefix that another was sooner with."""
    with tier.lease() as lease, tier.lease() as other:
        tier.use("a", lease)
        put(tier, lease, "b", 2)
        spare = tier.reserve([PAGE_TOKENS, PAGE_TOKENS], lease)
        tier.give_back(spare[0], lease)
        put(tier, other, "b", 1)
        tier.use("b", other)
        tier.drop("b")
        put(tier, other, "c", 1)
    tier.clear()
    with tier.lease() as lease:
        put(tier, lease, "d", 3)


@pytest.mark.parametrize("keep", [True, False])
def test_an_interrupt_at_any_time_loses_no_page(keep: bool) -> None:
    tries, ended = 0, False
    while not ended:
        tier = make_tier(6, keep=keep)
        with tier.lease() as lease:
            put(tier, lease, "a", 1)
        ended = not Interrupt("prefix_cache/device.py", 1 + tries).run(partial(work, tier))
        tries += 1
        check(tier)
        with tier.lease() as lease:  # nothing hinders the next lease
            put(tier, lease, "e", 6)
            check(tier, used=6)
        check(tier)
    assert tries > 100


def test_a_lease_that_is_lost_holds_nothing() -> None:
    tier = make_tier(2)
    lease = tier.lease()
    put(tier, lease, "a", 2)
    check(tier, used=2)
    del lease
    check(tier)


def test_a_lease_that_the_collector_ends_in_the_middle_of_a_step() -> None:
    """Taking the lock again would wait for good."""
    tier = make_tier(2)
    lease = tier.lease()
    put(tier, lease, "a", 2)
    with tier._lock:
        tier._begin()
        tier.end(lease)
        tier._stepping = None
    check(tier)


def test_a_lease_takes_what_fits_and_never_waits_for_more() -> None:
    tier = make_tier(4)
    with tier.lease() as lease:
        assert len(tier.reserve([PAGE_TOKENS] * 9, lease)) == 4
        with pytest.raises(LeaseFullError):
            tier.reserve([PAGE_TOKENS], lease)
    check(tier)
    with pytest.raises(PrefixTooLargeError), tier.lease() as lease:
        tier.reserve([5 * PAGE_TOKENS], lease)
    check(tier)


def test_a_wait_has_an_end_and_names_who_holds_the_memory() -> None:
    tier = make_tier(4, wait_seconds=0.05)
    ready, done = threading.Event(), threading.Event()

    def hold() -> None:
        with tier.lease() as lease:
            put(tier, lease, "a", 4)
            ready.set()
            done.wait(60)

    holder = threading.Thread(target=hold, name="the one that holds")
    holder.start()
    assert ready.wait(60)
    try:
        error = pytest.raises(PrefixCacheBusyError, match="the one that holds holds 512 B")
        with error, tier.lease() as lease:
            tier.reserve([PAGE_TOKENS], lease)
    finally:
        done.set()
        holder.join()
    check(tier)


def test_a_thread_does_not_wait_for_itself() -> None:
    tier = make_tier(1, wait_seconds=1e6)
    with tier.lease() as outer:
        put(tier, outer, "a")
        with tier.lease() as inner, pytest.raises(PrefixCacheBusyError):
            tier.reserve([PAGE_TOKENS], inner)


def test_who_waits_is_woken() -> None:
    tier = make_tier(1, wait_seconds=60)
    ready = threading.Event()

    def take() -> None:
        with tier.lease() as lease:
            ready.set()
            put(tier, lease, "b")

    with tier.lease() as lease:
        put(tier, lease, "a")
        other = threading.Thread(target=take)
        other.start()
        assert ready.wait(60)
    other.join(60)
    assert not other.is_alive()
    assert list(tier._entries) == ["b"]


def test_a_forked_child_is_rid_of_other_threads_leases_and_locks() -> None:
    tier = make_tier(4, wait_seconds=60)
    ready, done = threading.Event(), threading.Event()

    def hold() -> None:
        with tier.lease() as lease:
            put(tier, lease, "a", 3)
            with tier._lock:
                ready.set()
                done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert ready.wait(60)

    def child() -> int:
        used = used_pages(tier)
        with tier.lease() as lease:
            put(tier, lease, "b", 4)
        check(tier)
        return used

    try:
        assert Child(child).result() == 0
    finally:
        done.set()
        holder.join()


class Counted(OrderedDict):
    """Counts what looks at its items one by one."""

    looked = 0

    def _counted(self, items: Callable) -> Any:
        for item in items():
            type(self).looked += 1
            yield item

    def __iter__(self) -> Any:
        return self._counted(super().__iter__)

    def items(self) -> Any:
        return self._counted(super().items)

    def values(self) -> Any:
        return self._counted(super().values)

    def keys(self) -> Any:
        return self._counted(super().keys)


@pytest.mark.parametrize("count", [10, 1000])
def test_one_more_prefix_is_no_work_on_the_others(count: int) -> None:
    tier = make_tier(count)
    for i in range(count):
        with tier.lease() as lease:
            put(tier, lease, str(i))
    tier._entries, tier._idle = Counted(tier._entries), Counted(tier._idle)
    Counted.looked = 0
    for i in range(10):
        with tier.lease() as lease:
            assert tier.use(str(count - 1), lease)
            put(tier, lease, f"new {i}")
    assert Counted.looked == 0
    assert tier.stats.evictions == 10
    check(tier)
