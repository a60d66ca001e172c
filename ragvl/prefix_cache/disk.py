"""Records in a folder, which any number of processes may share.

    folder/ab/ab<62 more digits>.safetensors    a record; when it was last used is its mtime
    folder/drafts/<host>-<pid>-<random>         a record that is being written

A record's file appears by one atomic rename and is never written to again, so whoever opens one
sees all of it, even if it is replaced or removed meanwhile. Nobody waits for anybody: processes
that evict at the same time remove the same files, the least recently used, and each counts what
another was sooner to remove.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import platform
import re
import secrets
import stat
import threading
import time
from collections.abc import Hashable
from pathlib import Path
from typing import NamedTuple

from ragvl.files import flush, open_regular, whole_file
from ragvl.forks import fork_safe
from ragvl.messages import reason, shown
from ragvl.prefix_cache.record import DamagedRecordError, PrefixRecord, encode_record, read_record
from ragvl.prefix_cache.statistics import TierStatistics

logger = logging.getLogger(__name__)

_DRAFT = re.compile(r"(?P<host>.*)-(?P<pid>[0-9]+)-[0-9a-f]{16}")
_KEY = re.compile("[0-9a-f]{64}")
_STALE_SECONDS = 3600
_SUBFOLDER = re.compile("[0-9a-f]{2}")
# A folder is there, or may be, and cannot be looked at now: not what a slip in its name gives
_UNREADABLE = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)

# The folder is counted again when this share of its budget has been written, for others write too;
# and as much is made room for at once, so that a folder of many small records is not counted for
# each of them.
_SLACK = 0.05


class _Entry(NamedTuple):
    """A record's file; entries sort by when they were last used."""

    mtime_ns: int
    size: int
    path: Path


