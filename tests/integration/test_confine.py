"""Threads of a real process on the CPUs where they belong, and back there after somebody else meddled."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.integration.threads import Threads
from vmlib import cgroup, cpuset
from vmlib.cgroup import Limits, MachineGroups
from vmlib.cores import confine
from vmlib.cores.cpulist import format_cpus
from vmlib.cores.words import Confinement
from vmlib.errors import HostError

pytestmark = pytest.mark.needs("root", "cgroup")


@pytest.fixture
def two() -> tuple[int, int]:
    """A CPU for the emulator and one for the vCPU."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("one CPU only")
    return cpus[0], cpus[1]


@pytest.fixture
def groups() -> Iterator[MachineGroups]:
    layout = cgroup.read_layout()
    if layout.cpuset is None:
        pytest.skip(f"no cpuset: {layout.reason}")
    ours = cgroup.paths_for(layout, f"test-{secrets.token_hex(6)}")
    yield ours
    for path in (*ours.vmm, *ours.keeper):
        cgroup.kill_all(path)
        cgroup.remove(path)
    assert not [path for path in ours.vmm if path.parent.exists()]


@pytest.fixture
def wanted(two: tuple[int, int]) -> Confinement:
    rest, own = frozenset({two[0]}), frozenset({two[1]})
    return Confinement(cpus=rest | own, vcpus=(own,), emulator=rest, keeper=rest)


@pytest.fixture
def vmm(groups: MachineGroups, wanted: Confinement) -> Iterator[Threads]:
    cgroup.prepare(groups, limits=Limits(), cpus=wanted.cpus, mems=wanted.nodes, keeper_cpus=wanted.keeper)
    process = Threads(1, groups.vmm)
    yield process
    process.close()


def places(process: Threads) -> dict[int, str]:
    return {int(tid): process.allowed(int(tid)) for tid in os.listdir(f"/proc/{process.pid}/task")}


def test_every_thread_gets_its_place_and_a_second_time_changes_nothing(
    groups: MachineGroups, wanted: Confinement, vmm: Threads, two: tuple[int, int]
) -> None:
    (vcpu,) = vmm.vcpus
    rest, own = (str(cpu) for cpu in two)
    both = format_cpus(two)
    found = confine.apply(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)
    assert found == [
        f"vCPU 0 (thread {vcpu}) on {both}, expected {own}",
        f"thread {vmm.pid} ({_comm(vmm.pid)}) on {both}, expected {rest}",
    ]
    assert places(vmm) == {vmm.pid: rest, vcpu: own}
    assert confine.drift(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus) == []
    assert confine.apply(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus) == []


def _comm(pid: int) -> str:
    with open(f"/proc/{pid}/comm") as file:
        return file.read().strip()


def test_a_thread_that_comes_later_is_the_emulators(
    groups: MachineGroups, wanted: Confinement, vmm: Threads, two: tuple[int, int]
) -> None:
    confine.apply(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)
    late = vmm.more()
    assert vmm.allowed(late) == str(two[0])  # its maker is one of the emulator's
    if groups.threaded:
        with pytest.raises(OSError, match="Invalid argument"):
            os.sched_setaffinity(late, {two[1]})  # the emulator's group has no such CPU
        return
    os.sched_setaffinity(late, {two[1]})
    (found,) = confine.apply(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)
    assert found == f"thread {late} ({_comm(vmm.pid)}) on {two[1]}, expected {two[0]}"
    assert vmm.allowed(late) == str(two[0])


def test_a_group_that_was_narrowed_behind_our_back_is_seen_and_repaired(
    groups: MachineGroups, wanted: Confinement, vmm: Threads, two: tuple[int, int]
) -> None:
    (vcpu,) = vmm.vcpus
    confine.apply(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)
    assert groups.cpuset is not None
    (groups.cpuset / "cpuset.cpus").write_text(str(two[0]))
    assert vmm.allowed(vcpu) == str(two[0])
    found = confine.drift(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)
    assert found == [
        f"group on {two[0]}, expected {format_cpus(two)}",
        f"vCPU 0 (thread {vcpu}) on {two[0]}, expected {two[1]}",
    ]
    assert confine.apply(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus) == found
    assert places(vmm) == {vmm.pid: str(two[0]), vcpu: str(two[1])}
    assert confine.drift(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus) == []


def test_a_group_that_was_narrowed_and_widened_again_has_its_threads_in_place_after_a_repair(
    groups: MachineGroups, wanted: Confinement, vmm: Threads, two: tuple[int, int]
) -> None:
    confine.apply(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)
    assert groups.cpuset is not None
    for cpus in (str(two[0]), format_cpus(two)):
        (groups.cpuset / "cpuset.cpus").write_text(cpus)
    confine.apply(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)  # kernels differ in what there is to do
    assert places(vmm) == {vmm.pid: str(two[0]), vmm.vcpus[0]: str(two[1])}


def test_an_affinity_that_was_set_from_outside_is_seen_and_repaired(
    groups: MachineGroups, wanted: Confinement, vmm: Threads, two: tuple[int, int]
) -> None:
    (vcpu,) = vmm.vcpus
    confine.apply(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)
    if groups.threaded:
        pytest.skip("a thread cannot be moved out of its threaded group by affinity")
    subprocess.run(["taskset", "-pc", str(two[1]), str(vmm.pid)], check=True, stdout=subprocess.DEVNULL)
    found = confine.apply(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)
    assert found == [f"thread {vmm.pid} ({_comm(vmm.pid)}) on {two[1]}, expected {two[0]}"]
    assert places(vmm) == {vmm.pid: str(two[0]), vcpu: str(two[1])}


