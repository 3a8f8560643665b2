"""The process that starts a machine dies at every place there is; the next one gets the machine, or takes it back."""

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.machines import DATA, NOTHING, READY, Host, host_for, root_of
from vmlib import failpoint
from vmlib.cores.ledger import read_entries
from vmlib.errors import HostError, HypervisorError, NoCapacityError
from vmlib.postflight import persistent_disks
from vmlib.spec import CoresSpec, MachineSpec

# `child.vmm` and `child.helper` are the keeper's, `child.adopt` lies on another way, and for `child.far` there has to
# be a file server (tests/lab/test_nfs.py): each has a test of its own. `link.*` need a network (test_links.py).
OTHERS = ("child.vmm", "child.helper", "child.adopt", "child.far", *failpoint.LINKS)
STARTING = [place for place in failpoint.PLACES if place not in OTHERS]


@pytest.fixture
def host(request: pytest.FixtureRequest, guest: Guest, short_dir: Path) -> Iterator[Host]:
    with host_for(short_dir, guest.directory, getattr(request, "param", "fake")) as one:
        yield one


def _spec(host: Host, place: str) -> MachineSpec:
    # Of the two CPUs of a small host only one is given away, and there is one such disk: what leaked is missed at once.
    spec = host.spec("tick", cores=CoresSpec(exclusive=True), disks=(DATA,))
    if place == "child.tool":  # an overlay is made by a tool
        spec = replace(spec, root=root_of(host.guest, "disk.qcow2"))
    return spec


def _die_at(host: Host, place: str, spec: MachineSpec, *, do: str = "start") -> None:
    with host.elsewhere(spec, do=do, failpoint=place) as starter:
        _, words = starter.communicate(timeout=60)
        assert starter.returncode == -signal.SIGKILL, words.decode()


def _holders(host: Host) -> list[str]:
    """Who holds cores, with no CPU in two entries (the ledger refuses to be read otherwise)."""
    return [entry.id for entry in read_entries(host.layout.ledger) if entry.placement.cpus]


def _disk_holders(host: Host) -> list[str]:
    return [disk.holder.machine_id for disk in persistent_disks(host.layout).list() if disk.holder is not None]


def _one_of_each(host: Host) -> None:
    """A keeper that was left without a starter ends by itself, so a moment later there is exactly one."""
    deadline = time.monotonic() + 5
    while True:
        alive = host.processes()
        if [len(alive[kind]) for kind in ("keeper", "vmm", "launcher")] == [1, 1, 0]:
            return
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("host", "place"),
    [
        *(("fake", place) for place in STARTING),
        *(
            ("qemu", place)
            for place in ("child.keeper", "start.ledger", "start.pinned", "start.booted", "start.committed")
        ),
    ],
    indirect=["host"],
)
def test_the_next_process_gets_the_machine(host: Host, place: str) -> None:
    spec = _spec(host, place)
    _die_at(host, place, spec)
    one = host.run(spec)
    assert one.machine.running()
    _one_of_each(host)
    assert host.processes()["vmm"] == [one.vmm]
    assert one.ask("status")["committed"] is True
    assert one.machine.status() == "running"
    assert _holders(host) == _disk_holders(host) == [spec.id]
    one.machine.destroy()
    assert host.processes() == NOTHING
    assert _holders(host) == _disk_holders(host) == []


@pytest.mark.parametrize(
    ("host", "place"),
    [
        *(("fake", place) for place in STARTING),
        *(
            ("qemu", place)
            for place in ("start.ledger", "start.spawned", "start.pinned", "start.recorded", "start.committed")
        ),
    ],
    indirect=["host"],
)
def test_the_next_process_takes_it_back(host: Host, place: str) -> None:
    spec = _spec(host, place)
    _die_at(host, place, spec)
    host.machines.destroy(spec.name, spec.id)
    assert host.processes() == NOTHING
    assert not host.layout.run(spec.id).root.exists()
    paths = host.layout.machine(spec.name)
    assert not paths.journal.exists()
    assert not paths.record.exists()
    assert not paths.uid.exists()
    assert _holders(host) == _disk_holders(host) == []


@pytest.mark.parametrize("place", STARTING)
def test_a_newer_start_takes_it_back_as_well(host: Host, place: str) -> None:
    """Nomad gives a retry a new id."""
    spec = _spec(host, place)
    _die_at(host, place, spec)
    one = host.start("tick", cores=CoresSpec(exclusive=True), disks=(DATA,))
    _one_of_each(host)
    assert _holders(host) == _disk_holders(host) == [one.machine.id]
    assert not host.layout.run(spec.id).root.exists()
    host.machines.destroy(spec.name, spec.id)
    one.until_line("tick 1")
    assert one.machine.running()


@pytest.mark.parametrize("place", STARTING)
def test_somebody_elses_machine_gets_core_and_disk_of_one_that_died_on_its_way(host: Host, place: str) -> None:
    """Of another task, so that nobody has taken anything back before it looks for a core."""
    spec = _spec(host, place)
    _die_at(host, place, spec)
    committed = place == "start.committed"
    deadline = time.monotonic() + 10
    while (owner := _try_to_start(host, spec)) is None and not committed:
        assert time.monotonic() < deadline, "a core or a disk leaked"
        time.sleep(0.1)
    assert _holders(host) == _disk_holders(host) == [spec.id if committed else owner]


def _try_to_start(host: Host, died: MachineSpec) -> str | None:
    """Another machine; None when it was refused because of the one that died."""
    try:
        return host.start("tick", task="db", cores=CoresSpec(exclusive=True), disks=(DATA,)).machine.id
    except (HostError, NoCapacityError) as exc:
        if died.name not in str(exc):
            raise
        return None


@pytest.mark.parametrize("host", ["fake", "qemu"], indirect=True)
def test_a_keeper_that_dies_while_it_starts_the_vmm_is_a_start_that_failed(host: Host) -> None:
    spec = host.spec()
    with host.elsewhere(spec, failpoint="child.vmm") as starter:
        _, words = starter.communicate(timeout=60)
    assert starter.returncode == 1
    assert "LaunchError: the keeper ended before the VMM ran" in words.decode()
    assert host.processes() == NOTHING
    assert not host.layout.run(spec.id).root.exists()
    assert not host.layout.machine(spec.name).journal.exists()


@pytest.mark.parametrize("host", ["fake", "qemu"], indirect=True)
def test_one_that_dies_while_it_starts_another_keeper_leaves_the_machine_alone(host: Host) -> None:
    one = host.start("tick")
    one.until_line(READY)
    one.kill_keeper()
    _die_at(host, "child.adopt", one.spec, do="settle")
    assert one.machine.running()
    # The keeper that was never told what to do holds the lock for a moment more; whoever watches tries again.
    deadline = time.monotonic() + 5
    while True:
        try:
            assert one.machine.settle() is None
            break
        except HypervisorError:
            assert time.monotonic() < deadline
        time.sleep(0.1)
    _one_of_each(host)
    assert one.err.text.count("keeper replaced") <= 1
    record = one.machine.stop(30)
    assert record is not None
    assert record.exit_code == 0
