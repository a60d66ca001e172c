from __future__ import annotations

import contextlib
import errno
import logging
import os
import platform
import random
import resource
import shutil
import signal
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
from prefix_cache.tools import Child, kept_keys, key, make_record, same

from ragvl.prefix_cache import TierStatistics
from ragvl.prefix_cache.disk import DiskTier
from ragvl.prefix_cache.record import encode_record

FILE_BYTES = sum(piece.nbytes for piece in encode_record(key(0), make_record()))


@pytest.fixture(autouse=True)
def _warnings(caplog):
    caplog.set_level(logging.WARNING)


@pytest.fixture
def tier(tmp_path) -> DiskTier:
    return DiskTier(tmp_path / "cache", None)


def path_of(tier: DiskTier, number: int) -> Path:
    return tier.folder / key(number)[:2] / f"{key(number)}.safetensors"


def drafts(tier: DiskTier) -> list[Path]:
    return list((tier.folder / "drafts").iterdir())


def tick() -> None:
    """Longer than the steps of a file system's clock, so that one use is later than another."""
    time.sleep(0.02)


class TestUse:
    def test_get_and_put(self, tier):
        record = make_record(1)
        assert tier.get(key(1)) is None
        assert key(1) not in tier
        tier.put(key(1), record)
        assert key(1) in tier
        assert same(tier.get(key(1)), record)
        assert kept_keys(tier) == [key(1)]
        assert tier.stats == TierStatistics(hits=1, misses=1, bytes=FILE_BYTES)
        assert path_of(tier, 1).stat().st_size == FILE_BYTES
        assert drafts(tier) == []

    def test_another_process_finds_it(self, tier):
        Child(lambda: tier.put(key(1), make_record(1))).result()
        assert same(tier.get(key(1)), make_record(1))
        again = DiskTier(tier.folder, None)
        assert kept_keys(again) == [key(1)]
        assert again.stats.bytes == FILE_BYTES

    def test_any_safetensors_reader_can_read_it(self, tier):
        record = make_record(1)
        tier.put(key(1), record)
        tensors = safetensors.torch.load_file(path_of(tier, 1))
        assert all(torch.equal(tensors[name], x) for name, x in record.tensors.items())

    def test_a_record_in_the_place_of_another(self, tier):
        for nbytes in (1000, 5000, 400):
            tier.put(key(0), make_record(0, nbytes=nbytes))
            assert same(tier.get(key(0)), make_record(0, nbytes=nbytes))
            assert tier.stats.bytes == path_of(tier, 0).stat().st_size

    def test_remove(self, tier):
        for i in range(3):
            tier.put(key(i), make_record(i))
        tier.remove(key(1))
        tier.remove(key(1))
        assert sorted(kept_keys(tier)) == [key(0), key(2)]
        assert tier.stats.bytes == 2 * FILE_BYTES
        assert tier.stats.evictions == 0

    @pytest.mark.parametrize(
        "wrong", ["", "ab", "A" * 64, "0" * 63 + "\n", "../" * 21 + "x", "/" + "0" * 63, None, 7]
    )
    def test_keys_cannot_leave_the_folder(self, tier, wrong):
        for use in (
            tier.get,
            tier.remove,
            tier.__contains__,
            lambda key: tier.put(key, make_record()),
        ):
            with pytest.raises(ValueError, match="64 lowercase hexadecimal digits"):
                use(wrong)
        assert list(tier.folder.rglob("*.safetensors")) == []

    def test_relative_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        tier = DiskTier("cache", None)
        monkeypatch.chdir("/")
        tier.put(key(0), make_record())
        assert (tmp_path / "cache/00").is_dir()

    def test_other_files_are_left_alone(self, tier):
        tier.put(key(0), make_record())
        others = ["note.txt", "00/note.txt", "00/x.safetensors", f"ab/{key(0)}.safetensors"]
        for name in others:
            (tier.folder / name).parent.mkdir(exist_ok=True)
            (tier.folder / name).write_bytes(bytes(9999))
        again = DiskTier(tier.folder, FILE_BYTES)
        assert kept_keys(again) == [key(0)]
        again.remove(key(0))
        assert all((tier.folder / name).is_file() for name in others)


