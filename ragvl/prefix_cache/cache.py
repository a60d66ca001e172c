"""Prefixes of documents, kept on the device, in host memory and on disk."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from ragvl.forks import fork_safe
from ragvl.messages import reason
from ragvl.mllm import MLLM, Prefilled, Prompt
from ragvl.prefix_cache.building import PrefixBuilder
from ragvl.prefix_cache.device import CachedPrefix, DeviceTier, Lease
from ragvl.prefix_cache.disk import DiskTier
from ragvl.prefix_cache.host import HostTier, TierStatistics
from ragvl.prefix_cache.memory import available_bytes, reservations
from ragvl.prefix_cache.pages import PAGE_TOKENS, Compression, PagePool, num_pages, page_bytes
from ragvl.prefix_cache.payloads import (
    Kind,
    UnusableRecordError,
    features_of,
    features_record,
    kind_of,
    kv_record,
    prefix_of,
)
from ragvl.prefix_cache.record import PrefixRecord, is_finite
from ragvl.prefix_cache.sizes import format_bytes, parse_bytes
from ragvl.runtime import is_out_of_memory

logger = logging.getLogger(__name__)

Budget = int | str

# What "auto" takes of the memory that is available when the model has been loaded
_GPU_SHARE, _CPU_SHARE = 0.5, 0.25
# What is reserved where nothing is to be kept: the candidates of a chunk, of 640 tokens each
_SCRATCH_TOKENS = 32 * 640
# How much larger than the device tier a record may be: visual tokens of a decoder with few heads
# can take a few times what its keys and values do
_RECORD_FACTOR, _RECORD_EXTRA = 4, 1 << 20


class PrefixCache:
    """Keeps what a model computed for documents' prefixes, least recently used first to go.

    Three tiers: pages on the model's device, which suffixes attend to where they lie; host memory;
    a folder, which several processes may share and which stays. A prefix is written to all when it
    is built, and comes back up when it is asked for. Belongs to one model, the first that it is
    used with. Thread-safe, and of use in a forked child too.

    What is used is held by a lease:

        with cache.lease() as lease:
            prefix = cache.get(key, lease)

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
        compression: "int8" keeps each key's and value's number in a byte. Scores change:
            `benchmarks/bench_prefix_cache.py` measures by how much. None is exact.
        wait_seconds: how long a call waits for the device's memory that other calls hold, before it
            ends in `PrefixCacheBusyError`.

    Raises:
        ValueError: a budget that is no size, an unknown `keep` or `compression`, `wait_seconds`
            that is no time.
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
        wait_seconds: float = 600.0,
    ) -> None:
        self._settings: dict[str, Any] = {
            "device_bytes": device_bytes,
            "host_bytes": host_bytes,
            "folder": None if folder is None else os.path.abspath(folder),
            "disk_bytes": disk_bytes,
            "keep": keep,
            "compression": compression,
            "wait_seconds": wait_seconds,
        }
        if keep not in ("auto", "kv", "features"):
            raise ValueError(f"keep={keep!r}: expected 'auto', 'kv' or 'features'")
        if compression not in (None, "int8"):
            raise ValueError(f"compression={compression!r}: expected 'int8' or None")
        if not 0 < wait_seconds < math.inf:
            raise ValueError(f"wait_seconds={wait_seconds}: expected more than 0, and an end")
        named = device_bytes in ("auto", "scratch")
        self._device_bytes = device_bytes if named else parse_bytes(device_bytes)
        self.compression: Compression | None = compression
        self._host = HostTier(parse_bytes(host_bytes)) if parse_bytes(host_bytes) else None
        limit = None if disk_bytes is None else parse_bytes(disk_bytes)
        self._disk = None if folder is None else DiskTier(folder, limit)
        # What each lower tier holds; measured with the first prefix where it is not given
        self._kinds: dict[HostTier | DiskTier, Kind] = {}
        if keep != "auto":
            self._kinds = dict.fromkeys(self._lower(), keep)
        self._wait_seconds = wait_seconds
        self._mllm: MLLM | None = None
        self._device: DeviceTier | None = None
        self._lock = fork_safe(threading.Lock())

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets an empty cache with the same settings, and shares the folder."""
        return partial(type(self), **self._settings), ()

    # --- what it is -----------------------------------------------------------------------------

    def attach(self, mllm: MLLM) -> None:
        """Reserves the device's memory for `mllm`'s prefixes; does nothing the second time.

        Raises:
            ValueError: it is attached to another model, the model was moved or cast since, or the
                budget is less than a page.
        """
        with self._lock:
            if self._mllm is mllm:
                if (self.pool.layout, self.pool.device) != (mllm.kv_layout, mllm.device):
                    raise ValueError(
                        "this PrefixCache holds prefixes in another dtype, or on another device, "
                        "than the model has now: make another PrefixCache"
                    )
                return
            if self._mllm is not None:
                raise ValueError(
                    "this PrefixCache belongs to another model: make one for each model (they may "
                    "share a folder)"
                )
            with reservations.lock:  # another cache must see this one's share as taken
                self._device = self._reserve(mllm)
                reservations.add(self._device)
            if self._disk is not None:
                pool_bytes = self._device.pool.size * self._device.page_bytes
                self._disk.max_record_bytes = _RECORD_FACTOR * pool_bytes + _RECORD_EXTRA
            self._mllm = mllm

    @property
    def pool(self) -> PagePool:
        """The device's pages; present once attached."""
        return self._attached()[1].pool

    def statistics(self) -> dict[str, TierStatistics]:
        """Hits, misses, bytes held and evictions of each tier there is, the fastest first."""
        tiers = {"device": TierStatistics() if self._device is None else self._device.stats}
        if self._host is not None:
            tiers["host"] = self._host.stats
        if self._disk is not None:
            tiers["disk"] = self._disk.stats
        return tiers

    def __contains__(self, key: str) -> bool:
        """Whether a tier has it, without counting as a use."""
        on_device = self._device is not None and key in self._device
        return on_device or any(key in tier for tier in self._lower())

    def __len__(self) -> int:
        """How many prefixes are on the device."""
        return 0 if self._device is None else len(self._device)

    # --- use ------------------------------------------------------------------------------------

    def lease(self) -> Lease:
        """What holds the prefixes of one call, to be used in a `with` statement."""
        return self._attached()[1].lease()

    def get(self, key: str, lease: Lease) -> CachedPrefix | None:
        """The prefix, on the device and held by `lease`; None if no tier has it.

        Raises:
            LeaseFullError: a lower tier has it, and beside what `lease` holds there is no room.
            PrefixCacheBusyError: a lower tier has it, and other leases left no room for too long.
        """
        _, device = self._attached()
        if (entry := device.use(key, lease)) is not None:
            return entry
        for tier in self._lower():
            record = tier.get(key)
            if record is None:
                continue
            try:
                entry = self._restore(key, record, lease)
            except UnusableRecordError as error:
                logger.warning("the prefix %s is computed again: %s", key, reason(error))
                continue
            for above in self._lower():
                if above is tier:
                    break
                above.put(key, record)
            return entry
        return None

    def check_fits(self, length: int) -> None:
        """Refuses a prefix of so many tokens that the device has no room for even alone.

        Raises:
            PrefixTooLargeError: it would not fit there.
        """
        self._attached()[1].check_fits(length)

    def build(
        self, prefixes: Mapping[str, Prompt], builder: PrefixBuilder, lease: Lease
    ) -> list[CachedPrefix]:
        """Computes prefixes with one picture each and keeps them in every tier.

        Args:
            prefixes: by their names.
            builder: computes them.
            lease: holds them.

        Returns:
            As many of the first as there was room for, at least one.

        Raises:
            LeaseFullError: beside what `lease` holds there is no room for the first.
            PrefixCacheBusyError: other leases left no room for too long.
            PrefixTooLargeError: one would not fit there alone.
        """
        _, device = self._attached()
        # Visual tokens, and the time that one prefix takes, are known of prefixes built alone
        together = all(self._kinds.get(tier) == "kv" for tier in self._lower())
        count = len(prefixes) if together else 1
        lengths = [len(prefix) for prefix in islice(prefixes.values(), count)]
        pages = device.reserve(lengths, lease)
        if len(pages) < count:
            # Batches of few sizes: a new one is computed twice, to see whether it changes a bit
            count = 1 << (len(pages).bit_length() - 1)
            for own in pages[count:]:
                device.give_back(own, lease)
        keys, prompts = list(islice(prefixes, count)), list(islice(prefixes.values(), count))
        entries = []
        every = builder(prompts, pages[:count])
        for key, prefix, own, done in zip(keys, prompts, pages[:count], every, strict=True):
            expansion = prefix.images[0].expansion
            entry = CachedPrefix(key, prefix.input_ids, expansion, done.next_position, own)
            self._keep_below(entry, prefix, done)
            entries.append(device.insert(entry, lease))
        return entries

    def is_broken(self, entry: CachedPrefix) -> bool:
        """Whether a number of the prefix, which a lease holds, is NaN or infinite."""
        tensors = self.pool.read(entry.pages)
        return not all(map(is_finite, tensors.values()))

    def drop(self, key: str) -> None:
        """Forgets a prefix in every tier; leases that hold it may go on with it."""
        if self._device is not None:
            self._device.drop(key)
        for tier in self._lower():
            tier.remove(key)

    def clear(self) -> None:
        """Empties the device and host tiers of what is not in use; the disk's stay."""
        if self._device is not None:
            self._device.clear()
        if self._host is not None:
            self._host.clear()

    @property
    def is_scratch(self) -> bool:
        """Whether nothing is to be kept from call to call."""
        return self._device_bytes == "scratch"

    # --- inside ---------------------------------------------------------------------------------

    def _attached(self) -> tuple[MLLM, DeviceTier]:
        if self._mllm is None or self._device is None:
            raise RuntimeError("attach(mllm) comes first")
        return self._mllm, self._device

    def _lower(self) -> list[HostTier | DiskTier]:
        return [tier for tier in (self._host, self._disk) if tier is not None]

    def _reserve(self, mllm: MLLM) -> DeviceTier:
        needed = page_bytes(mllm.kv_layout, self.compression)
        budget = self._resolve_budget(mllm, needed)
        if budget < needed:
            raise ValueError(
                f"a prefix cache of {format_bytes(budget)} holds nothing: this model takes "
                f"{format_bytes(needed)} for {PAGE_TOKENS} tokens"
            )
        pool = PagePool(mllm.kv_layout, budget // needed, mllm.device, self.compression)
        return DeviceTier(pool, needed, keep=not self.is_scratch, wait_seconds=self._wait_seconds)

    def _keep_below(self, entry: CachedPrefix, prefix: Prompt, done: Prefilled) -> None:
        """Writes a prefix that has just been built to the lower tiers, if it is one."""
        if not self._lower():
            return
        tensors = self.pool.read(entry.pages)
        if not all(map(is_finite, tensors.values())):
            logger.warning("the prefix %s is not kept: it holds NaN or infinity", entry.key)
            return
        for tier in self._lower():
            record = kv_record(prefix, done, tensors)
            if tier not in self._kinds:
                self._kinds[tier] = self._faster_kind(tier, entry, record, done.seconds)
            if self._kinds[tier] == "features":
                record = features_record(prefix, done)
            tier.put(entry.key, record)

    def _restore(self, key: str, record: PrefixRecord, lease: Lease) -> CachedPrefix:
        """The prefix that a record holds, on the device.

        Raises:
            UnusableRecordError: it is no record of this model's.
        """
        mllm, device = self._attached()
        input_ids, expansion, next_position = prefix_of(record)
        (expanded,) = mllm.tokenize([expansion])
        if expanded.count(mllm.image_token_id) != input_ids.count(mllm.image_token_id):
            raise UnusableRecordError("its record has other visual tokens than it says")
        if num_pages(len(input_ids)) > device.pool.size:
            raise UnusableRecordError("it is larger than the device tier")
        (pages,) = device.reserve([len(input_ids)], lease)
        try:
            if kind_of(record) == "kv":
                device.pool.load(pages, record.tensors)
            else:
                prefix, features = features_of(record, mllm.device)
                mllm.prefill(
                    [prefix], lambda layer, k, v: device.pool.write(layer, [pages], k, v), features
                )
        # Whatever a foreign record trips in a model
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            device.give_back(pages, lease)
            raise UnusableRecordError(f"its record does not fit ({reason(error)})") from error
        self._wait()  # a pass on another stream may read it next
        entry = CachedPrefix(key, input_ids, expansion, next_position, pages)
        return device.insert(entry, lease)

    def _faster_kind(
        self,
        tier: HostTier | DiskTier,
        entry: CachedPrefix,
        record: PrefixRecord,
        decoder_seconds: float,
    ) -> Kind:
        """What is faster to get back: keys and values, or visual tokens and the decoder's work."""
        reading = 0.0
        if isinstance(tier, DiskTier):
            reading = tier.reading_seconds(entry.key, record)
        start = time.perf_counter()
        self.pool.load(entry.pages, record.tensors)
        self._wait()
        loading = time.perf_counter() - start
        return "kv" if reading + loading <= decoder_seconds else "features"

    def _wait(self) -> None:
        """Until what has been asked of the GPU is done."""
        if self.pool.device.type == "cuda":
            torch.cuda.current_stream(self.pool.device).synchronize()

    def _resolve_budget(self, mllm: MLLM, bytes_per_page: int) -> int:
        if isinstance(self._device_bytes, int):
            return self._device_bytes
        if mllm.device.type == "cuda":
            share = int(torch.cuda.mem_get_info(mllm.device)[0] * _GPU_SHARE)
        else:
            share = int(available_bytes() * _CPU_SHARE)
        if self._device_bytes == "scratch":
            return min(share, bytes_per_page * num_pages(_SCRATCH_TOKENS))
        return share
