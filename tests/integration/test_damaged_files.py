"""A file of ours that is half written or garbage is set aside with a message; the task starts, and nothing is lost."""

import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.machines import DATA, Host, Running, host_for, root_of
from vmlib import aside, process
from vmlib.cores.ledger import read_entries
from vmlib.paths import run_key
from vmlib.spec import CoresSpec, SeedSpec

# Disks and what is made of the job's own files: their content is the guest's, or compared with its source.
_CONTENT = ("disk.raw", "root-overlay.qcow2", "root-base.qcow2", "seed.iso", "kernel", "initrd", "lock")
DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "half": lambda whole: whole[: len(whole) // 2],
    "zeros": lambda whole: b"\0" * len(whole),
    "other": lambda _: b'{"version": 1}',
    "unreadable": lambda _: None,  # as on a disk that fails: a link to itself cannot be read either
}


@pytest.fixture
def host(guest: Guest, short_dir: Path) -> Iterator[Host]:
    with host_for(short_dir, guest.directory, "fake") as one:
        yield one
        for path in aside.found(one.layout):
            path.unlink()


def _files(host: Host) -> list[Path]:
    """All that we keep of a machine and of the node, except content."""
    found = [path for path in host.layout.data_dir.rglob("*") if path.is_file()]
    return [
        path
        for path in found
        if path.name not in _CONTENT
        and path.suffix != ".lock"
        and ".corrupt-" not in path.name
        and path.parent.name != "images"
    ]


def _crashed(host: Host) -> Running:
    """A machine that ended together with its keeper, so that nobody has taken anything back."""
    seed = SeedSpec(instance_id="i", hostname="h")
    root = root_of(host.guest, "disk.qcow2")
    one = host.start("tick", cores=CoresSpec(exclusive=True), disks=(DATA,), seed=seed, root=root)
    one.kill_keeper()
    assert process.send_signal(one.machine.vmm_identity, signal.SIGKILL)
    assert process.wait_gone(one.machine.vmm_identity, 5.0)
    return one


def _expect_alone(host: Host, one: Running) -> None:
    """It runs, has its core and its disk, and nothing is left of those before."""
    assert one.machine.running()
    assert [entry.id for entry in read_entries(host.layout.ledger) if entry.placement.cpus] == [one.machine.id]
    assert [path.name for path in host.layout.runs.iterdir()] == [run_key(one.machine.id)]
    assert host.processes()["vmm"] == [one.vmm]


def damage(path: Path, how: str) -> None:
    content = DAMAGE[how](path.read_bytes())
    if content is None:
        path.unlink()
        path.symlink_to(path)
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("how", DAMAGE)
def test_no_damaged_file_keeps_a_task_from_starting(host: Host, how: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    _crashed(host)
    disk = next(host.layout.disks.glob("*/disk.raw"))
    disk.write_bytes(b"precious".ljust(disk.stat().st_size))
    for path in _files(host):
        name = path.relative_to(host.layout.data_dir)
        damage(path, how)
        _crashed(host)
        assert disk.read_bytes().startswith(b"precious"), name
        assert path.exists() or ".corrupt-" in "".join(one.name for one in path.parent.iterdir()), name
    _expect_alone(host, host.start("tick", cores=CoresSpec(exclusive=True), disks=(DATA,)))
    said = [record.message for record in caplog.records if "was damaged and is kept as" in record.message]
    names = {path.name.partition(".corrupt-")[0] for path in aside.found(host.layout)}
    assert names >= {"machine.json", "mark.json", "ledger.json", "holder.json", "disk.json"}
    assert all(any(name in line for line in said) for name in names)


def test_all_of_them_damaged_at_once(host: Host) -> None:
    _crashed(host)
    for path in _files(host):
        path.write_bytes(b"\xff" * 64)
    _expect_alone(host, host.start("tick", cores=CoresSpec(exclusive=True), disks=(DATA,)))


def test_a_machine_that_runs_keeps_its_core_and_its_disk_whatever_is_damaged(host: Host) -> None:
    one = host.start("tick", cores=CoresSpec(exclusive=True), disks=(DATA,))
    for path in _files(host):
        if path.name in ("machine.json", "journal"):
            continue  # that and the run directory are what it is found by
        path.write_bytes(b"\0")
        with pytest.raises(Exception, match=rf"{one.spec.name}|no core|cores? free"):
            host.start("tick", task="db", cores=CoresSpec(exclusive=True), disks=(DATA,))
        assert one.machine.running()
    host.machines.cores.reconcile()
    assert [entry.id for entry in read_entries(host.layout.ledger) if entry.placement.cpus] == [one.machine.id]


def test_an_overlay_that_was_set_aside_is_told_of(host: Host) -> None:
    _crashed(host)
    (overlay,) = host.layout.machines.glob("*/*/disk/root-overlay.qcow2")
    damage(overlay.with_suffix(".image.json"), "half")  # nobody knows any more what the overlay is over
    root = root_of(host.guest, "disk.qcow2")
    assert host.start("tick", root=root).machine.running()
    assert {path.name.partition(".corrupt-")[0] for path in aside.found(host.layout)} == {
        overlay.name,
        overlay.with_suffix(".image.json").name,
    }