class TestBudget:
    def test_the_least_recently_used_goes_first(self, tmp_path):
        tier = DiskTier(tmp_path, 3 * FILE_BYTES)
        for i in range(3):
            tier.put(key(i), make_record(i))
            tick()
        tier.get(key(0))
        tick()
        tier.put(key(3), make_record(3))
        assert kept_keys(tier) == [key(2), key(0), key(3)]
        assert tier.stats == TierStatistics(hits=1, bytes=3 * FILE_BYTES, evictions=1)

    def test_use_by_another_process_counts(self, tmp_path):
        tier = DiskTier(tmp_path, 2 * FILE_BYTES)
        for i in range(2):
            tier.put(key(i), make_record(i))
            tick()
        Child(lambda: tier.get(key(0)) and None).result()
        tick()
        tier.put(key(2), make_record(2))
        assert kept_keys(tier) == [key(0), key(2)]

    def test_a_record_larger_than_the_budget_is_not_kept(self, tmp_path):
        tier = DiskTier(tmp_path, FILE_BYTES)
        tier.put(key(0), make_record(0))
        tier.put(key(1), make_record(1, nbytes=1004))
        assert kept_keys(tier) == [key(0)]
        assert tier.stats.evictions == 0

    def test_a_smaller_budget_for_a_folder_that_is_there(self, tmp_path):
        large = DiskTier(tmp_path, None)
        for i in range(6):
            large.put(key(i), make_record(i))
            tick()
        small = DiskTier(tmp_path, 2 * FILE_BYTES)
        assert kept_keys(small) == [key(4), key(5)]
        assert small.stats == TierStatistics(bytes=2 * FILE_BYTES, evictions=4)

    def test_what_others_write_is_noticed(self, tmp_path):
        tiers = [DiskTier(tmp_path, 10 * FILE_BYTES) for _ in range(3)]
        for i in range(30):
            tiers[i % 3].put(key(i), make_record(i))
            assert len(kept_keys(tiers[0])) <= 10

    def test_the_folder_is_not_counted_at_each_put(self, tmp_path, monkeypatch):
        tier = DiskTier(tmp_path, 200 * FILE_BYTES)
        counts = []
        entries = tier._entries
        monkeypatch.setattr(tier, "_entries", lambda: counts.append(1) or entries())
        for i in range(300):
            tier.put(key(i), make_record(i))
        assert len(counts) <= 300 / 10
        assert 190 <= len(entries()) <= 200

    @pytest.mark.parametrize("kind", ["folder", "pipe", "held by a stopped process"])
    def test_nobody_waits_for_a_lock(self, tmp_path, kind):
        """As earlier versions did, for good where its holder was stopped."""
        lock, holder = tmp_path / ".lock", None
        if kind == "folder":
            lock.mkdir()
        elif kind == "pipe":
            os.mkfifo(lock)
        else:
            holder = Child(lambda: hold_lock(lock))
            while not lock.exists():
                time.sleep(0.001)
            os.kill(holder.process.pid, signal.SIGSTOP)
        try:
            tier = DiskTier(tmp_path, 2 * FILE_BYTES)
            for i in range(4):
                tier.put(key(i), make_record(i))
                tick()
            assert kept_keys(tier) == [key(2), key(3)]
        finally:
            if holder is not None:
                holder.process.kill()

    def test_what_another_evicts_is_not_evicted_for_again(self, tmp_path, monkeypatch):
        """Two processes that find the folder too full at once remove what one would."""
        tier = DiskTier(tmp_path, None)
        for i in range(6):
            tier.put(key(i), make_record(i))
            tick()
        entries = DiskTier._entries

        def late(self: DiskTier) -> list:
            result = entries(self)
            monkeypatch.setattr(DiskTier, "_entries", entries)
            DiskTier(tmp_path, 3 * FILE_BYTES)  # another process
            return result

        monkeypatch.setattr(DiskTier, "_entries", late)
        second = DiskTier(tmp_path, 3 * FILE_BYTES)
        assert kept_keys(second) == [key(3), key(4), key(5)]
        assert second.stats == TierStatistics(bytes=3 * FILE_BYTES)

    def test_what_was_used_meanwhile_stays(self, tmp_path, monkeypatch):
        tier = DiskTier(tmp_path, None)
        for i in range(3):
            tier.put(key(i), make_record(i))
            tick()
        entries = DiskTier._entries

        def late(self: DiskTier) -> list:
            result = entries(self)
            assert tier.get(key(0)) is not None
            return result

        with monkeypatch.context() as patch:
            patch.setattr(DiskTier, "_entries", late)
            DiskTier(tmp_path, 2 * FILE_BYTES)
        assert sorted(kept_keys(tier)) == [key(0), key(2)]


