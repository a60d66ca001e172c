from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from interrupts import Interrupt
from prefix_cache.tools import kept_keys, key, make_record, same

from ragvl.prefix_cache import TierStatistics
from ragvl.prefix_cache.lru import LruTier


def test_get_and_put():
    tier, record = LruTier(10_000), make_record(1)
    assert tier.get(key(1)) is None
    tier.put(key(1), record)
    assert tier.get(key(1)) is record
    assert key(1) in tier
    assert key(2) not in tier
    assert tier.stats == TierStatistics(hits=1, misses=1, bytes=1000)


def test_the_least_recently_used_goes_first():
    tier = LruTier(3000)
    for i in range(3):
        tier.put(key(i), make_record(i))
    tier.get(key(0))
    tier.put(key(3), make_record(3))
    assert kept_keys(tier) == [key(2), key(0), key(3)]
    tier.put(key(4), make_record(4, nbytes=2000))
    assert kept_keys(tier) == [key(3), key(4)]
    assert tier.stats == TierStatistics(hits=1, bytes=3000, evictions=3)


def test_a_record_larger_than_the_budget_is_not_kept():
    tier = LruTier(1000)
    tier.put(key(0), make_record(0))
    tier.put(key(1), make_record(1, nbytes=1004))
    assert kept_keys(tier) == [key(0)]
    tier.put(key(0), make_record(0, nbytes=1004))  # and what it was to replace is out of date
    assert kept_keys(tier) == []
    assert tier.stats == TierStatistics()


def test_a_record_in_the_place_of_another():
    tier = LruTier(3000)
    for nbytes in (1000, 2000, 400):
        tier.put(key(0), make_record(0, nbytes=nbytes))
        assert tier.stats == TierStatistics(bytes=nbytes)


def test_remove_and_clear():
    tier = LruTier(5000)
    for i in range(3):
        tier.put(key(i), make_record(i))
    tier.remove(key(1))
    tier.remove(key(1))
    assert kept_keys(tier) == [key(0), key(2)]
    assert tier.stats.bytes == 2000
    tier.clear()
    assert kept_keys(tier) == []
    assert tier.stats.bytes == 0


def test_threads():
    records = [make_record(i, nbytes=400 + 100 * i) for i in range(10)]
    tier = LruTier(3000)

    def work(seed: int) -> int:
        choose, gets = random.Random(seed), 0
        for _ in range(2000):
            i = choose.randrange(10)
            action = choose.choice(["get", "put", "put", "remove"])
            if action == "get":
                gets += 1
                result = tier.get(key(i))
                assert result is None or result is records[i]
            elif action == "put":
                tier.put(key(i), records[i])
            else:
                tier.remove(key(i))
        return gets

    with ThreadPoolExecutor(8) as pool:
        gets = sum(pool.map(work, range(8)))
    keys = kept_keys(tier)
    held = [tier.get(key) for key in keys]
    assert tier.stats.hits + tier.stats.misses == gets + len(held)
    assert tier.stats.bytes == sum(record.nbytes for record in held) <= 3000
    assert all(same(record, records[int(record.info["number"])]) for record in held)


def test_an_interrupt_at_any_time_miscounts_nothing() -> None:
    records = [make_record(i) for i in range(4)]

    def work(tier: LruTier) -> None:
        for i in range(4):  # the last makes room
            tier.put(key(i), records[i])
        tier.remove(key(2))
        tier.clear()

    tries, ended = 0, False
    while not ended:
        tier = LruTier(3000)
        ended = not Interrupt("prefix_cache/lru.py", 1 + tries).run(partial(work, tier))
        tries += 1
        for i in range(3):
            tier.put(key(i), records[i])
        assert kept_keys(tier) == [key(i) for i in range(3)]
        assert tier.stats.bytes == 3000
    assert tries > 20