def test_a_machine_moves_to_cpus_that_its_group_did_not_have(
    groups: MachineGroups, wanted: Confinement, vmm: Threads, two: tuple[int, int]
) -> None:
    one, other = (frozenset({cpu}) for cpu in two)
    for here, keeper in ((one, other), (other, one)):
        moved = Confinement(cpus=here, vcpus=(here,), emulator=here, keeper=keeper)
        assert confine.apply(groups, moved, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)
        assert set(places(vmm).values()) == {format_cpus(here)}
        assert groups.cpuset is not None
        assert groups.keeper_cpuset is not None
        assert cpuset.read_cpus(groups.cpuset) == (here, here)
        assert cpuset.read_cpus(groups.keeper_cpuset) == (keeper, keeper)


def test_the_keepers_group_is_looked_after_as_well(
    groups: MachineGroups, wanted: Confinement, vmm: Threads, two: tuple[int, int]
) -> None:
    confine.apply(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)
    assert groups.keeper_cpuset is not None
    (groups.keeper_cpuset / "cpuset.cpus").write_text(str(two[1]))
    found = confine.apply(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)
    assert found == [f"keeper on {two[1]}, expected {two[0]}"]
    assert cpuset.read_cpus(groups.keeper_cpuset)[1] == wanted.keeper


def test_a_group_above_that_lacks_a_cpu_gets_all_back(
    groups: MachineGroups, wanted: Confinement, vmm: Threads, two: tuple[int, int]
) -> None:
    """As after a CPU was taken away and came back, on v1."""
    assert groups.cpuset is not None
    assert groups.keeper_cpuset is not None
    if groups.threaded:
        pytest.skip("v2 groups have what there is by themselves")
    for path in (groups.cpuset, groups.keeper_cpuset, groups.cpuset.parent):
        (path / "cpuset.cpus").write_text(str(two[0]))
    confine.apply(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)
    assert cpuset.read_cpus(groups.cpuset.parent)[1] == cpuset.read_cpus(groups.cpuset.parents[2])[1]
    assert vmm.allowed(vmm.vcpus[0]) == str(two[1])


def test_without_a_cpuset_affinity_alone_does_it(
    groups: MachineGroups, wanted: Confinement, vmm: Threads, two: tuple[int, int]
) -> None:
    bare = replace(groups, cpuset=None, keeper_cpuset=None)
    assert len(confine.apply(bare, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)) == 2
    assert places(vmm) == {vmm.pid: str(two[0]), vmm.vcpus[0]: str(two[1])}
    assert confine.drift(bare, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus) == []


def test_one_thread_that_runs_two_vcpus_may_be_on_the_cpus_of_both(
    groups: MachineGroups, wanted: Confinement, vmm: Threads, two: tuple[int, int]
) -> None:
    both = replace(wanted, vcpus=(frozenset({two[0]}), frozenset({two[1]})))
    confine.apply(groups, both, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus * 2)
    assert places(vmm) == {vmm.pid: str(two[0]), vmm.vcpus[0]: format_cpus(two)}


def test_a_thread_of_another_process_is_no_vcpu(groups: MachineGroups, wanted: Confinement, vmm: Threads) -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(HostError) as caught:
        confine.apply(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=(os.getpid(),))
    assert str(caught.value) == f"thread {os.getpid()} of vCPU 0 is none of process {vmm.pid}"
    assert os.sched_getaffinity(0) == before


def test_as_many_threads_as_vcpus_are_expected(groups: MachineGroups, wanted: Confinement, vmm: Threads) -> None:
    with pytest.raises(HostError, match="0 vCPU threads, expected 1"):
        confine.apply(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=())


def test_a_cpu_that_is_not_there_cannot_be_had_and_is_named(
    groups: MachineGroups, wanted: Confinement, vmm: Threads
) -> None:
    gone = max(cpuset.read_cpus(groups.vmm[0] if groups.cpuset is None else groups.cpuset.parents[2])[0]) + 1
    far = replace(wanted, cpus=wanted.cpus | {gone}, vcpus=(frozenset({gone}),))
    with pytest.raises(HostError, match=rf"cpuset.cpus: '[0-9,-]*{gone}' refused|found"):
        confine.apply(groups, far, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)
    bare = replace(groups, cpuset=None, keeper_cpuset=None)
    with pytest.raises(HostError, match=rf"vCPU 0 \(thread {vmm.vcpus[0]}\) cannot run on {gone}: invalid argument"):
        confine.apply(bare, far, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)


def test_a_process_that_has_ended_is_told(groups: MachineGroups, wanted: Confinement, vmm: Threads) -> None:
    vmm.close()
    with pytest.raises(HostError, match=f"process {vmm.pid} is gone"):
        confine.drift(groups, wanted, vmm_pid=vmm.pid, vcpu_tids=vmm.vcpus)


def test_threads_that_come_and_go_do_not_hold_it_up(
    groups: MachineGroups, wanted: Confinement, two: tuple[int, int]
) -> None:
    cgroup.prepare(groups, limits=Limits(), cpus=wanted.cpus, keeper_cpus=wanted.keeper)
    program = (
        "import threading, time\n"
        "end = time.monotonic() + 20\n"
        "while time.monotonic() < end:\n"
        "    threading.Thread(target=time.sleep, args=(0.005,)).start()\n"
        "    time.sleep(0.002)\n"
    )
    with subprocess.Popen(["python3", "-I", "-S", "-c", program]) as child:
        try:
            for group in groups.vmm:
                (group / "cgroup.procs").write_text(str(child.pid))
            floating = replace(wanted, vcpus=())
            confine.apply(groups, floating, vmm_pid=child.pid, vcpu_tids=())
            assert confine.drift(groups, floating, vmm_pid=child.pid, vcpu_tids=()) == []
        finally:
            child.kill()