def hold_lock(path: Path) -> None:
    import fcntl

    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        time.sleep(600)


class TestDamage:
    def check(self, tier, content: bytes, caplog) -> bool:
        """Puts `content` in a record's place; whether that was noticed."""
        path = path_of(tier, 0)
        path.write_bytes(content)
        caplog.clear()
        result = tier.get(key(0))
        if result is not None:
            assert same(result, make_record(nbytes=16))
            assert caplog.messages == []
            return False
        (line,) = caplog.messages
        assert str(path) in line
        assert "is computed again and was removed: it" in line
        assert not path.exists()
        return True

    @pytest.fixture
    def content(self, tier) -> bytes:
        tier.put(key(0), make_record(nbytes=16))
        return path_of(tier, 0).read_bytes()

    def test_every_length(self, tier, content, caplog):
        for length in range(len(content)):
            assert self.check(tier, content[:length], caplog)
        assert not self.check(tier, content, caplog)
        assert tier.stats.errors == tier.stats.misses == len(content)

    @pytest.mark.slow
    def test_every_bit(self, tier, content, caplog):
        for place in range(len(content)):
            for bit in range(8):
                flipped = bytearray(content)
                flipped[place] ^= 1 << bit
                assert self.check(tier, bytes(flipped), caplog)

    def test_random_damage(self, tier, content, caplog):
        choose = random.Random(0)
        for _ in range(1000):
            start, length = choose.randrange(len(content)), choose.randrange(1, 64)
            other = content[:start] + choose.randbytes(length) + content[start + length :]
            self.check(tier, other, caplog)

    def test_a_renamed_file(self, tier, content, caplog):
        path_of(tier, 1).write_bytes(content)
        assert tier.get(key(1)) is None
        assert "another key" in caplog.text
        assert same(tier.get(key(0)), make_record(nbytes=16))

    def test_a_format_from_the_future(self, tier, content, caplog):
        assert self.check(tier, content.replace(b'"format":"1"', b'"format":"2"'), caplog)
        assert "format '2' and this ragvl reads '1'" in caplog.text

    def test_what_was_removed_is_no_longer_counted(self, tier, content):
        path_of(tier, 0).write_bytes(bytes(len(content)))
        tier.get(key(0))
        assert tier.stats == TierStatistics(misses=1, errors=1)

    def test_it_is_said_again_of_a_new_file(self, tier, content, caplog):
        for _ in range(2):
            assert self.check(tier, b"x", caplog)
            tier.put(key(0), make_record(nbytes=16))
            assert not self.check(tier, content, caplog)


