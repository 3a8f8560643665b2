"""What only cgroup v2 has: groups of threads that heal by themselves, and partitions. For the test node's 8 CPUs."""

import errno
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.threads import Threads
from vmlib import cgroup, cpuset
from vmlib.cgroup import Limits, MachineGroups
from vmlib.cores import confine
from vmlib.cores.words import Confinement
from vmlib.errors import HostError
from vmlib.inotify import MODIFY, Inotify

pytestmark = pytest.mark.needs("root", "cgroup2")

ROOT = Path("/sys/fs/cgroup")


def cpus(*numbers: int) -> frozenset[int]:
    return frozenset(numbers)


WANTED = Confinement(cpus=cpus(0, 4, 6), vcpus=(cpus(4), cpus(6)), emulator=cpus(0), keeper=cpus(0), nodes=cpus(1))


@pytest.fixture
def groups() -> Iterator[MachineGroups]:
    if not cpus(*range(8)) <= cpuset.read_cpus(ROOT)[1]:
        pytest.skip("needs CPUs 0-7")
    layout = cgroup.read_layout()
    assert layout.reason == ""
    ours = cgroup.paths_for(layout, f"test-{secrets.token_hex(6)}")
    assert ours.threaded
    yield ours
    for path in (*ours.vmm, *ours.keeper):
        cgroup.kill_all(path)
        cgroup.remove(path)
        assert not path.exists()


@pytest.fixture
def vmm(groups: MachineGroups) -> Iterator[Threads]:
    nodes = WANTED.nodes & cpuset.read_mems(ROOT)[1]
    cgroup.prepare(groups, limits=Limits(), cpus=WANTED.cpus, mems=nodes, keeper_cpus=WANTED.keeper)
    process = Threads(2, groups.vmm)
    yield process
    process.close()


def apply(groups: MachineGroups, process: Threads) -> list[str]:
    return confine.apply(groups, WANTED, vmm_pid=process.pid, vcpu_tids=process.vcpus)


def drift(groups: MachineGroups, process: Threads) -> list[str]:
    return confine.drift(groups, WANTED, vmm_pid=process.pid, vcpu_tids=process.vcpus)


def allowed(process: Threads) -> tuple[str, ...]:
    return tuple(process.allowed(tid) for tid in (process.pid, *process.vcpus))


def group_of(process: Threads, tid: int) -> str:
    text = Path(f"/proc/{process.pid}/task/{tid}/cgroup").read_text()
    return next(line for line in text.splitlines() if line.startswith("0::")).rpartition("/")[2]


def top_of(groups: MachineGroups) -> Path:
    return groups.vmm[0].parents[1]


def test_each_thread_sits_in_a_group_of_its_own(groups: MachineGroups, vmm: Threads) -> None:
    (path,) = groups.vmm
    assert apply(groups, vmm)
    assert [group_of(vmm, tid) for tid in (vmm.pid, *vmm.vcpus)] == ["emu", "v0", "v1"]
    assert allowed(vmm) == ("0", "4", "6")
    assert (path / "cgroup.type").read_text() == "domain threaded\n"
    assert cpuset.read_mems(path / "v0")[1] == WANTED.nodes
    assert apply(groups, vmm) == []

    late = vmm.more()
    assert (group_of(vmm, late), vmm.allowed(late)) == ("emu", "0")
    assert drift(groups, vmm) == []


def test_threads_are_back_by_themselves_after_the_group_was_narrowed_and_widened(
    groups: MachineGroups, vmm: Threads
) -> None:
    (path,) = groups.vmm
    apply(groups, vmm)
    (path / "cpuset.cpus").write_text("0,4")
    assert allowed(vmm) == ("0", "4", "0,4")  # a thread without its CPU may use all of the group's
    assert drift(groups, vmm) == [
        "group on 0,4, expected 0,4,6",
        f"vCPU 1 (thread {vmm.vcpus[1]}) on 0,4, expected 6",
    ]
    (path / "cpuset.cpus").write_text("0,4,6")
    assert allowed(vmm) == ("0", "4", "6")
    assert drift(groups, vmm) == []


def test_a_narrowed_group_and_a_rewritten_thread_group_are_repaired(groups: MachineGroups, vmm: Threads) -> None:
    (path,) = groups.vmm
    apply(groups, vmm)
    (path / "cpuset.cpus").write_text("0-1")
    (path / "v1/cpuset.cpus").write_text("1")
    assert len(apply(groups, vmm)) == 3
    assert allowed(vmm) == ("0", "4", "6")


