"""Whole cores on a node of two NUMA nodes with two cores of two threads each, cgroup v2, and machines on KVM."""

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.machines import READY, Running
from tests.integration.nodes import Node, kinds, told
from tests.lab.conftest import KvmHost
from vmlib import cpuset, process
from vmlib.cgroup import hold, paths_for, read_layout
from vmlib.cores.plan import Policy
from vmlib.errors import HostError
from vmlib.paths import run_key
from vmlib.spec import CoresSpec

EXCLUSIVE = CoresSpec(exclusive=True)
LAB_S = 90.0  # for what takes 5 s outside
SIBLING = {0: 1, 1: 0, 2: 3, 3: 2, 4: 5, 5: 4, 6: 7, 7: 6}


def status(pid: int, tid: int, field: str) -> str:
    found = re.search(rf"^{field}:\s*(\S+)", Path(f"/proc/{pid}/task/{tid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def vcpus(one: Running) -> list[int]:
    return [int(status(one.vmm, vcpu.thread_id, "Cpus_allowed_list")) for vcpu in one.machine.vcpus()]


def others(one: Running) -> set[str]:
    mine = {vcpu.thread_id for vcpu in one.machine.vcpus()}
    threads = [(one.vmm, int(tid)) for tid in os.listdir(f"/proc/{one.vmm}/task") if int(tid) not in mine]
    return {status(pid, tid, "Cpus_allowed_list") for pid, tid in [*threads, (one.keeper.pid, one.keeper.pid)]}


def pages(pid: int, kib: int) -> dict[int, int]:
    """NUMA node -> pages there of the process's mappings of that size; the guest's RAM is known by its size."""
    found: dict[int, int] = {}
    sizes = {
        line.split("-")[0]: (int(line.split()[0].split("-")[1], 16) - int(line.split("-")[0], 16)) >> 10
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
    }
    for line in Path(f"/proc/{pid}/numa_maps").read_text().splitlines():
        if sizes.get(line.split()[0]) == kib:
            for node, count in re.findall(r"\bN(\d+)=(\d+)", line):
                found[int(node)] = found.get(int(node), 0) + int(count)
    return found


def test_two_vcpus_get_two_whole_cores_of_one_node_and_memory_there(kvm_host: KvmHost) -> None:
    one = kvm_host.start(vcpus=2, cores=EXCLUSIVE)
    where = vcpus(one)
    assert where in ([0, 2], [4, 6])
    node = where[0] // 4
    rest = "4-7" if node == 0 else "0-3"
    assert others(one) == {rest}  # siblings of its cores included: nobody of ours runs there
    one.until_line(READY, timeout_s=LAB_S)
    assert status(one.vmm, one.vmm, "Mems_allowed_list") == str(node)
    found = pages(one.vmm, 128 << 10)
    assert found.keys() == {node}
    assert found[node] > 4096  # at least 16 MiB of RAM were touched

    with pytest.raises(HostError, match=r"2 cores .*wanted.*alloc/web"):
        kvm_host.start(task="db", vcpus=2, cores=EXCLUSIVE)  # the last core is kept back
    two = kvm_host.start(task="cache", cores=EXCLUSIVE)
    assert vcpus(two)[0] // 4 == 1 - node
    held = {*where, *vcpus(two)}
    assert not {str(SIBLING[cpu]) for cpu in held} & (others(one) | others(two))
    (left,) = {0, 2, 4, 6} - held
    assert others(one) == others(two) == {f"{left}-{SIBLING[left]}"}
    for machine in (one, two):
        machine.machine.destroy()


def test_three_vcpus_take_two_nodes_unless_that_is_forbidden(kvm_host: KvmHost) -> None:
    with pytest.raises(HostError, match=r'3 cores wanted \(numa = "strict"\): 2 cores free in one NUMA node at most'):
        kvm_host.start(vcpus=3, cores=CoresSpec(exclusive=True, numa="strict"))
    one = kvm_host.start(vcpus=3, cores=EXCLUSIVE)
    where = vcpus(one)
    assert len({cpu // 2 for cpu in where}) == 3
    assert {cpu // 4 for cpu in where} == {0, 1}
    assert status(one.vmm, one.vmm, "Mems_allowed_list") == "0-1"
    one.machine.destroy()


def test_dedicated_cores_alone_are_taken_and_both_threads_are_shown_when_asked_for(kvm_host: KvmHost) -> None:
    kvm_host.policy = Policy(usable=frozenset({0, 1, 2, 3}), dedicated=frozenset({4, 5, 6, 7}), dedicated_only=True)
    one = kvm_host.start(vcpus=4, cores=CoresSpec(exclusive=True, expose=True))
    assert vcpus(one) == [4, 5, 6, 7]
    assert others(one) == {"0-3"}
    with pytest.raises(HostError, match=r"of dedicated 4-7 wanted.*alloc/web \(dev\) holds 4-7"):
        kvm_host.start(task="db", cores=EXCLUSIVE)
    one.machine.destroy()


def test_threads_are_back_on_their_cores_after_the_group_was_narrowed_and_widened(kvm_host: KvmHost) -> None:
    one = kvm_host.start(vcpus=2, cores=EXCLUSIVE)
    where, rest = vcpus(one), others(one)
    group = paths_for(read_layout(), run_key(one.spec.id)).cpuset
    assert group is not None
    everything = cpuset.read_cpus(group)[0]
    cpuset.write_cpus(group, everything - {where[1]})
    cpuset.write_cpus(group, everything)
    assert (vcpus(one), others(one)) == (where, rest)
    assert kvm_host.machines.cores.reconcile() == []
    one.machine.destroy()


def test_a_partition_waits_for_machines_from_before_it_and_does_them_no_harm(kvm_host: KvmHost) -> None:
    dedicated = Policy(usable=frozenset({0, 1, 2, 3}), dedicated=frozenset({4, 5, 6, 7}), dedicated_only=True)
    kvm_host.policy = dedicated
    one = kvm_host.start(cores=EXCLUSIVE)
    where, (rest,) = vcpus(one), others(one)
    kvm_host.policy = replace(dedicated, partition="root")
    cores = kvm_host.machines.cores
    assert cores.partition() == "alloc/web started before there was one: restart it"
    assert [notice.kind for notice in cores.reconcile()] == ["partition invalid"]
    assert vcpus(one) == where
    assert others(one) == {str(where[0]), rest}  # its VMM is inside from now on, its keeper is not
    one.machine.destroy()
    assert cores.partition() == ""
    two = kvm_host.start(cores=EXCLUSIVE)
    kvm_host.policy = dedicated
    assert kvm_host.machines.cores.partition() == ""  # given back
    assert kvm_host.machines.cores.reconcile() == []
    two.machine.destroy()


@pytest.fixture
def agent_beside() -> Iterator["subprocess.Popen[bytes]"]:
    """For the plugin of another agent on this host."""
    with subprocess.Popen(["sleep", "1000"]) as sleeping:
        yield sleeping
        sleeping.kill()


def test_a_partition_of_another_agent_that_lives_is_left_alone(
    kvm_host: KvmHost, agent_beside: "subprocess.Popen[bytes]", short_dir: Path
) -> None:
    top = read_layout().cpuset
    who = process.identify(agent_beside.pid)
    assert top is not None
    assert who is not None
    without = Policy(usable=frozenset({0, 1, 2, 3}), dedicated=frozenset({4, 5, 6, 7}), dedicated_only=True)
    kvm_host.policy = replace(without, partition="root")
    assert kvm_host.machines.cores.partition() == ""
    hold(top, who, short_dir / "theirs")

    smaller = replace(kvm_host.policy, dedicated=frozenset({6, 7}), usable=frozenset(range(6)))
    for policy, said in ((without, ""), (smaller, f"is held for data directory {short_dir / 'theirs'}")):
        kvm_host.policy = policy
        assert said in kvm_host.machines.cores.partition()
        assert cpuset.read_partition(top) == "root"
        assert cpuset.read_cpus(top)[1] == {4, 5, 6, 7}

    agent_beside.kill()
    agent_beside.wait()
    kvm_host.policy = smaller
    assert kvm_host.machines.cores.partition() == ""
    assert cpuset.read_cpus(top)[1] == {6, 7}
    kvm_host.policy = without
    assert kvm_host.machines.cores.partition() == ""
    assert cpuset.read_partition(top) == "member"


async def test_the_embedded_host_runs_a_machine_on_cores_of_one_node(guest: Guest, chv: Path, short_dir: Path) -> None:
    node = Node(
        base=short_dir,
        guest=guest.directory,
        chv=chv,
        block='cores {\n dedicated = "2-7"\n }',
        client_block='reserved {\n cores = "2-7"\n }',
    )
    node.make()
    job = node.job("poweroff", config='placement = "exclusive"\nvcpus = 2')
    job.write_text(job.read_text().replace('        placement = "shared"\n', "", 1))
    async with node.host(job) as host:
        result = await host.run()
    assert result.exit_code == 0
    assert kinds(host) == ["machine started", "cores"]
    assert told(host)[1] == "cores: vCPU 0 on 4, vCPU 1 on 6; level node; VMM threads on 0-1; memory on NUMA node 1"
