"""How much memory this process may still take: of the machine, of its container, of its limits."""

from __future__ import annotations

import os
import re
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import torch

from ragvl.compression import Compression
from ragvl.forks import fork_safe
from ragvl.prefix_cache.pages import num_pages

Budget = int | str

# What "auto" takes of the memory that is available when the model has been loaded
_GPU_SHARE, _CPU_SHARE = 0.5, 0.25
# What is reserved where nothing is to be kept: the candidates of a chunk, of 640 tokens each
_SCRATCH_PREFIXES, _SCRATCH_TOKENS = 32, 640

# Version 1 writes "no limit" as the largest multiple of a page
_NO_LIMIT = 1 << 62
_ESCAPED = re.compile(r"\\([0-7]{3})")  # in mountinfo, a space is \040


class _Files(NamedTuple):
    """Where one version of control groups says what."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: str  # a line of memory.stat: file pages that nobody has used lately


_V1 = _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files(("memory.max", "memory.high"), "memory.current", "inactive_file")


def device_budget(
    budget: Budget,
    device: torch.device,
    page_bytes: int,
    state_pages: int = 0,
    compression: Compression | None = None,
) -> int:
    """The bytes of a prefix cache on `device`: a number, or what "auto" or "scratch" means now.

    Args:
        budget: what was asked for.
        device: the model's.
        page_bytes: bytes of a page.
        state_pages: pages that a prefix's states take.
        compression: of the pages.
    """
    if isinstance(budget, int):
        return budget
    if device.type == "cuda":
        share = int(torch.cuda.mem_get_info(device)[0] * _GPU_SHARE)
    else:
        share = int(available_bytes() * _CPU_SHARE)
    pages = num_pages(_SCRATCH_TOKENS, state_pages, compression)
    scratch = page_bytes * _SCRATCH_PREFIXES * pages
    return min(share, scratch) if budget == "scratch" else share


def available_bytes(root: Path = Path("/")) -> int:
    """The memory that this process can still take before something refuses it or ends it.

    The least of what the machine has, what each control group around the process (a container's,
    a service's; versions 1 and 2) lets its members take, and what the process's own limits
    (`ulimit -v`, `ulimit -d`) leave. Memory that a `Reservations` has promised counts as taken.

    Args:
        root: where /proc and the control groups are; another for tests.
    """
    status = _read_table(root / "proc/self/status", ":")
    memory = _read_table(root / "proc/meminfo", ":")
    physical = [memory[name] for name in ("MemAvailable", "MemTotal") if name in memory][:1]
    physical = physical or [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    physical += _group_rooms(root)
    untouched = reservations.untouched_bytes
    return max(0, min([*(room - untouched for room in physical), *_address_rooms(status)]))


def _address_rooms(status: dict[str, int]) -> Iterator[int]:
    """What the process's own limits leave; a reservation counts as soon as it is made."""
    if sys.platform == "win32":
        return
    import resource

    for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft - status.get(name, 0)


class Promised(Protocol):
    """A tier whose memory is taken as it fills."""

    @property
    def untouched_bytes(self) -> int:
        """What is promised to it, and has not been taken."""


class Reservations:
    """The tiers of this process whose memory the system lends only as it is written to.

    Until then nobody else can see that it is promised.
    """

    def __init__(self) -> None:
        self._tiers: weakref.WeakSet[Promised] = weakref.WeakSet()
        # Held from looking at what is left until it is reserved
        self.lock = fork_safe(threading.RLock())

    def add(self, tier: Promised, device: torch.device) -> None:
        """Counts what is promised to `tier`, for as long as it lives.

        On another device than a CPU that is taken at once, or nobody's here.
        """
        if device.type == "cpu":
            self._tiers.add(tier)

    @property
    def untouched_bytes(self) -> int:
        """What is promised and not yet taken."""
        return sum(tier.untouched_bytes for tier in self._tiers)


reservations = Reservations()


# --- control groups -----------------------------------------------------------------------------


def _group_rooms(root: Path) -> Iterator[int]:
    """What each control group that limits this process has left."""
    mounts = list(_mounts(root))
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for kind, options, mount_root, mount in mounts:
            if number == "0" and kind == "cgroup2":
                files = _V2
            elif kind == "cgroup" and "memory" in controllers.split(",") and "memory" in options:
                files = _V1
            else:
                continue
            for group in _groups(root / mount.lstrip("/"), mount_root, path):
                yield from _room(group, files)


def _mounts(root: Path) -> Iterator[tuple[str, list[str], str, str]]:
    """Of each mount its kind, its options, which part of the file system it shows, and where."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, (kind, _, options, *_) = before.split(" "), [*after.split(" "), "", "", ""]
        if len(fields) >= 5:
            shown, at = (_ESCAPED.sub(lambda m: chr(int(m[1], 8)), x) for x in fields[3:5])
            yield kind, options.split(","), shown, at


def _groups(mount: Path, shown: str, path: str) -> Iterator[Path]:
    """The folders of a group and those around it, as far as the mount shows them."""
    try:
        inner = PurePosixPath(path).relative_to(shown).parts
    except ValueError:  # the process is outside of what is shown, such as in another namespace
        inner = ()
    if ".." in inner:
        inner = ()
    for depth in range(len(inner), -1, -1):
        yield mount.joinpath(*inner[:depth])


def _room(group: Path, files: _Files) -> Iterator[int]:
    limits = [_read_number(group / name) for name in files.limits]
    limit = min((n for n in limits if n is not None), default=_NO_LIMIT)
    usage = _read_number(group / files.usage)
    if limit < _NO_LIMIT and usage is not None:
        reclaimable = _read_table(group / "memory.stat", " ").get(files.reclaimable, 0)
        yield limit - max(0, usage - reclaimable)


# --- files of the kernel ------------------------------------------------------------------------


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # no such kernel, or no such group any more
        return []


def _read_number(path: Path) -> int | None:
    """The number in a file; None where there is none, as "max" in place of a limit."""
    (line, *_) = _lines(path) or [""]
    return int(line) if line.isdecimal() else None


def _read_table(path: Path, separator: str) -> dict[str, int]:
    """Lines of a name and a number, in bytes: "MemFree:  12 kB", "inactive_file 4096"."""
    rows: Iterable[tuple[str, str, str]] = (line.partition(separator) for line in _lines(path))
    table = {}
    for name, _, value in rows:
        number, *unit = value.split() or [""]
        if number.isdecimal():
            table[name] = int(number) * (1024 if unit == ["kB"] else 1)
    return table
