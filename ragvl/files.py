"""Files from outside opened without waiting for what is no file; files of ours written whole."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from ragvl.messages import shown

_OWNER_ONLY = 0o600
_URL = re.compile("([a-z][a-z0-9+.-]+):/|data(?=:)", re.IGNORECASE)  # one letter alone is a drive


class UnusableFileError(OSError):
    """What a path names cannot be read as a file, or is larger than such a file may be."""


def open_regular(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> BufferedReader:
    """Opens a regular file for reading.

    A pipe, a socket or a device is refused at once: reading one may wait for good. It is looked at
    before it is opened, since opening some devices does something, and again afterwards, since
    another may have taken its place.

    Args:
        path: the file; "~" is not expanded.
        max_bytes: refuse a larger file; the bytes that it says it has, a sparse file's too.

    Raises:
        FileNotFoundError: it is not there.
        UnusableFileError: it is no regular file, is larger than `max_bytes`, or has a name that no
            file can have; `strerror` says which.
        OSError: it cannot be opened.
    """
    check_regular(path, max_bytes=max_bytes)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | os.O_CLOEXEC)
    try:
        _check(path, os.fstat(descriptor), max_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> os.stat_result:
    """The status of a file that `open_regular` would open; raises what that raises."""
    try:
        status = os.stat(path)
    except ValueError as error:  # a zero byte in a name, or half a character
        reason = f"no file can have this name: {error}"
        raise UnusableFileError(errno.EINVAL, reason, os.fspath(path)) from None
    _check(path, status, max_bytes)
    return status


def expand_user(path: str | os.PathLike[str]) -> str:
    """`path` with a home folder for its "~"; as it is where nobody has one."""
    try:
        return os.path.expanduser(path)
    except ValueError:  # a zero byte in the name of a user, which opening it will refuse
        return os.fspath(path)


def url_scheme(path: str) -> str | None:
    """The scheme of what stands in a path's place and is a URL, in lower case; None of a path."""
    match = _URL.match(path)
    return None if match is None else (match[1] or "data").lower()


def check_writable_folder(folder: Path) -> None:
    """Refuses a folder that cannot be written into, or made; it is not made.

    Raises:
        NotADirectoryError: it, or what it lies in, is something else.
        PermissionError: this user may not write there.
    """
    existing = folder.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(
            f"cannot write into {shown(folder)}: {shown(existing)} is no folder"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(
            f"cannot write into {shown(folder)}: {shown(existing)} is not writable"
        )


@contextmanager
def whole_file(path: str | os.PathLike[str], *, draft: Path | None = None) -> Iterator[Path]:
    """A draft to write in the block, which takes the place of `path` when the block ends.

    What stood in `path` stays until then, and for good if the block raises; whoever reads it, also
    after a power failure, sees the old content or the new.
    For files of our own: a device or a link that a user names as output would be replaced, too.

    Args:
        path: the file; its folder is made if it is not there.
        draft: where to write, on the same disk; by default beside `path`, under a name of its own.

    Raises:
        OSError: it cannot be written.

    Examples:
        >>> with whole_file("result.json") as draft:
        ...     draft.write_text("{}")
    """
    path = Path(path)
    if draft is None:
        draft = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.draft")
    for folder in {path.parent, draft.parent}:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield draft
        follow_umask(draft)  # what writes the draft may have made it for its owner alone
        flush(draft)
        os.replace(draft, path)
    finally:
        with suppress(OSError):
            draft.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all; see `whole_file`."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def follow_umask(*paths: Path) -> None:
    """Gives files the permissions of any new file, where they are open to their owner alone.

    safetensors writes such, which another account, such as a server's, cannot read.

    Raises:
        OSError: one is not there, or is not this user's.
    """
    for path in paths:
        if stat.S_IMODE(path.stat().st_mode) == _OWNER_ONLY:
            path.chmod(_new_file_mode(path.parent))


def _new_file_mode(folder: Path) -> int:
    """By making one: to ask for the umask is to set it, for every thread."""
    probe = folder / f".{os.getpid()}-{secrets.token_hex(4)}.probe"
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        probe.unlink()


def flush(path: Path) -> None:
    """Brings a file or a folder to the disk, so that no rename after it overtakes it there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check(path: str | os.PathLike[str], status: os.stat_result, max_bytes: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnusableFileError(
            errno.EINVAL, f"it is {_kind(status.st_mode)}, not a file", str(path)
        )
    if max_bytes is not None and status.st_size > max_bytes:
        reason = f"it has {status.st_size:,} bytes, and may have {max_bytes:,}"
        raise UnusableFileError(errno.EFBIG, reason, str(path))


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")