def small_disk(folder: Path, size: str) -> bool:
    """Mounts a new file system at `folder`, for this process only; false where that is forbidden.

    A user namespace of its own lets any user do so, on systems that allow those.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    new_namespaces = 0x10000000 | 0x00020000  # CLONE_NEWUSER | CLONE_NEWNS
    if not hasattr(libc, "unshare") or libc.unshare(new_namespaces):
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError:
        return False
    folder.mkdir()
    return libc.mount(b"none", bytes(folder), b"tmpfs", 0, f"size={size}".encode()) == 0


def make_read_only(folder: Path) -> None:
    import ctypes

    remount = 32 | 1  # MS_REMOUNT | MS_RDONLY
    assert ctypes.CDLL(None).mount(b"none", bytes(folder), b"tmpfs", remount, None) == 0


NO_MOUNTS = "this system lets no process mount file systems"


class TestFailingDisk:
    """What cannot be had in this process is had in a child, which the failure ends with."""

    def test_full(self, tmp_path, caplog):
        def work() -> bool:
            if not small_disk(tmp_path / "small", "1m"):
                return False
            tier = DiskTier(tmp_path / "small", None)
            for i in range(6):
                tier.put(key(i), make_record(i, nbytes=300_000))
            (line,) = caplog.messages
            assert str(tier.folder) in line
            assert "No space left on device" in line
            assert drafts(tier) == []
            assert sorted(kept_keys(tier)) == [key(0), key(1), key(2)]
            for i in range(3):
                assert same(tier.get(key(i)), make_record(i, nbytes=300_000))
            assert tier.stats.errors == 3
            tier.remove(key(0))
            tier.put(key(5), make_record(5, nbytes=300_000))
            assert key(5) in tier
            return True

        if not Child(work).result():
            pytest.skip(NO_MOUNTS)

    def test_a_limit_in_the_middle_of_a_file(self, tier, caplog):
        """Fails like a full disk, on every system."""

        def work() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
            for i in range(3):
                tier.put(key(i), make_record(i, nbytes=100_000))
                tier.put(key(10 + i), make_record(10 + i))
            (line,) = caplog.messages
            assert os.strerror(errno.EFBIG) in line
            assert drafts(tier) == []
            assert sorted(kept_keys(tier)) == [key(10), key(11), key(12)]
            assert tier.stats.errors == 3

        Child(work).result()

    def test_read_only_file_system(self, tmp_path, caplog):
        def work() -> bool:
            if not small_disk(tmp_path / "small", "1m"):
                return False
            tier = DiskTier(tmp_path / "small", None)
            tier.put(key(0), make_record(0))
            path_of(tier, 1).write_bytes(b"damaged")
            make_read_only(tier.folder)
            self.check_read_only(DiskTier(tier.folder, FILE_BYTES), caplog, errno.EROFS)
            return True

        if not Child(work).result():
            pytest.skip(NO_MOUNTS)

    def test_read_only_by_its_permissions(self, caplog):
        folder = Path(tempfile.mkdtemp())  # pytest's own are closed to other users

        def work() -> None:
            tier = DiskTier(folder, None)
            tier.put(key(0), make_record(0))
            path_of(tier, 1).write_bytes(b"damaged")
            for path in (folder, *folder.rglob("*")):
                path.chmod(0o555 if path.is_dir() else 0o444)
            if os.getuid() == 0:  # to whom permissions do not apply
                os.setuid(65534)
            self.check_read_only(DiskTier(folder, FILE_BYTES), caplog, errno.EACCES)

        try:
            Child(work).result()
        finally:
            for path in (folder, *folder.rglob("*")):
                path.chmod(0o755)
            shutil.rmtree(folder)

    def check_read_only(self, tier: DiskTier, caplog, error: int) -> None:
        """Key 0 is there and key 1 is damaged, which is over the budget: nothing can be evicted."""
        assert caplog.messages == []
        assert same(tier.get(key(0)), make_record(0))
        assert tier.get(key(1)) is None
        assert tier.get(key(1)) is None
        for i in (0, 1, 2, 300):
            tier.put(key(i), make_record(i))
        tier.remove(key(0))
        assert same(tier.get(key(0)), make_record(0))
        damage, failure = caplog.messages
        assert "cannot be removed: it is cut short" in damage
        assert os.strerror(error) in failure
        assert tier.stats.errors == 2 + 4

    def test_a_file_in_the_place_of_a_subfolder(self, tier, caplog):
        (tier.folder / "00").write_text("")
        for i in range(3):
            tier.put(key(i), make_record(i))
            assert tier.get(key(i)) is None
        other = "ab" * 32
        tier.put(other, make_record())
        assert kept_keys(tier) == [other]
        assert len(caplog.messages) == 2  # one for reading, one for writing
        assert tier.stats.errors == 6

    def test_a_folder_in_the_place_of_a_file(self, tier, caplog):
        path_of(tier, 0).mkdir(parents=True)
        for _ in range(2):
            tier.put(key(0), make_record())
            assert tier.get(key(0)) is None
        assert drafts(tier) == []
        assert len(caplog.messages) == 2

    @pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
    def test_what_is_no_file_in_the_place_of_one(self, tier, caplog, kind):
        """Opening a pipe would wait for good for somebody to write to it."""
        path = path_of(tier, 0)
        path.parent.mkdir()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as end:
                end.bind(path.name)
        else:
            path.symlink_to("/dev/zero")
        for _ in range(2):
            assert key(0) not in tier
            assert tier.get(key(0)) is None
            assert kept_keys(tier) == []
        assert len(caplog.messages) == 1
        assert f"it is a {kind}, not a file" in caplog.text
        tier.put(key(0), make_record(0))
        assert same(tier.get(key(0)), make_record(0))

    def test_a_file_larger_than_any_record(self, tier, caplog):
        tier.max_record_bytes = 1 << 20
        tier.put(key(1), make_record(1, nbytes=2 << 20))
        assert key(1) not in tier
        path_of(tier, 0).parent.mkdir(exist_ok=True)
        with path_of(tier, 0).open("wb") as file:
            file.truncate(200 << 30)
        assert tier.get(key(0)) is None
        assert "it has 214,748,364,800 bytes, and may have 1,048,576" in caplog.text

    @pytest.mark.parametrize("closed", ["folder", "subfolder", "above"])
    def test_a_folder_that_cannot_be_read(self, caplog, closed):
        above = Path(tempfile.mkdtemp())  # pytest's own are closed to other users
        above.chmod(0o755)

        def work() -> None:
            if os.getuid() == 0:  # to whom permissions do not apply
                os.chown(above, 65534, 65534)
                os.setuid(65534)
            folder = above / "cache"
            tier = DiskTier(folder, 10 * FILE_BYTES)
            tier.put(key(0), make_record(0))
            {"folder": folder, "subfolder": folder / "00", "above": above}[closed].chmod(0o000)
            for one in (tier, DiskTier(folder, 10 * FILE_BYTES)):
                caplog.clear()
                for _ in range(2):
                    assert one.get(key(0)) is None
                    assert key(0) not in one
                    assert kept_keys(one) == []
                    assert one.reading_seconds(key(1), make_record(1)) > 0
                    one.put(key(1), make_record(1))
                    one.remove(key(0))
                assert all(str(folder) in line for line in caplog.messages)
                assert len(caplog.messages) <= 3  # for reading, writing, measuring

        try:
            Child(work).result()
        finally:
            for path in (above, above / "cache", above / "cache/00"):
                path.chmod(0o755)
            shutil.rmtree(above)

    @pytest.mark.parametrize("error", [errno.ESTALE, errno.EIO])
    def test_a_disk_that_fails_at_every_step(self, tier, caplog, monkeypatch, error):
        tier.put(key(0), make_record(0))

        def fail(*_: object, **__: object) -> None:
            raise OSError(error, os.strerror(error), "somewhere")

        for module, name in ((os, "stat"), (os, "listdir"), (os, "mkdir"), (os, "unlink")):
            monkeypatch.setattr(module, name, fail)
        for _ in range(2):
            again = DiskTier(tier.folder, FILE_BYTES)
            assert again.get(key(0)) is None
            assert key(0) not in again
            assert kept_keys(again) == []
            again.put(key(1), make_record(1))
        assert os.strerror(error) in caplog.text

    def test_the_folder_is_deleted_meanwhile(self, tier, caplog):
        tier.put(key(0), make_record(0))
        shutil.rmtree(tier.folder)
        assert tier.get(key(0)) is None
        assert kept_keys(tier) == []
        tier.put(key(1), make_record(1))
        assert kept_keys(tier) == [key(1)]
        assert caplog.messages == []

    def test_the_folder_becomes_a_file_meanwhile(self, tier, caplog):
        shutil.rmtree(tier.folder)
        tier.folder.write_text("")
        for i in range(3):
            tier.put(key(i), make_record(i))
        assert len(caplog.messages) == 1
        assert tier.folder.read_text() == ""

    @pytest.mark.parametrize("name", ["file", "file/below", "x" * 300])
    def test_no_folder_can_be_made(self, tmp_path, name):
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="folder for cached prefixes cannot be made") as error:
            DiskTier(tmp_path / name, None)
        assert error.value.filename == str(tmp_path / name)


def stopped_while_it_writes(pid: int, tier: DiskTier, *, num_records: int) -> bool:
    """Stops a process that has written so many, and writes one; else lets it go on."""
    os.kill(pid, signal.SIGSTOP)
    seen = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert seen is not None and seen.si_code == os.CLD_STOPPED, "it ended by itself"
    if drafts(tier) and len(list(tier.folder.glob("??/*.safetensors"))) >= num_records:
        return True
    os.kill(pid, signal.SIGCONT)
    time.sleep(0.0005)
    return False


class TestDrafts:
    @pytest.mark.slow
    def test_a_killed_writer(self, tier, caplog):
        """Kills a process 20 times while it writes; every record is whole, and no draft stays."""
        numbers = range(8)

        def write_forever() -> None:
            tier = DiskTier(cache, None)
            while True:
                for i in numbers:
                    tier.put(key(i), make_record(i, nbytes=400_000))

        cache, choose, left = tier.folder, random.Random(0), 0
        (cache / "drafts").mkdir()
        for attempt in range(20):
            writer = Child(write_forever).process
            time.sleep(choose.uniform(0, 0.03))
            while not stopped_while_it_writes(writer.pid, tier, num_records=attempt // 4):
                pass
            writer.kill()
            writer.join()
            left += len(drafts(tier))
            DiskTier(cache, None)
            assert drafts(tier) == []
        assert left == 20  # each was killed while it wrote
        expected = {i: make_record(i, nbytes=400_000) for i in numbers}
        result = {i: record for i in numbers if (record := tier.get(key(i))) is not None}
        assert result
        assert all(same(record, expected[i]) for i, record in result.items())
        assert caplog.messages == []

    def test_which_drafts_are_removed(self, tier):
        folder, host = tier.folder / "drafts", platform.node()
        folder.mkdir()
        gone = Child(lambda: None)
        gone.result()
        names = {
            f"{host}-{os.getpid()}-{'0' * 16}": True,
            f"{host}-{gone.process.pid}-{'0' * 16}": False,
            f"elsewhere-{gone.process.pid}-{'0' * 16}": True,
            "something else": True,
            f"{host}-{'9' * 20}-{'0' * 16}": False,  # no process can have this number
        }
        for name in names:
            (folder / name).write_text("")
        DiskTier(tier.folder, None)
        assert {path.name for path in drafts(tier)} == {
            name for name, stays in names.items() if stays
        }
        for path in drafts(tier):
            os.utime(path, (time.time() - 3700,) * 2)
        DiskTier(tier.folder, None)
        assert drafts(tier) == []

    def test_drafts_are_no_records(self, tier):
        (tier.folder / "drafts").mkdir()
        (tier.folder / "drafts" / f"{key(0)}.safetensors").write_bytes(bytes(100))
        assert kept_keys(DiskTier(tier.folder, None)) == []


def hammer(tier: DiskTier, seed: int, actions: int) -> dict[str, int]:
    """Uses overlapping keys at random and checks every record; counts what was done."""
    choose, done = random.Random(seed), dict.fromkeys(["hit", "miss", "put", "remove"], 0)
    records = {(i, n): make_record(i, nbytes=n) for i in range(12) for n in (8000, 12_000, 16_000)}
    for _ in range(actions):
        i = choose.randrange(12)
        action = choose.choices(["get", "put", "remove"], [6, 3, 1])[0]
        if action == "get":
            result = tier.get(key(i))
            assert result is None or same(result, records[i, int(result.info["größe"])])
            action = "miss" if result is None else "hit"
        elif action == "put":
            tier.put(key(i), records[i, choose.choice([8000, 12_000, 16_000])])
        else:
            tier.remove(key(i))
        done[action] += 1
    return done


class TestAtOnce:
    BUDGET = 60_000

    @pytest.mark.slow
    def test_processes(self, tmp_path, caplog):
        def work(seed: int) -> dict[str, int]:
            done = hammer(DiskTier(tmp_path, self.BUDGET), seed, actions=1000)
            assert caplog.messages == []
            return done

        children = [Child(lambda seed=seed: work(seed)) for seed in range(4)]
        for child in children:
            assert min(child.result().values()) > 0
        held = [path.stat().st_size for path in tmp_path.rglob("*.safetensors")]
        assert 0 < sum(held) <= self.BUDGET
        assert list((tmp_path / "drafts").iterdir()) == []

    @pytest.mark.slow
    def test_threads(self, tmp_path, caplog):
        tier = DiskTier(tmp_path, self.BUDGET)
        with ThreadPoolExecutor(6) as pool:
            done = list(pool.map(lambda seed: hammer(tier, seed, actions=500), range(6)))
        assert caplog.messages == []
        assert tier.stats.hits == sum(counts["hit"] for counts in done)
        assert tier.stats.misses == sum(counts["miss"] for counts in done)
        assert tier.stats.evictions > 0
        held = [path.stat().st_size for path in tmp_path.rglob("*.safetensors")]
        assert 0 < sum(held) <= self.BUDGET
