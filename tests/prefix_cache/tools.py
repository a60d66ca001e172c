"""Distinct records, and real processes to try the tiers with."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any

import torch

from ragvl.prefix_cache import DeviceTier
from ragvl.prefix_cache.disk import DiskTier
from ragvl.prefix_cache.lru import LruTier
from ragvl.prefix_cache.record import PrefixRecord


def key(number: int) -> str:
    """A key; neighbouring numbers are in the same folder."""
    return f"{number:064x}"


def make_record(number: int = 0, *, nbytes: int = 1000) -> PrefixRecord:
    """`nbytes` bytes of noise in two tensors, and the number in words and figures."""
    noise = torch.Generator().manual_seed(number)
    keys = torch.randint(256, (nbytes // 4,), dtype=torch.uint8, generator=noise)
    values = torch.randint(256, (nbytes // 4 * 3,), dtype=torch.uint8, generator=noise)
    info = {"number": f"{number:03}", "größe": f"{nbytes}"}
    return PrefixRecord({"k": keys.view(torch.int8), "v": values}, info)


def kept_keys(tier: LruTier[PrefixRecord] | DiskTier) -> list[str]:
    """The keys of all records, the least recently used first."""
    if isinstance(tier, LruTier):
        return list(tier._values)
    return [entry.path.stem for entry in tier._entries()]


def used_pages(tier: DeviceTier) -> int:
    """How many pages live leases keep, those of idle prefixes not counted."""
    with tier.lease():  # whose first step mends what an earlier one left half done
        return tier.pool.size - len(tier._free) - tier._idle_pages


def same(a: PrefixRecord, b: PrefixRecord) -> bool:
    """Whether two records are equal in every name, shape, dtype and bit."""

    def plain(record: PrefixRecord) -> tuple[Any, ...]:
        tensors = {
            name: (x.dtype, x.shape, x.contiguous().reshape(-1).view(torch.uint8).tolist())
            for name, x in record.tensors.items()
        }
        return tensors, record.info

    return plain(a) == plain(b)


class Child:
    """Another process, a fork of this one, that calls `function`."""

    def __init__(self, function: Callable[[], Any]) -> None:
        context = multiprocessing.get_context("fork")
        self._receiver, sender = context.Pipe(duplex=False)

        def main() -> None:
            torch.set_num_threads(1)  # a fork has none of the pool's other threads
            try:
                sender.send((function(), None))
            except BaseException:
                sender.send((None, traceback.format_exc()))

        self.process = context.Process(target=main, daemon=True)
        self.process.start()

    def result(self) -> Any:
        """What the function returned; fails with its traceback if it raised."""
        assert self._receiver.poll(600), "the process hangs or has died"
        value, failure = self._receiver.recv()
        self.process.join()
        assert failure is None, failure
        return value
