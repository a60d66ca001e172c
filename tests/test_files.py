from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ragvl.files import (
    UnusableFileError,
    check_regular,
    follow_umask,
    open_regular,
    whole_file,
    write_text,
)


def test_a_regular_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"seven!!")
    with open_regular(path, max_bytes=7) as file:
        assert file.read() == b"seven!!"
    assert check_regular(str(path)).st_size == 7


def test_a_link_is_the_file_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with open_regular(tmp_path / "b") as file:
        assert file.read() == b"x"


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path, kind in (
            (pipe, "a pipe"),
            (tmp_path / "socket", "a socket"),
            (Path("/dev/zero"), "a device"),
            (tmp_path, "a folder"),
        ):
            with pytest.raises(UnusableFileError, match=f"it is {kind}, not a file"):
                open_regular(path)


def test_a_large_file_is_refused_by_the_size_that_it_says(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(200 * 10**9)
    with pytest.raises(UnusableFileError, match="200,000,000,000 bytes, and may have 1,000"):
        open_regular(path, max_bytes=1000)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(UnusableFileError, match="no file can have this name"):
        open_regular(name)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    write_text(path, "first ä")
    with whole_file(path) as draft:
        draft.write_text("second")
        assert path.read_text(encoding="utf-8") == "first ä"
    assert path.read_text() == "second"
    with pytest.raises(KeyboardInterrupt), whole_file(path) as draft:
        draft.write_text("thi")
        raise KeyboardInterrupt
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path], "no draft stays"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_file_for_its_owner_alone_gets_the_permissions_of_any_other(
    umask: int, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        (tmp_path / "plain").touch()
        for name in ("narrow", "chosen"):
            (tmp_path / name).touch()
        (tmp_path / "narrow").chmod(0o600)
        (tmp_path / "chosen").chmod(0o640)
        follow_umask(tmp_path / "narrow", tmp_path / "chosen")
        with whole_file(tmp_path / "whole") as draft:
            draft.touch(0o600)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    usual = 0o666 & ~umask
    assert modes == {"plain": usual, "narrow": usual, "whole": usual, "chosen": 0o640}
