"""What is available is the least that anything around the process leaves it."""

from __future__ import annotations

import resource
from pathlib import Path
from weakref import WeakSet

import pytest
import torch
from prefix_cache.test_device import make_tier, put
from prefix_cache.tools import Child

from ragvl.prefix_cache import available_bytes
from ragvl.prefix_cache.memory import reservations

GIB = 1 << 30
UNIFIED = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
MEMORY = "33 24 0:29 {root} /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory"
CPU = "34 24 0:30 {root} /sys/fs/cgroup/cpu rw shared:10 - cgroup cgroup rw,cpu,cpuacct"


class Machine:
    """A made-up tree of the kernel's files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", f"MemTotal: {64 << 20} kB\nMemAvailable: {32 << 20} kB\n")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def process(self, groups: str, *mounts: str) -> None:
        self.write("proc/self/cgroup", groups + "\n")
        self.write("proc/self/mountinfo", "22 1 0:20 / /proc rw - proc proc rw\n")
        self.write("proc/self/mountinfo", "\n".join([*mounts, "garbage", "1 - "]))

    def v2(
        self, group: str, limit: object, usage: int, file: int = 0, high: object = "max"
    ) -> None:
        folder = f"sys/fs/cgroup/{group}"
        self.write(f"{folder}/memory.max", f"{limit}\n")
        self.write(f"{folder}/memory.high", f"{high}\n")
        self.write(f"{folder}/memory.current", f"{usage}\n")
        self.write(f"{folder}/memory.stat", f"anon 1\nactive_file 7\ninactive_file {file}\n")

    def v1(self, group: str, limit: int, usage: int, file: int = 0) -> None:
        folder = f"sys/fs/cgroup/memory/{group}"
        self.write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{folder}/memory.usage_in_bytes", f"{usage}\n")
        self.write(f"{folder}/memory.stat", f"inactive_file 3\ntotal_inactive_file {file}\n")

    def available(self) -> int:
        return available_bytes(self.root)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """One on which no cache of another test has reserved anything."""
    monkeypatch.setattr(reservations, "_tiers", WeakSet())
    return Machine(tmp_path)


def test_a_machine_without_groups(machine: Machine) -> None:
    assert machine.available() == 32 * GIB
    machine.write("proc/meminfo", "MemTotal: 1024 kB\n")
    assert machine.available() == 1 << 20


def test_a_container_of_version_2(machine: Machine) -> None:
    """Its own group is all that it sees."""
    machine.process("0::/", UNIFIED.format(root="/"))
    machine.v2("", 2 * GIB, GIB)
    assert machine.available() == GIB
    machine.v2("", 2 * GIB, GIB, file=GIB // 2)  # file pages can be reclaimed
    assert machine.available() == GIB + GIB // 2
    machine.v2("", "max", GIB)
    assert machine.available() == 32 * GIB
    machine.v2("", "max", GIB, high=GIB + 5)
    assert machine.available() == 5
    machine.v2("", GIB, 2 * GIB)
    assert machine.available() == 0


@pytest.mark.parametrize("tightest", ["user.slice", "user.slice/app", "user.slice/app/job"])
def test_every_group_around_the_process_counts(machine: Machine, tightest: str) -> None:
    machine.process("0::/user.slice/app/job", UNIFIED.format(root="/"))
    for group in ("user.slice", "user.slice/app", "user.slice/app/job", "user.slice/other"):
        machine.v2(group, 8 * GIB, GIB)
    machine.v2("user.slice/other", 0, 0)  # not around it
    assert machine.available() == 7 * GIB
    machine.v2(tightest, 3 * GIB, GIB)
    assert machine.available() == 2 * GIB


def test_a_container_of_version_1(machine: Machine) -> None:
    """It is named from the machine's root, and sees its own part alone."""
    groups = "12:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/docker/abc"
    machine.process(groups, MEMORY.format(root="/docker/abc"), CPU.format(root="/docker/abc"))
    machine.v1("", 2 * GIB, GIB, file=GIB // 4)
    assert machine.available() == GIB + GIB // 4
    machine.v1("", 0x7FFFFFFFFFFFF000, GIB)  # no limit
    assert machine.available() == 32 * GIB


def test_both_versions_at_once(machine: Machine) -> None:
    hybrid = UNIFIED.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    groups = "4:memory:/jobs/one\n0::/jobs/one"
    machine.process(groups, MEMORY.format(root="/"), hybrid.format(root="/"))
    machine.v1("jobs", 4 * GIB, GIB)
    machine.v1("jobs/one", 9 * GIB, GIB)
    assert machine.available() == 3 * GIB


def test_a_group_outside_of_what_is_mounted(machine: Machine) -> None:
    machine.process("0::/../../elsewhere", UNIFIED.format(root="/"))
    machine.v2("", 2 * GIB, GIB)
    assert machine.available() == GIB


def test_a_mount_whose_name_has_a_space(machine: Machine) -> None:
    machine.process("0::/", UNIFIED.format(root="/").replace("/cgroup rw", "/c\\040g rw"))
    machine.write("sys/fs/c g/memory.max", str(2 * GIB))
    machine.write("sys/fs/c g/memory.current", str(GIB))
    assert machine.available() == GIB


@pytest.mark.parametrize(("limit", "used"), [("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")])
def test_limits_of_the_process(machine: Machine, limit: str, used: str) -> None:
    machine.write("proc/self/status", f"Name:\tpython\n{used}:\t{10 << 20} kB\n")

    def work() -> int:
        resource.setrlimit(getattr(resource, limit), (16 * GIB, -1))
        return available_bytes(machine.root)

    assert Child(work).result() == 6 * GIB


def test_what_other_caches_have_reserved_is_taken(machine: Machine) -> None:
    before = available_bytes(machine.root)
    tier = make_tier(1000)
    reservations.add(tier, tier.pool.device)
    reservations.add(make_tier(1000), torch.device("cuda"))
    assert available_bytes(machine.root) == before - 1000 * tier.page_bytes
    with tier.lease() as lease:
        put(tier, lease, "a", 600)  # the system counts what is written to
    assert available_bytes(machine.root) == before - 400 * tier.page_bytes
    tier.clear()
    assert available_bytes(machine.root) == before - 400 * tier.page_bytes
    del tier, lease
    assert available_bytes(machine.root) == before


def test_this_machine_has_some() -> None:
    assert available_bytes() > 1 << 20
