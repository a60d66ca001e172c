"""Prefixes of documents, kept on the device, in host memory and on disk."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ragvl.mllm import (
    MLLM,
    PAGE_TOKENS,
    Compression,
    PagePool,
    PoolFullError,
    Prefilled,
    Prompt,
    num_pages,
)
from ragvl.prefix_cache.building import PrefixBuilder
from ragvl.prefix_cache.disk import DiskTier
from ragvl.prefix_cache.host import HostTier, TierStatistics
from ragvl.prefix_cache.kinds import (
    Kind,
    features_of,
    features_record,
    kind_of,
    kv_record,
    prefix_of,
)
from ragvl.prefix_cache.record import PrefixRecord
from ragvl.prefix_cache.sizes import format_bytes, parse_bytes

Budget = int | str

# What "auto" takes of the memory that is available when the model has been loaded
_GPU_SHARE, _CPU_SHARE = 0.5, 0.25
# What is reserved where nothing is to be kept: the candidates of a chunk, of 640 tokens each
_SCRATCH_TOKENS = 32 * 640


class PrefixTooLargeError(ValueError):
    """One document's prefix needs more memory than the cache has on the device."""


@dataclass(eq=False)
class CachedPrefix:
    """A prefix whose keys and values are on the device.

    Attributes:
        key: its name.
        input_ids: its token ids.
        expansion: what stands for the picture in the prompt's text.
        next_position: the position of the token after it.
        pages: (n,) int64, where its keys and values are, on their device.
        page_numbers: the same on the CPU, for whom a question must not wait.
        users: how many calls are at work with it; it is not evicted before they are done.
    """

    key: str
    input_ids: list[int]
    expansion: str
    next_position: int
    pages: Tensor
    users: int = field(default=1)
    page_numbers: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.page_numbers = self.pages.cpu()


