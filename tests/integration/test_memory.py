"""The memory cgroup of a VMM: no healthy guest is killed under its limit, and one that is killed is told as that."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest import archive, build
from tests.guest.build import Guest
from tests.integration.machines import READY, Host, Running, host_for, hypervisor_of
from vmlib import cgroup, process
from vmlib.memory import memory_limit_bytes
from vmlib.paths import run_key
from vmlib.spec import FileRef, RootDisk

pytestmark = pytest.mark.needs("cgroup")

MIB = 1 << 20
EATEN = "oom: the eater ended with 137"  # the guest's own kernel killed it: all of the RAM was touched
DISK_MIB = 768


class Group:
    """The memory cgroup of a VMM, v1 or v2."""

    def __init__(self, one: Running) -> None:
        paths = cgroup.paths_for(cgroup.read_layout(), run_key(one.machine.id)).vmm
        found = [path for path in paths if (path / self._V2).exists() or (path / self._V1).exists()]
        if not found:
            pytest.skip("no memory cgroup can be made here")
        self.path = found[0]
        self._limit = self.path / (self._V2 if (self.path / self._V2).exists() else self._V1)

    _V1 = "memory.limit_in_bytes"
    _V2 = "memory.max"

    @property
    def usage_bytes(self) -> int:
        file = "memory.current" if self._limit.name == self._V2 else "memory.usage_in_bytes"
        return int((self.path / file).read_text())

    def limit(self, size_bytes: int) -> None:
        self._limit.write_text(str(size_bytes))

    @property
    def was_full(self) -> bool:
        """Something had to be reclaimed to stay within the limit."""
        if self._limit.name == self._V1:
            return int((self.path / "memory.failcnt").read_text()) > 0
        events = dict(line.split() for line in (self.path / "memory.events").read_text().splitlines())
        return int(events["max"]) > 0

    @property
    def cache_bytes(self) -> int:
        stat = dict(line.split() for line in (self.path / "memory.stat").read_text().splitlines())
        return int(stat["cache" if self._limit.name == self._V1 else "file"])


def limited(one: Running) -> Group:
    """The group, with the limit that such a machine gets."""
    group = Group(one)
    group.limit(memory_limit_bytes(one.spec, hypervisor_of(one.host.name).overhead_mib(one.spec)))
    return group


# ---------------------------------------------------------------------------------------------------------------------
# healthy machines


@pytest.mark.parametrize(("memory_mib", "vcpus"), [(128, 1), (384, 4)])
def test_a_guest_that_touches_all_of_its_ram_is_not_killed(qemu: Host, memory_mib: int, vcpus: int) -> None:
    one = qemu.start("oom", memory_mib=memory_mib, vcpus=vcpus)
    group = limited(one)
    one.until_line(EATEN, timeout_s=150)
    assert group.usage_bytes > memory_mib * MIB
    assert one.machine.running()
    record = one.machine.stop(30)
    assert record is not None
    assert (record.exit_code, record.oom_killed) == (0, False)


@pytest.fixture
def reader(guest: Guest, tmp_path: Path, short_dir: Path) -> Iterator[Host]:
    """A host whose guest reads its whole first disk, and says so, before it is ready."""
    ready = f'echo "{READY}"'
    script = (build.HERE / "init.sh").read_text()
    assert script.count(ready) == 1
    script = script.replace(ready, f"dd if=/dev/vda of=/dev/null bs=1M 2>/dev/null && echo read all; {ready}")
    shutil.copy(guest.kernel, tmp_path / "vmlinuz")
    # A kernel unpacks archives one after another: the later file wins.
    more = archive.cpio({"init": archive.Entry(0o100755, script.encode())})
    (tmp_path / "initrd.img").write_bytes(guest.initrd.read_bytes() + more)
    with open(tmp_path / "disk.raw", "wb") as disk:
        os.truncate(disk.fileno(), DISK_MIB * MIB)
    with host_for(short_dir, tmp_path, "qemu") as one:
        yield one


def test_page_cache_of_a_disk_does_not_cost_a_full_guest_its_life(reader: Host) -> None:
    """It counts as the group's memory, and goes when the guest wants its RAM."""
    root = RootDisk(image=FileRef(root=reader.guest, relative="disk.raw"), format="raw", mode="copy")
    one = reader.start("sleep=1 oom", root=root)
    group = limited(one)
    one.until_line("read all", timeout_s=150)
    assert group.cache_bytes > 64 * MIB
    one.until_line(EATEN, timeout_s=150)
    assert group.was_full
    assert one.machine.running()
    record = one.machine.stop(30)
    assert record is not None
    assert (record.exit_code, record.oom_killed) == (0, False)


# ---------------------------------------------------------------------------------------------------------------------
# machines that the host's kernel kills


def _keep(one: Running) -> None:
    """Its keeper stays."""


def _replace_keeper(one: Running) -> None:
    one.kill_keeper()
    assert one.machine.settle() is None


def _kill_keeper(one: Running) -> None:
    one.kill_keeper()


@pytest.mark.parametrize("prepare", [_keep, _replace_keeper, _kill_keeper])
def test_a_vmm_that_the_kernel_kills_for_memory_is_told_as_that(qemu: Host, prepare: Callable[[Running], None]) -> None:
    one = qemu.start("sleep=3 oom", memory_mib=256)
    one.until_line(READY)
    group = Group(one)
    prepare(one)
    limit_mib = (group.usage_bytes >> 20) + 16  # less than the guest is about to touch
    group.limit(limit_mib * MIB)
    record = one.end()
    assert (record.exit_code, record.signal, record.oom_killed) == (137, 9, True)
    assert record.message == (
        f"out of memory on the host: the kernel killed the VMM, which had reached its limit of {limit_mib} MiB"
    )
    if prepare is not _kill_keeper:
        one.until_told(f"chv: {record.message}")


def test_a_kill_by_a_hand_is_no_want_of_memory(qemu: Host) -> None:
    one = qemu.start()
    limited(one)
    one.machine.kill()
    record = one.end()
    assert (record.exit_code, record.signal, record.oom_killed) == (137, 9, False)
    assert record.message == "the VMM was killed by SIGKILL"


def test_a_guest_that_runs_out_of_memory_is_its_own_affair(qemu: Host) -> None:
    one = qemu.start("oom exit=3")
    limited(one)
    record = one.end(150)
    assert (record.exit_code, record.message, record.oom_killed) == (3, "", False)


def test_the_fake_fits_into_its_limit(fake: Host) -> None:
    """With huge pages that is the overhead alone."""
    one = fake.start("tick", vcpus=16)
    group = Group(one)
    group.limit(hypervisor_of("fake").overhead_mib(one.spec) * MIB)
    one.until_line("tick 5")
    print(f"fake: {group.usage_bytes / MIB:.1f} MiB with 16 vCPUs")
    assert process.alive(one.machine.vmm_identity)
    assert not group.was_full