def test_a_write_to_any_cpuset_of_a_machine_is_told_at_once(groups: MachineGroups, vmm: Threads) -> None:
    """A repair must not wait for the slow look."""
    apply(groups, vmm)
    machine = groups.vmm[0].parent
    found = {path for path in machine.rglob("cpuset.cpus") if path.parent != machine}
    assert {path.parent.name for path in found} == {"vmm", "keeper", "emu", "v0", "v1"}
    found.add(groups.vmm[0] / "cpuset.mems")
    with Inotify() as inotify:
        for path in cgroup.cpuset_files(cgroup.read_layout()):
            inotify.watch(path, MODIFY)
        for path in sorted(found):
            path.write_text(path.read_text())
            assert [event.path for event in inotify.read()] == [path]


def test_a_thread_in_a_strangers_place_is_taken_back(groups: MachineGroups, vmm: Threads) -> None:
    (path,) = groups.vmm
    apply(groups, vmm)
    assert cpuset.move_thread(path / "v0", vmm.vcpus[1])
    assert drift(groups, vmm)
    apply(groups, vmm)
    assert group_of(vmm, vmm.vcpus[1]) == "v1"
    assert allowed(vmm) == ("0", "4", "6")


def test_a_machine_that_loses_its_cores_and_floats_keeps_its_thread_groups(groups: MachineGroups, vmm: Threads) -> None:
    apply(groups, vmm)
    everywhere = cpus(0, 1, 2)
    floats = Confinement(cpus=everywhere, vcpus=(everywhere,) * 2, emulator=everywhere, keeper=everywhere)
    assert confine.apply(groups, floats, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)
    assert allowed(vmm) == ("0-2", "0-2", "0-2")
    assert confine.apply(groups, floats, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus) == []


def test_a_machine_that_only_ever_floated_has_no_thread_groups(groups: MachineGroups, vmm: Threads) -> None:
    some = cpus(2, 3)
    floats = Confinement(cpus=some, vcpus=(some,) * 2, emulator=some, keeper=some)
    confine.apply(groups, floats, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)
    assert [path.name for path in groups.vmm[0].iterdir() if path.is_dir()] == []


def test_a_thread_from_elsewhere_cannot_be_seated(groups: MachineGroups, vmm: Threads) -> None:
    apply(groups, vmm)
    with pytest.raises(HostError, match="its process is not in the group above"):
        cpuset.move_thread(groups.vmm[0] / "v0", os.getpid())


def test_a_group_with_threaded_groups_tells_its_processes_ends_and_goes(groups: MachineGroups, vmm: Threads) -> None:
    (path,) = groups.vmm
    apply(groups, vmm)
    with pytest.raises(OSError, match="not supported"):
        (path / "v0/cgroup.procs").read_text()
    assert cgroup.pids(path) == (vmm.pid,)
    cgroup.kill_all(path)
    vmm.close()
    cgroup.remove(path)
    assert not path.exists()


def test_a_machine_without_wishes_follows_the_group_above(groups: MachineGroups) -> None:
    cgroup.prepare(groups, limits=Limits())
    (path,) = groups.vmm
    assert cpuset.read_cpus(path) == (frozenset(), cpuset.read_cpus(ROOT)[1])


def test_zero_bytes_change_nothing_and_a_line_break_empties(groups: MachineGroups) -> None:
    cgroup.prepare(groups, limits=Limits(), cpus=cpus(4))
    (path,) = groups.vmm
    (path / "cpuset.cpus").write_text("")
    assert cpuset.read_cpus(path)[0] == cpus(4)
    cpuset.write_cpus(path, ())
    assert cpuset.read_cpus(path) == (frozenset(), cpuset.read_cpus(ROOT)[1])


def test_a_controller_cannot_be_taken_from_the_whole_tree_while_ours_passes_it_on(groups: MachineGroups) -> None:
    """As systemd does with controllers that none of its units asks for."""
    cgroup.prepare(groups, limits=Limits(), cpus=cpus(4))
    for name in ("cpuset", "cpu", "memory", "pids"):
        with pytest.raises(OSError, match="busy") as caught:
            (ROOT / "cgroup.subtree_control").write_text(f"-{name}")
        assert caught.value.errno == errno.EBUSY
    assert cpuset.read_cpus(groups.vmm[0])[1] == cpus(4)


def test_a_group_that_holds_processes_passes_no_memory_controller_on(groups: MachineGroups, vmm: Threads) -> None:
    with pytest.raises(HostError, match=r"'\+memory' refused: .*: processes are in that group itself"):
        cpuset.enable(groups.vmm[0], ["memory"])


