"""Records in a folder, which any number of processes may share.

    folder/ab/ab<62 more digits>.safetensors    a record; when it was last used is its mtime
    folder/drafts/<host>-<pid>-<random>         a record that is being written
    folder/.lock                                held by the process that evicts

A record's file appears by one atomic rename and is never written to again, so whoever opens one
sees all of it, even if it is replaced or removed meanwhile.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import NamedTuple

from ragvl.prefix_cache.host import TierStatistics, check_key
from ragvl.prefix_cache.record import DamagedRecordError, PrefixRecord, encode_record, read_record

logger = logging.getLogger(__name__)

_DRAFT = re.compile(r"(?P<host>.*)-(?P<pid>[0-9]+)-[0-9a-f]{16}")
_STALE_SECONDS = 3600

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
    A key that is not a SHA-256 in hexadecimal raises ValueError.

    Args:
        folder: made if it is not there. One that cannot be written to is read from.
        max_bytes: the budget for the files; None for no limit. Processes that share the folder
            should agree on it, and may exceed it by a twentieth each. Where files cannot be
            locked, such as on Windows, it is not kept.

    Attributes:
        folder: the absolute path.
        stats: what has happened so far; `bytes` is what the folder held when it was last counted,
            with what this process has written and removed since.

    Raises:
        OSError: `folder` is a file, or is not there and cannot be made.
    """

    def __init__(self, folder: str | Path, max_bytes: int | None) -> None:
        self.folder = Path(folder).absolute()
        self.stats = TierStatistics()
        self._max_bytes = max_bytes
        self._uncounted = 0  # bytes written since the folder was counted
        self._reported: set[Hashable] = set()
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"this folder for cached prefixes cannot be made ({error.strerror})"
            raise OSError(error.errno, reason, str(self.folder)) from error
        self._tidy()

    def get(self, key: str) -> PrefixRecord | None:
        """The record under `key`, which is then the last one used; None if there is none."""
        path = self._path(key)
        record = None
        try:
            with path.open("rb") as file:
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
        if self._max_bytes is not None and size > self._max_bytes:
            return
        try:
            replaced = self._write(path, pieces)
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

    def clear(self) -> None:
        """Removes every record."""
        for entry in self._entries():
            self._delete(entry.path)

    def keys(self) -> list[str]:
        """The keys of all records, the least recently used first."""
        return [entry.path.stem for entry in self._entries()]

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def __len__(self) -> int:
        return len(self._entries())

    def _path(self, key: str) -> Path:
        return self.folder / check_key(key)[:2] / f"{key}.safetensors"

    def _write(self, path: Path, pieces: list[memoryview]) -> int:
        """Makes `pieces` the content of `path`; returns the size of the file they replace, or 0."""
        draft = self.folder / "drafts" / f"{platform.node()}-{os.getpid()}-{secrets.token_hex(8)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.parent.mkdir(exist_ok=True)
        try:
            with draft.open("xb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                # So that the rename cannot overtake the content in a power failure
                os.fsync(file.fileno())
            replaced = _size(path)
            os.replace(draft, path)
        except BaseException:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise
        return replaced

    def _delete(self, path: Path) -> bool:
        """Removes a record's file; false if it was gone, or cannot be removed."""
        size = _size(path)
        try:
            path.unlink()
        except OSError:
            return False
        with self._lock:
            self._count(-size)
        return True

    def _count(self, size: int) -> None:
        # What another process wrote may be removed here before it was ever counted.
        self.stats.bytes = max(0, self.stats.bytes + size)

    def _entries(self) -> list[_Entry]:
        """What the folder holds now, the least recently used first."""
        entries = []
        for name in glob.iglob(f"??/{'?' * 64}.safetensors", root_dir=self.folder):
            path = self.folder / name
            with contextlib.suppress(OSError, ValueError):  # removed meanwhile; not one of ours
                if path == self._path(path.stem):
                    status = path.stat()
                    entries.append(_Entry(status.st_mtime_ns, status.st_size, path))
        return sorted(entries)

    def _tidy(self) -> None:
        """Counts the folder, evicts what is over the budget and removes what dead writers left."""
        # Without the lock, two processes would evict for the same lack of room.
        with _locked(self.folder / ".lock") as locked:
            entries = self._entries()
            held = sum(entry.size for entry in entries)
            with self._lock:
                self.stats.bytes = held
                self._uncounted = 0
            if locked:
                self._evict(entries, held)
                self._remove_stale_drafts()

    def _evict(self, entries: list[_Entry], held: int) -> None:
        if self._max_bytes is None or held <= self._max_bytes:
            return
        enough = self._max_bytes * (1 - _SLACK)
        for _, size, path in entries:
            if held <= self._max_bytes and held - size < enough:
                break
            if self._delete(path):
                held -= size
                with self._lock:
                    self.stats.evictions += 1

    def _remove_stale_drafts(self) -> None:
        for name in glob.iglob("drafts/*", root_dir=self.folder):
            draft = self.folder / name
            with contextlib.suppress(OSError):  # its writer is done with it after all
                if _is_stale(draft):
                    draft.unlink()

    def _discard(self, path: Path, damage: DamagedRecordError) -> None:
        """Removes a damaged file and says so, once where it cannot be removed."""
        with self._lock:
            self.stats.errors += 1
        if self._delete(path):
            logger.warning("%s is computed again and was removed: %s", path, damage)
        elif path.exists() and self._is_news(path):  # else another reader was sooner
            logger.warning("%s is computed again and cannot be removed: %s", path, damage)

    def _report(self, action: str, error: OSError) -> None:
        """Counts a failure of the disk, and says it once, not for each record."""
        with self._lock:
            self.stats.errors += 1
        if self._is_news((action, error.errno)):
            logger.warning(
                "%s cannot be %s (%s): what it should hold is computed again each time",
                self.folder,
                action,
                error,
            )

    def _is_news(self, subject: Hashable) -> bool:
        with self._lock:
            known = subject in self._reported
            self._reported.add(subject)
        return not known


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Holds the lock file at `path`; gives false where files cannot be locked, or not this one."""
    with contextlib.ExitStack() as stack:
        try:
            import fcntl  # not on Windows

            file = stack.enter_context(path.open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            locked = False
        else:
            locked = True
        yield locked


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
        os.kill(int(match["pid"]), 0)  # asks whether it is there; on Windows it would end it
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
