"""Cores of real processes on this host: given out, pinned, kept, and free again. Two CPUs are enough."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.machines import Host, Running, host_for, hypervisor_of
from vmlib import cgroup, cpuset
from vmlib.cores.cpulist import parse_cpus
from vmlib.cores.ledger import Ledger, read_entries
from vmlib.cores.plan import Policy
from vmlib.cores.service import CoreSettings
from vmlib.errors import HostError, NoCapacityError
from vmlib.hypervisor.select import attach
from vmlib.machine import Machines
from vmlib.paths import Layout, run_key
from vmlib.settings import HostSettings
from vmlib.spec import CoresSpec

EXCLUSIVE = CoresSpec(exclusive=True)
CPUS = sorted(os.sched_getaffinity(0))
A, B = CPUS[:2]
pytestmark = [pytest.mark.needs("cgroup"), pytest.mark.skipif(len(CPUS) != 2, reason="made for a host of two CPUs")]


@dataclass(slots=True)
class Node(Host):
    """A host whose scheduler says what it has reserved."""

    policy: Policy = field(default_factory=Policy)
    reserved: frozenset[int] = frozenset()

    @property
    def machines(self) -> Machines:
        hypervisor = hypervisor_of(self.name)
        return Machines(self.settings(self.layout), lambda _: (hypervisor, "by the test"), attach)

    def settings(self, layout: Layout) -> HostSettings:
        cores = CoreSettings(policy=lambda _: self.policy, reserved=lambda: self.reserved)
        return HostSettings(layout=layout, cores=cores)

    def exclusive(self, task: str, **changes: object) -> Running:
        return self.start("tick", task=task, cores=replace(EXCLUSIVE, **changes))  # type: ignore[arg-type]


@pytest.fixture(params=["fake"])
def node(request: pytest.FixtureRequest, guest: Guest, short_dir: Path) -> Iterator[Node]:
    with host_for(short_dir, guest.directory, request.param) as host:
        yield Node(host.directory, host.guest, host.name, logs=host.logs)


def allowed(pid: int, tid: int) -> set[int]:
    found = re.search(r"^Cpus_allowed_list:\s*(\S+)", Path(f"/proc/{pid}/task/{tid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return set(parse_cpus(found[1]))


def vcpus(one: Running) -> list[set[int]]:
    return [allowed(one.vmm, vcpu.thread_id) for vcpu in one.machine.vcpus()]


def others(one: Running) -> list[set[int]]:
    """Of every other thread of the VMM, and of the keeper."""
    mine = {vcpu.thread_id for vcpu in one.machine.vcpus()}
    threads = [(one.vmm, int(tid)) for tid in os.listdir(f"/proc/{one.vmm}/task") if int(tid) not in mine]
    found = {frozenset(allowed(pid, tid)) for pid, tid in [*threads, (one.keeper.pid, one.keeper.pid)]}
    return [set(cpus) for cpus in found]


def group_of(one: Running) -> Path:
    group = cgroup.paths_for(cgroup.read_layout(), run_key(one.spec.id)).cpuset
    assert group is not None
    return group


def narrow_and_widen_one(one: Running) -> None:
    group = group_of(one)
    cpuset.write_cpus(group, {B})
    cpuset.write_cpus(group, {A, B})


@pytest.mark.parametrize("node", ["fake", "qemu"], indirect=True)
def test_a_vcpu_has_its_core_and_everything_else_of_ours_the_rest(node: Node) -> None:
    one = node.exclusive("web")
    assert vcpus(one) == [{A}]
    assert others(one) == [{B}]
    assert cpuset.read_cpus(group_of(one))[1] == {A, B}
    assert node.machines.cores.reconcile() == []
    one.until_line("tick 3")
    one.machine.destroy()
    assert read_entries(node.layout.ledger) == ()


def test_the_last_core_is_kept_back_and_the_holder_is_named(node: Node) -> None:
    node.exclusive("web")
    with pytest.raises(HostError, match="alloc/web"):
        node.exclusive("db")


def test_a_core_that_comes_free_is_worth_another_try(node: Node) -> None:
    one = node.start("tick ignore-acpi", task="web", cores=EXCLUSIVE)
    one.machine.announce_stop(30)
    with pytest.raises(NoCapacityError, match="about to end"):
        node.exclusive("db")
    one.machine.destroy()
    assert vcpus(node.exclusive("db")) == [{A}]


def test_a_machine_whose_vmm_was_killed_holds_nothing_any_more(node: Node) -> None:
    one = node.exclusive("web")
    os.kill(one.vmm, signal.SIGKILL)
    one.end()
    two = node.exclusive("db")
    assert vcpus(two) == [{A}]
    one.machine.destroy()
    assert [entry.id for entry in read_entries(node.layout.ledger)] == [two.spec.id]


def test_machines_that_float_leave_a_core_that_is_given_away_and_come_back_to_it(node: Node) -> None:
    shared = node.start("tick", task="shared")
    assert vcpus(shared) == [{A, B}]
    one = node.exclusive("web")
    assert vcpus(shared) == [{B}]
    assert others(shared) == [{B}]
    one.machine.destroy()
    assert node.machines.cores.reconcile() == []
    assert vcpus(shared) == [{A, B}]


@pytest.mark.parametrize("node", ["fake", "qemu"], indirect=True)
def test_what_the_scheduler_reserves_moves_a_machine_at_level_driver_away(node: Node) -> None:
    one = node.exclusive("web")
    node.reserved = frozenset({A})
    (notice,) = node.machines.cores.reconcile()
    assert notice.kind == "yielded"
    assert f"the scheduler reserved CPU {A}" in notice.text
    assert vcpus(one) == [{B}]
    assert others(one) == [{B}]
    entry = one.machine.ledger_entry()
    assert entry is not None
    assert entry.level == "shared"
    assert node.machines.cores.reconcile() == []


def test_cores_of_the_schedulers_choice_push_a_machine_aside_at_once(node: Node) -> None:
    one = node.exclusive("web")
    node.reserved = frozenset({A})
    given = node.exclusive("db", given=frozenset({A}))
    assert [notice.machine_id for notice in given.machine.notices] == [one.spec.id]
    assert vcpus(given) == [{A}]
    assert vcpus(one) == [{B}]
    assert others(given) == [{B}]


def test_both_cores_reserved_leaves_each_machine_on_its_own_with_all_its_threads(node: Node) -> None:
    node.reserved = frozenset({A, B})
    one = node.exclusive("web", given=frozenset({A}))
    two = node.exclusive("db", given=frozenset({B}))
    assert (vcpus(one), others(one)) == ([{A}], [{A}])
    assert (vcpus(two), others(two)) == ([{B}], [{B}])


@pytest.mark.parametrize(
    "meddle",
    [
        narrow_and_widen_one,
        lambda one: cpuset.write_cpus(group_of(one), {B}),
        lambda one: os.sched_setaffinity(one.machine.vcpus()[0].thread_id, {A, B}),
        lambda one: os.sched_setaffinity(one.vmm, {A}),
    ],
    ids=["narrowed-and-widened", "narrowed", "a-vcpu-moved", "the-vmm-moved"],
)
def test_a_drift_is_repaired_and_said(node: Node, meddle: Callable[[Running], object]) -> None:
    one = node.exclusive("web")
    meddle(one)
    notices = node.machines.cores.reconcile()
    assert vcpus(one) == [{A}]
    assert others(one) == [{B}]
    entry = one.machine.ledger_entry()
    assert entry is not None
    assert entry.repairs == len(notices)
    if meddle is not narrow_and_widen_one or notices:  # from that this kernel may have recovered by itself
        (notice,) = notices
        assert notice.kind == "cores repaired"
    assert node.machines.cores.reconcile() == []


def test_a_lost_or_damaged_ledger_is_made_anew_from_what_lives(node: Node) -> None:
    one = node.exclusive("web")
    shared = node.start("tick", task="shared")
    before = {entry.id: entry.placement for entry in read_entries(node.layout.ledger)}
    for damage in (b"", b"{}", node.layout.ledger.read_bytes()[:-20]):
        node.layout.ledger.write_bytes(damage)
        node.machines.cores.reconcile()
        assert {entry.id: entry.placement for entry in read_entries(node.layout.ledger)} == before
        assert vcpus(one) == [{A}]
    node.layout.ledger.unlink()
    with pytest.raises(HostError, match="alloc/web"):
        node.exclusive("db")
    assert vcpus(shared) == [{B}]
    kept = list(node.layout.data_dir.glob("ledger.json.corrupt-*"))
    assert len(kept) == 3
    for path in kept:
        path.unlink()


def test_one_that_is_missing_among_others_is_entered_again(node: Node) -> None:
    one = node.exclusive("web")
    node.start("tick", task="shared")
    with Ledger(node.layout.ledger, node.layout.ledger_lock).open() as book:
        book.drop(one.spec.id)
    node.machines.cores.reconcile()
    with pytest.raises(HostError, match="alloc/web"):
        node.exclusive("db")


def test_machines_of_an_earlier_data_directory_keep_their_cores(node: Node) -> None:
    one = node.exclusive("web")
    later = Layout(node.directory / "data/machines/moved", node.directory / "run")
    machines = Machines(node.settings(later), lambda _: (hypervisor_of(node.name), "by the test"), attach)
    machines.cores.adopt(node.layout.ledger, one.spec.id)
    with pytest.raises(HostError, match="alloc/web"):
        machines.cores.reserve(node.spec("tick", task="db", cores=EXCLUSIVE))
    one.machine.destroy()
    assert machines.cores.reconcile() == []
    assert read_entries(later.ledger) == ()


def test_dedicated_cores_are_at_level_node_and_others_float_on_the_rest(node: Node) -> None:
    node.policy = Policy(usable=frozenset({A}), dedicated=frozenset({B}), dedicated_only=True)
    one = node.exclusive("web")
    assert (vcpus(one), others(one)) == ([{B}], [{A}])
    shared = node.start("tick", task="shared")
    assert vcpus(shared) == [{A}]
    with pytest.raises(HostError, match=f"dedicated {B} wanted.*alloc/web"):
        node.exclusive("db")


def test_many_threads_that_want_the_same_core_make_one_owner(node: Node) -> None:
    started: list[str] = []
    refused: list[str] = []

    def try_it(number: int) -> None:
        try:
            started.append(node.machines.start(specs[number]).id)
        except HostError as exc:
            refused.append(str(exc))

    specs = [node.spec("tick", task=f"t{number}", cores=EXCLUSIVE) for number in range(6)]
    threads = [threading.Thread(target=try_it, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 1
    assert len(refused) == 5
    assert [entry.id for entry in read_entries(node.layout.ledger) if entry.placement.cpus] == started


def test_the_limits_of_memory_and_threads_are_set(node: Node) -> None:
    one = node.start("tick", task="web", cores=CoresSpec(cpu_shares=512))
    groups = cgroup.paths_for(cgroup.read_layout(), run_key(one.spec.id))
    assert groups.memory is not None
    assert groups.cpu is not None
    if cpuset.is_v2(groups.memory):
        assert int((groups.memory / "memory.max").read_text()) > 128 << 20
    else:
        assert 128 << 20 < int((groups.memory / "memory.limit_in_bytes").read_text()) < 1 << 40
        assert (groups.cpu / "cpu.shares").read_text() == "512\n"


@pytest.mark.parametrize("node", ["qemu"], indirect=True)
def test_pins_last_over_a_reboot_of_the_guest(node: Node) -> None:
    one = node.start("reboot-once tick", task="web", cores=EXCLUSIVE)
    one.until_line("rebooted", timeout_s=120)
    time.sleep(0.1)
    assert node.machines.cores.reconcile() == []
    assert vcpus(one) == [{A}]
    assert others(one) == [{B}]