# -- partitions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def top() -> Iterator[Path]:
    beside = [path.name for path in ROOT.iterdir() if (path / "cpuset.cpus").exists() and cpuset.read_cpus(path)[0]]
    if beside:
        pytest.skip(f"{', '.join(beside)} holds CPUs")
    path = ROOT / "chv-test.slice"
    yield path
    for group in (path, ROOT / "chv-other.slice"):
        if group.exists():
            cpuset.set_partition(group, (), "")
            group.rmdir()


def expect_us_on(expected: set[int]) -> None:
    """Some kernels hand released CPUs back a moment later."""
    deadline = time.monotonic() + 5
    while os.sched_getaffinity(0) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    assert os.sched_getaffinity(0) == expected


@pytest.mark.parametrize("kind", ["root", "isolated"])
def test_a_partition_takes_its_cpus_from_everybody_else_and_gives_them_back(
    top: Path, kind: cpuset.PartitionKind
) -> None:
    everything = os.sched_getaffinity(0)
    for _ in range(2):
        cpuset.set_partition(top, cpus(4, 5, 6, 7), kind)
        assert cpuset.read_partition(top) == kind
        expect_us_on({0, 1, 2, 3})
    cpuset.set_partition(top, cpus(6, 7), kind)
    expect_us_on({0, 1, 2, 3, 4, 5})
    cpuset.set_partition(top, (), "")
    assert cpuset.read_partition(top) == "member"
    expect_us_on(everything)


def test_machines_run_in_a_partition_and_leave_it_standing(top: Path) -> None:
    cpuset.set_partition(top, cpus(4, 5, 6, 7), "root")
    groups = cgroup.paths_for(cgroup.read_layout(), "k", top="chv-test")
    assert top_of(groups) == top
    cgroup.prepare(groups, limits=Limits(), cpus=cpus(4, 5, 6), keeper_cpus=cpus(4))
    wanted = Confinement(cpus=cpus(4, 5, 6), vcpus=(cpus(5), cpus(6)), emulator=cpus(4), keeper=cpus(4))
    process = Threads(2, groups.vmm)
    try:
        confine.apply(groups, wanted, vmm_pid=process.pid, vcpu_tids=process.vcpus)
        assert allowed(process) == ("4", "5", "6")
        outside = Confinement(cpus=cpus(0), vcpus=(cpus(0),) * 2, emulator=cpus(0), keeper=cpus(0))
        with pytest.raises(HostError, match="not the group's above"):
            confine.apply(groups, outside, vmm_pid=process.pid, vcpu_tids=process.vcpus)
    finally:
        process.close()
        for path in (*groups.vmm, *groups.keeper):
            cgroup.kill_all(path)
            cgroup.remove(path)
    assert cpuset.read_partition(top) == "root"
    assert not (top / "k").exists()


def test_a_keeper_has_its_cpus_outside_of_the_partition(top: Path) -> None:
    cpuset.set_partition(top, cpus(4, 5, 6, 7), "root")
    layout, key = cgroup.read_layout(), f"test-{secrets.token_hex(6)}"
    inside, outside = (cgroup.paths_for(layout, key, top=name) for name in ("chv-test", "chv-elsewhere"))
    groups = replace(inside, keeper=outside.keeper, keeper_cpuset=outside.keeper_cpuset)
    try:
        cgroup.prepare(groups, limits=Limits(), cpus=cpus(4), keeper_cpus=cpus(0, 1))
        assert cpuset.read_cpus(groups.vmm[0])[1] == cpus(4)
        assert cpuset.read_cpus(groups.keeper[0])[1] == cpus(0, 1)
    finally:
        for path in (*groups.vmm, *groups.keeper):
            cgroup.remove(path)
    assert not (ROOT / "chv-elsewhere.slice").exists()


def test_a_partition_that_somebody_made_invalid_is_seen_and_mended(top: Path) -> None:
    cpuset.set_partition(top, cpus(4, 5), "root")
    other = ROOT / "chv-other.slice"
    other.mkdir()
    cpuset.write_value(other / "cpuset.cpus", "0-7")
    assert cpuset.read_partition(top).startswith("root invalid (")
    with pytest.raises(HostError, match="found 'root invalid"):
        cpuset.set_partition(top, cpus(4, 5), "root")
    assert cpuset.read_partition(top) == "member"
    cpuset.write_value(other / "cpuset.cpus", "0-3")
    cpuset.set_partition(top, cpus(4, 5), "root")
    assert cpuset.read_partition(top) == "root"


def test_a_partition_leaves_the_host_a_cpu(top: Path) -> None:
    with pytest.raises(HostError, match="the rest of the host would have no CPU"):
        cpuset.set_partition(top, cpuset.read_cpus(ROOT)[1], "root")
    assert cpuset.read_partition(top) == "member"