class DiskTier:
    """Keeps records in a folder, least recently used first to go. Safe for threads and processes.

    A file that is damaged is a miss: it is removed, and one warning says so. A disk that is full
    or cannot be written to keeps nothing more: one warning says so, and what it holds is served.
    What cannot be read, or is no file, is a miss: one warning says so. A key that is not a SHA-256
    in hexadecimal raises ValueError.

    Args:
        folder: made if it is not there. One that cannot be written to is read from.
        max_bytes: the budget for the files; None for no limit. Processes that share the folder
            should agree on it, and may exceed it by a twentieth each.

    Attributes:
        folder: the absolute path.
        stats: what has happened so far; `bytes` is what the folder held when it was last counted,
            with what this process has written and removed since.
        max_record_bytes: what is larger is neither written nor read; None for no limit.

    Raises:
        OSError: `folder` is a file, or is not there and cannot be made.
    """

    def __init__(self, folder: str | Path, max_bytes: int | None) -> None:
        self.folder = Path(folder).absolute()
        self.stats = TierStatistics()
        self.max_record_bytes: int | None = None
        self._max_bytes = max_bytes
        self._uncounted = 0  # bytes written since the folder was counted
        self._reported: set[Hashable] = set()
        self._lock = fork_safe(threading.Lock())
        self._make_folder()
        self._tidy()

    def get(self, key: str) -> PrefixRecord | None:
        """The record under `key`, which is then the last one used; None if there is none."""
        path = self._path(key)
        record = None
        try:
            with open_regular(path, max_bytes=self.max_record_bytes) as file:
                record = read_record(key, file)
        except FileNotFoundError:
            pass
        except DamagedRecordError as damage:
            self._discard(path, damage)
        except OSError as error:
            self._report("read", error)
        with self._lock:
            if record is None:
                self.stats.misses += 1
                return None
            self.stats.hits += 1
        with contextlib.suppress(OSError):
            # The file system's clock, not ours: the same for every process that shares the folder
            os.utime(path)
        return record

    def put(self, key: str, record: PrefixRecord) -> None:
        """Keeps `record` in the place of what was under `key`, and evicts what is over budget."""
        path = self._path(key)
        pieces = encode_record(key, record)
        size = sum(piece.nbytes for piece in pieces)
        limits = [n for n in (self._max_bytes, self.max_record_bytes) if n is not None]
        if size > min(limits, default=size):
            return
        try:
            replaced = _size(path)
            with whole_file(path, draft=self._draft_path()) as draft:
                _write(draft, pieces)
        except OSError as error:
            self._report("written to", error)
            return
        with self._lock:
            self._count(size - replaced)
            self._uncounted += size
            due = self._max_bytes is not None and (
                self.stats.bytes > self._max_bytes or self._uncounted > self._max_bytes * _SLACK
            )
        if due:
            self._tidy()

    def remove(self, key: str) -> None:
        """Removes the record under `key`, if there is one."""
        self._delete(self._path(key))

    def reading_seconds(self, key: str, record: PrefixRecord) -> float:
        """How long it takes to read `record` from this folder; infinite where that fails.

        Of a file of its own, which nobody else can replace by another record meanwhile.
        """
        draft = self._draft_path()
        try:
            draft.parent.mkdir(parents=True, exist_ok=True)
            _write(draft, encode_record(key, record))
            flush(draft)
            start = time.perf_counter()
            with open_regular(draft) as file:
                read_record(key, file)
            return time.perf_counter() - start
        except (OSError, DamagedRecordError) as error:
            self._report("measured", error)
            return math.inf
        finally:
            with contextlib.suppress(OSError):
                draft.unlink()

    def __contains__(self, key: str) -> bool:
        path = self._path(key)
        try:
            return stat.S_ISREG(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            self._report("read", error)
            return False

    def _path(self, key: str) -> Path:
        if not isinstance(key, str) or not _KEY.fullmatch(key):  # it must not leave the folder
            raise ValueError(f"a key is 64 lowercase hexadecimal digits, not {key!r}")
        return self.folder / key[:2] / f"{key}.safetensors"

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except ValueError as error:  # a zero byte in its name, or half a character
            why = f"no folder for cached prefixes can have this name: {reason(error)}"
            raise OSError(errno.EINVAL, why, str(self.folder)) from None
        except OSError as error:
            try:
                known: int | None = self.folder.stat().st_mode
            except OSError as unknown:
                known = None
                if unknown.errno in _UNREADABLE:
                    self._report("read", unknown)
                    return
            if known is None or not stat.S_ISDIR(known):
                why = f"this folder for cached prefixes cannot be made ({error.strerror})"
                raise OSError(error.errno, why, str(self.folder)) from error

    def _draft_path(self) -> Path:
        """A new name, by which other processes tell whether its writer is alive."""
        return self.folder / "drafts" / f"{platform.node()}-{os.getpid()}-{secrets.token_hex(8)}"

    def _delete(self, path: Path) -> None:
        """Removes a record's file, if it is there and can be removed."""
        size = _size(path)
        with contextlib.suppress(OSError):
            path.unlink()
            with self._lock:
                self._count(-size)

    def _count(self, size: int) -> None:
        # What another process wrote may be removed here before it was ever counted.
        self.stats.bytes = max(0, self.stats.bytes + size)

    def _entries(self) -> list[_Entry]:
        """What the folder holds now, the least recently used first."""
        entries = []
        for name in self._names(self.folder):
            if not _SUBFOLDER.fullmatch(name):
                continue
            for file in self._names(self.folder / name):
                path = self.folder / name / file
                with contextlib.suppress(OSError, ValueError):  # removed meanwhile; none of ours
                    if path == self._path(path.stem):
                        status = path.stat()
                        if stat.S_ISREG(status.st_mode):
                            entries.append(_Entry(status.st_mtime_ns, status.st_size, path))
        return sorted(entries)

    def _names(self, folder: Path) -> list[str]:
        """What a folder holds; nothing where it is none, or cannot be read."""
        try:
            return os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._report("read", error)
            return []

    def _tidy(self) -> None:
        """Counts the folder, evicts what is over the budget and removes what dead writers left."""
        entries = self._entries()
        held = sum(entry.size for entry in entries)
        with self._lock:
            self.stats.bytes = held
            self._uncounted = 0
        self._evict(entries, held)
        self._remove_stale_drafts()

    def _evict(self, entries: list[_Entry], held: int) -> None:
        if self._max_bytes is None or held <= self._max_bytes:
            return
        enough = self._max_bytes * (1 - _SLACK)
        for mtime_ns, size, path in entries:
            if held <= self._max_bytes and held - size < enough:
                break
            own = True
            try:
                if path.stat().st_mtime_ns != mtime_ns:  # used since it was listed
                    continue
                path.unlink()
            except FileNotFoundError:  # another process evicts as well
                own = False
            except OSError:
                continue
            held -= size
            with self._lock:
                self._count(-size)
                self.stats.evictions += own

    def _remove_stale_drafts(self) -> None:
        for name in self._names(self.folder / "drafts"):
            draft = self.folder / "drafts" / name
            with contextlib.suppress(OSError):  # its writer is done with it after all
                if _is_stale(draft):
                    draft.unlink()

    def _discard(self, path: Path, damage: DamagedRecordError) -> None:
        """Removes a damaged file and says so, once where it cannot be removed."""
        with self._lock:
            self.stats.errors += 1
        name = shown(path)
        try:
            size = _size(path)
            path.unlink()
        except FileNotFoundError:  # another reader was sooner
            return
        except OSError:
            if self._is_news(path):
                logger.warning("%s is computed again and cannot be removed: %s", name, damage)
            return
        with self._lock:
            self._count(-size)
        logger.warning("%s is computed again and was removed: %s", name, damage)

    def _report(self, action: str, error: OSError | DamagedRecordError) -> None:
        """Counts a failure of the disk, and says it once, not for each record."""
        with self._lock:
            self.stats.errors += 1
        if self._is_news((action, getattr(error, "errno", None))):
            logger.warning(
                "%s cannot be %s (%s): what it should hold is computed again each time",
                shown(self.folder),
                action,
                reason(error),
            )

    def _is_news(self, subject: Hashable) -> bool:
        with self._lock:
            known = subject in self._reported
            self._reported.add(subject)
        return not known


def _write(path: Path, pieces: list[memoryview]) -> None:
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it is not there, or no longer
        return 0


def _is_stale(draft: Path) -> bool:
    """Whether nobody is writing to `draft` any more."""
    if time.time() - draft.stat().st_mtime > _STALE_SECONDS:
        return True
    match = _DRAFT.fullmatch(draft.name)
    if match is None or match["host"] != platform.node():
        return False
    try:
        os.kill(int(match["pid"]), 0)  # fails where there is none; on Windows it would end it
    except (ProcessLookupError, OverflowError):  # gone; or a number that no process can have
        return True
    except OSError:
        pass
    return False