class PrefixCache:
    """Keeps what a model computed for documents' prefixes, least recently used first to go.

    Three tiers: pages on the model's device, which suffixes attend to where they lie; host memory;
    a folder, which several processes may share and which stays. A prefix is written to all when it
    is built, and comes back up when it is asked for. Belongs to one model, the first that it is
    used with. Thread-safe.

    Args:
        device_bytes: memory on the model's device, reserved at first use: a number or "8GiB",
            "500MB"; "auto" is half of a GPU's free memory, a quarter of a CPU's. "scratch" is what
            one call needs, and nothing is kept from call to call.
        host_bytes: host memory for prefixes that the device has no room for. Of use with a GPU.
        folder: the folder on disk; None for none.
        disk_bytes: the folder's budget; None for no limit.
        keep: what the host and disk tiers hold: "kv", keys and values; "features", the picture's
            visual tokens, from which the decoder computes those again (a hundredth of the size);
            "auto", whichever measures faster to get back with this model in this tier.
        compression: "int8" or "fp8" keeps each key's and value's number in a byte. Scores change:
            `benchmarks/bench_prefix_cache.py` measures by how much. None is exact.

    Raises:
        ValueError: a budget that is no size, an unknown `keep` or `compression`.
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
    ) -> None:
        self._settings: dict[str, Any] = {
            "device_bytes": device_bytes,
            "host_bytes": host_bytes,
            "folder": None if folder is None else os.path.abspath(folder),
            "disk_bytes": disk_bytes,
            "keep": keep,
            "compression": compression,
        }
        if keep not in ("auto", "kv", "features"):
            raise ValueError(f"keep={keep!r}: expected 'auto', 'kv' or 'features'")
        if compression not in (None, "int8", "fp8"):
            raise ValueError(f"compression={compression!r}: expected 'int8', 'fp8' or None")
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
        self._mllm: MLLM | None = None
        self._pool: PagePool
        self._entries: OrderedDict[str, CachedPrefix] = OrderedDict()
        self._device = TierStatistics()
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets an empty cache with the same settings, and shares the folder."""
        return partial(type(self), **self._settings), ()

    # --- what it is -----------------------------------------------------------------------------

    def attach(self, mllm: MLLM) -> None:
        """Reserves the device's memory for `mllm`'s prefixes; does nothing the second time.

        Raises:
            ValueError: it is attached to another model, or the budget is less than a page.
        """
        with self._lock:
            if self._mllm is mllm:
                return
            if self._mllm is not None:
                raise ValueError(
                    "this PrefixCache belongs to another model: make one for each model (they may "
                    "share a folder)"
                )
            page_bytes = mllm.kv_layout.bytes_per_token(self.compression) * PAGE_TOKENS
            budget = self._resolve_budget(mllm, page_bytes)
            if budget < page_bytes:
                raise ValueError(
                    f"a prefix cache of {format_bytes(budget)} holds nothing: this model takes "
                    f"{format_bytes(page_bytes)} for {PAGE_TOKENS} tokens"
                )
            self._pool = PagePool(
                mllm.kv_layout, budget // page_bytes, mllm.device, self.compression
            )
            self._page_bytes = page_bytes
            self._mllm = mllm

    @property
    def pool(self) -> PagePool:
        """The device's pages; present once attached."""
        return self._pool

    def statistics(self) -> dict[str, TierStatistics]:
        """Hits, misses, bytes held and evictions of each tier there is, the fastest first."""
        tiers = {"device": self._device}
        if self._host is not None:
            tiers["host"] = self._host.stats
        if self._disk is not None:
            tiers["disk"] = self._disk.stats
        return tiers

    def __contains__(self, key: str) -> bool:
        """Whether a tier has it, without counting as a use."""
        return key in self._entries or any(key in tier for tier in self._lower())

    def __len__(self) -> int:
        """How many prefixes are on the device."""
        return len(self._entries)

    # --- use ------------------------------------------------------------------------------------

    def get(self, key: str) -> CachedPrefix | None:
        """The prefix, on the device and in use until `release`; None if no tier has it.

        Raises:
            PoolFullError: a lower tier has it, and what is in use leaves no room on the device.
        """
        if (entry := self._use(key)) is not None:
            return entry
        for tier in self._lower():
            record = tier.get(key)
            if record is None:
                continue
            entry = self._restore(key, record)
            if entry is not None:
                for above in self._lower():
                    if above is tier:
                        break
                    above.put(key, record)
                return entry
        return None

    def build(self, prefixes: Mapping[str, Prompt], builder: PrefixBuilder) -> list[CachedPrefix]:
        """Computes prefixes with one picture each and keeps them in every tier.

        They are in use until `release`.

        Args:
            prefixes: by their names.
            builder: computes them.

        Raises:
            PoolFullError: what is in use leaves no room on the device for all of them.
            PrefixTooLargeError: one would not fit there alone.
        """
        # Visual tokens, and the time that one prefix takes, are known of prefixes built alone
        together = all(self._kinds.get(tier) == "kv" for tier in self._lower())
        if not together and len(prefixes) > 1:
            return self._build_alone(prefixes, builder)
        pages = self._allocate([len(prefix) for prefix in prefixes.values()])
        try:
            found = builder(list(prefixes.values()), pages)
        except BaseException:
            for own in pages:
                self._pool.free(own)
            raise
        entries = []
        for (key, prefix), own, done in zip(prefixes.items(), pages, found, strict=True):
            expansion = prefix.images[0].expansion
            entry = CachedPrefix(key, prefix.input_ids, expansion, done.next_position, own)
            self._keep_below(entry, prefix, done)
            entries.append(self._insert(entry))
        return entries

    def release(self, entries: Iterable[CachedPrefix]) -> None:
        """Ends the use of prefixes that `get` and `build` gave."""
        with self._lock:
            for entry in entries:
                entry.users -= 1
            if self.is_scratch:
                self._drop_idle()

    def clear(self) -> None:
        """Empties the device and host tiers of what is not in use; the disk's stay."""
        with self._lock:
            if self._mllm is not None:  # else no device tier yet
                self._drop_idle()
            if self._host is not None:
                self._host.clear()

    @property
    def is_scratch(self) -> bool:
        """Whether nothing is to be kept from call to call."""
        return self._device_bytes == "scratch"

    # --- inside ---------------------------------------------------------------------------------

    def _build_alone(
        self, prefixes: Mapping[str, Prompt], builder: PrefixBuilder
    ) -> list[CachedPrefix]:
        entries: list[CachedPrefix] = []
        try:
            for key, prefix in prefixes.items():
                entries += self.build({key: prefix}, builder)
        except BaseException:
            self.release(entries)
            raise
        return entries

    def _keep_below(self, entry: CachedPrefix, prefix: Prompt, done: Prefilled) -> None:
        """Writes a prefix that has just been built to the lower tiers."""
        for tier in self._lower():
            kind = self._kinds.get(tier)
            if kind != "features":
                record = kv_record(prefix, done, self._pool.read(entry.pages))
                tier.put(entry.key, record)
                if kind is None:
                    kind = self._faster_kind(tier, entry, record, done.seconds)
                    self._kinds[tier] = kind
            if kind == "features":
                tier.put(entry.key, features_record(prefix, done))

    def _attached(self) -> MLLM:
        if self._mllm is None:
            raise RuntimeError("attach(mllm) comes first")
        return self._mllm

    def _lower(self) -> list[HostTier | DiskTier]:
        return [tier for tier in (self._host, self._disk) if tier is not None]

    def _use(self, key: str) -> CachedPrefix | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self._device.misses += 1
                return None
            self._device.hits += 1
            self._entries.move_to_end(key)
            entry.users += 1
            return entry

    def _insert(self, entry: CachedPrefix) -> CachedPrefix:
        with self._lock:
            known = self._entries.get(entry.key)
            if known is not None:  # another thread was sooner
                self._pool.free(entry.pages)
                known.users += 1
                return known
            self._entries[entry.key] = entry
            self._count_bytes()
            return entry

    def _allocate(self, lengths: Sequence[int]) -> list[Tensor]:
        """Pages for prefixes of so many tokens; for all of them, or none."""
        longest = max(lengths)
        if num_pages(longest) > self._pool.size:
            raise PrefixTooLargeError(
                f"its prefix of {longest} tokens takes "
                f"{format_bytes(num_pages(longest) * self._page_bytes)} and the prefix cache has "
                f"{format_bytes(self._pool.size * self._page_bytes)}: give it more "
                "(prefix_cache=...)"
            )
        count = sum(map(num_pages, lengths))
        with self._lock:
            idle = [key for key, entry in self._entries.items() if not entry.users]
            room = self._pool.num_free + sum(len(self._entries[key].pages) for key in idle)
            if room < count:
                raise PoolFullError(f"{count} pages are needed and {room} are not in use")
            for key in idle:
                if self._pool.num_free >= count:
                    break
                self._pool.free(self._entries.pop(key).pages)
                self._device.evictions += 1
            self._count_bytes()
            return [self._pool.allocate(length) for length in lengths]

    def _restore(self, key: str, record: PrefixRecord) -> CachedPrefix | None:
        """The prefix that a record holds, on the device; None if it is of another kind of pool."""
        mllm = self._attached()
        try:
            input_ids, expansion, next_position = prefix_of(record)
            (pages,) = self._allocate([len(input_ids)])
        except KeyError:
            return None
        try:
            if kind_of(record) == "kv":
                self._pool.load(pages, record.tensors)
            else:
                prefix, features = features_of(record, mllm.device)
                mllm.prefill(
                    [prefix], lambda layer, k, v: self._pool.write(layer, [pages], k, v), features
                )
        except (ValueError, KeyError):
            self._pool.free(pages)
            return None
        except BaseException:
            self._pool.free(pages)
            raise
        self._wait()  # a pass on another stream may read it next
        return self._insert(CachedPrefix(key, input_ids, expansion, next_position, pages))

    def _faster_kind(
        self,
        tier: HostTier | DiskTier,
        entry: CachedPrefix,
        record: PrefixRecord,
        decoder_seconds: float,
    ) -> Kind:
        """What is faster to get back: keys and values, or visual tokens and the decoder's work."""
        start = time.perf_counter()
        if isinstance(tier, DiskTier):
            # Another view of the folder, so that the measurement does not count as a use
            record = DiskTier(tier.folder, None).get(entry.key) or record
        self._pool.load(entry.pages, record.tensors)
        self._wait()
        return "kv" if time.perf_counter() - start <= decoder_seconds else "features"

    def _wait(self) -> None:
        """Until what has been asked of the GPU is done."""
        if self._pool.device.type == "cuda":
            torch.cuda.current_stream(self._pool.device).synchronize()

    def _drop_idle(self) -> None:
        for key in [key for key, entry in self._entries.items() if not entry.users]:
            self._pool.free(self._entries.pop(key).pages)
        self._count_bytes()

    def _count_bytes(self) -> None:
        held = sum(len(entry.pages) for entry in self._entries.values())
        self._device.bytes = held * self._page_bytes

    def _resolve_budget(self, mllm: MLLM, page_bytes: int) -> int:
        if isinstance(self._device_bytes, int):
            return self._device_bytes
        on_gpu = mllm.device.type == "cuda"
        share = int(_available_bytes(mllm.device) * (_GPU_SHARE if on_gpu else _CPU_SHARE))
        if self._device_bytes == "scratch":
            return min(share, page_bytes * num_pages(_SCRATCH_TOKENS))
        return share


def _available_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
