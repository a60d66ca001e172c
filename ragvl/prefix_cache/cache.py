"""What a model computed for documents, kept on the device, in host memory and on disk."""

from __future__ import annotations

import math
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ragvl.arguments import checked_image_tokens
from ragvl.compression import COMPRESSIONS, Compression, page_tokens
from ragvl.forks import fork_safe
from ragvl.mllm import MLLM, ImageInputs
from ragvl.prefix_cache.device import DeviceTier
from ragvl.prefix_cache.disk import DiskTier
from ragvl.prefix_cache.lru import LruTier
from ragvl.prefix_cache.memory import Budget, device_budget, reservations
from ragvl.prefix_cache.pages import PagePool, num_state_pages, page_bytes
from ragvl.prefix_cache.record import PrefixRecord
from ragvl.prefix_cache.sizes import format_bytes, parse_bytes
from ragvl.prefix_cache.statistics import TierStatistics
from ragvl.prefix_cache.tiers import LowerTiers

_PICTURES_SHARE = 8  # beside prefixes, visual tokens may take one part in so many

# How much larger than the device tier a record may be: visual tokens of a decoder with few heads
# can take a few times what its keys and values do
_RECORD_FACTOR, _RECORD_EXTRA = 4, 1 << 20


class PrefixCache:
    """Keeps what a model computed for documents' prefixes, least recently used first to go.

    Three tiers: pages on the model's device, which suffixes attend to where they lie; host memory;
    a folder, which several processes may share and which stays. A prefix is written to all when it
    is built, and comes back up when it is needed. Belongs to one model, the first that it is used
    with. Thread-safe, and of use in a forked child too. `PrefixSupply` fills and reads it.

    Of pictures that are in no prefix, such as queries', and all where none can be reused, visual
    tokens are kept in the same tiers (`PictureSupply`): where none can, they have the device's
    memory for themselves, else they may take an eighth as much again.

    Args:
        device_bytes: memory on the model's device, reserved at first use: a number or "8GiB",
            "500MB"; "auto" is half of a GPU's free memory, or a quarter of what this process may
            still take of a CPU's: see `ragvl.prefix_cache.available_bytes`. "scratch" is what one
            call needs, and nothing is kept from call to call.
        host_bytes: host memory for prefixes that the device has no room for. Of use with a GPU.
        folder: the folder on disk; None for none.
        disk_bytes: the folder's budget; None for no limit.
        keep: what the host and disk tiers hold: "kv", keys and values; "features", the picture's
            visual tokens, from which the decoder computes those again (a hundredth of the size);
            "auto", whichever measures faster to get back with this model in this tier.
        compression: "int8" keeps each number of keys and values in a byte, "int4" in half a byte.
            Scores change: `benchmarks/bench_prefix_cache.py` measures by how much. None is exact.
        image_tokens: the share of each picture's tokens whose keys and values are kept, more than 0
            and at most 1: those that are least like each other. The prefix is computed whole first,
            so that its text has seen all of the picture. Scores change:
            `benchmarks/bench_image_tokens.py` measures by how much. None is what the model was
            trained with, or all.
        wait_seconds: how long a call waits for the device's memory that other calls hold, before it
            ends in `PrefixCacheBusyError`.

    Attributes:
        compression: as it was given.
        image_tokens: as it was given.
        below: the host and disk tiers.

    Raises:
        ValueError: a budget that is no size, an unknown `keep` or `compression`, `image_tokens`
            that is no share, `wait_seconds` that is no time.
    """

    def __init__(
        self,
        device_bytes: Budget = "auto",
        *,
        host_bytes: Budget = 0,
        folder: str | Path | None = None,
        disk_bytes: Budget | None = None,
        keep: Literal["auto", "kv", "features"] = "auto",
        compression: Compression | None = None,
        image_tokens: float | None = None,
        wait_seconds: float = 600.0,
    ) -> None:
        self._settings: dict[str, Any] = {
            "device_bytes": device_bytes,
            "host_bytes": host_bytes,
            "folder": None if folder is None else os.path.abspath(folder),
            "disk_bytes": disk_bytes,
            "keep": keep,
            "compression": compression,
            "image_tokens": image_tokens,
            "wait_seconds": wait_seconds,
        }
        if keep not in ("auto", "kv", "features"):
            raise ValueError(f"keep={keep!r}: expected 'auto', 'kv' or 'features'")
        if compression not in (None, *COMPRESSIONS):
            known = ", ".join(map(repr, COMPRESSIONS))
            raise ValueError(f"compression={compression!r}: expected {known} or None")
        if not 0 < wait_seconds < math.inf:
            raise ValueError(f"wait_seconds={wait_seconds}: expected more than 0, and an end")
        named = device_bytes in ("auto", "scratch")
        self._device_bytes = device_bytes if named else parse_bytes(device_bytes)
        self.compression: Compression | None = compression
        self.image_tokens = None if image_tokens is None else checked_image_tokens(image_tokens)
        host_budget = parse_bytes(host_bytes)
        host: LruTier[PrefixRecord] | None = LruTier(host_budget) if host_budget else None
        limit = None if disk_bytes is None else parse_bytes(disk_bytes)
        disk = None if folder is None else DiskTier(folder, limit)
        self.below = LowerTiers(host, disk, None if keep == "auto" else keep)
        self._wait_seconds = wait_seconds
        self._mllm: MLLM | None = None
        self._device: DeviceTier | None = None
        self._pictures: LruTier[ImageInputs] | None = None
        self._lock = fork_safe(threading.Lock())

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets an empty cache with the same settings, and shares the folder."""
        return partial(type(self), **self._settings), ()

    def image_tokens_of(self, mllm: MLLM) -> float:
        """The share of pictures' tokens that `mllm`'s prefixes keep."""
        return mllm.image_tokens if self.image_tokens is None else self.image_tokens

    def attach(self, mllm: MLLM) -> DeviceTier:
        """The pages for `mllm`'s prefixes; reserved the first time.

        Raises:
            ValueError: it is attached to another model, the model was moved or cast since, the
                budget is less than a page, or the compression has no place for the model's heads.
        """
        with self._lock:
            self._belong_to(mllm)
            if self._device is None:
                with reservations.lock:  # another cache must see this one's share as taken
                    self._device = self._reserve(mllm)
                    reservations.add(self._device, mllm.device)
                self._limit_records(self._device.pool.size * self._device.page_bytes)
            pool = self._device.pool
            if (pool.layout, pool.device) != (mllm.kv_layout, mllm.device):
                raise ValueError(
                    "this PrefixCache holds prefixes in another dtype, or on another device, than "
                    "the model has now: make another PrefixCache"
                )
            return self._device

    def attach_pictures(self, mllm: MLLM) -> LruTier[ImageInputs]:
        """Where pictures' visual tokens are kept on `mllm`'s device, as they come.

        Raises:
            ValueError: the cache belongs to another model.
        """
        with self._lock:
            self._belong_to(mllm)
            if self._pictures is None:
                with reservations.lock:
                    budget = 0 if self.is_scratch else self._pictures_budget(mllm)
                    self._pictures = LruTier(budget)
                    reservations.add(self._pictures, mllm.device)
                self._limit_records(budget)
            return self._pictures

    def statistics(self) -> dict[str, TierStatistics]:
        """Hits, misses, bytes held and evictions of each tier there is, the fastest first.

        On the device, "device" holds prefixes, and "pictures" visual tokens where these are kept.
        """
        device = TierStatistics() if self._device is None else self._device.stats
        pictures = {} if self._pictures is None else {"pictures": self._pictures.stats}
        return {"device": device, **pictures, **self.below.statistics()}

    def __contains__(self, key: str) -> bool:
        """Whether a tier has it, without counting as a use."""
        return (self._device is not None and key in self._device) or key in self.below

    def __len__(self) -> int:
        """How many prefixes are on the device."""
        return 0 if self._device is None else len(self._device)

    def drop(self, key: str) -> None:
        """Forgets a prefix in every tier; leases that hold it may go on with it."""
        if self._device is not None:
            self._device.drop(key)
        self.below.remove(key)

    def clear(self) -> None:
        """Empties the device and host tiers of what is not in use; the disk's stay."""
        if self._device is not None:
            self._device.clear()
        if self._pictures is not None:
            self._pictures.clear()
        if self.below.host is not None:
            self.below.host.clear()

    @property
    def is_scratch(self) -> bool:
        """Whether the device keeps nothing from call to call."""
        return self._device_bytes == "scratch"

    def _belong_to(self, mllm: MLLM) -> None:
        if self._mllm not in (None, mllm):
            raise ValueError(
                "this PrefixCache belongs to another model: make one for each model (they may "
                "share a folder)"
            )
        self._mllm = mllm

    def _limit_records(self, device_bytes: int) -> None:
        """Has the disk refuse files that are larger than anything the device could hold."""
        if (disk := self.below.disk) is not None:
            limit = _RECORD_FACTOR * device_bytes + _RECORD_EXTRA
            disk.max_record_bytes = max(limit, disk.max_record_bytes or 0)

    def _pictures_budget(self, mllm: MLLM) -> int:
        if self._device is not None:
            return self._device.pool.size * self._device.page_bytes // _PICTURES_SHARE
        return device_budget(self._device_bytes, mllm.device, 0)

    def _why_so_little(self) -> str:
        if isinstance(self._device_bytes, int):
            return ""
        return (
            f" ({self._device_bytes!r} is a share of the memory that is left when other caches of "
            "this process have filled: end what else takes memory, or give it a size)"
        )

    def _reserve(self, mllm: MLLM) -> DeviceTier:
        bytes_per_page = page_bytes(mllm.kv_layout, self.compression)
        state_pages = num_state_pages(mllm.kv_layout, self.compression)
        budget = device_budget(
            *(self._device_bytes, mllm.device, bytes_per_page, state_pages, self.compression)
        )
        if budget < bytes_per_page:
            raise ValueError(
                f"a prefix cache of {format_bytes(budget)} holds nothing: this model takes "
                f"{format_bytes(bytes_per_page)} for {page_tokens(self.compression)} tokens"
                f"{self._why_so_little()}"
            )
        pool = PagePool(mllm.kv_layout, budget // bytes_per_page, mllm.device, self.compression)
        return DeviceTier(
            pool, bytes_per_page, keep=not self.is_scratch, wait_seconds=self._wait_seconds
        )
