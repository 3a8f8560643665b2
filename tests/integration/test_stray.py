"""What nobody owns goes after the grace, by our own marks and with one line each; what is somebody's stays."""

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.integration.machines import DATA, NOTHING, Host, Running
from vmlib import cgroup, process
from vmlib.cores.ledger import read_entries
from vmlib.keeper.client import reap
from vmlib.paths import run_key
from vmlib.spec import CoresSpec, MountSpec
from vmlib.sweep import Sweeper

GRACE_S = 300.0
LONG_AGO = time.time() - 3600


def sweeper(host: Host, *, owner: str = "dev", dry_run: bool = False) -> Sweeper:
    return Sweeper(machines=host.machines, owner=owner, gone_s=60.0, orphan_grace_s=GRACE_S, dry_run=dry_run)


def sweep_late(host: Host, *, dry_run: bool = False) -> list[str]:
    """After the grace, with a look before it that finds the same and removes nothing."""
    one = sweeper(host, dry_run=dry_run)
    assert one.sweep(0.0) == one.sweep(GRACE_S - 1) == []
    return one.sweep(GRACE_S)


def groups(one: Running) -> list[Path]:
    return [path for path, _ in cgroup.marked(run_key(one.machine.id))]


def expect_gone(host: Host, *runs: Running) -> None:
    reap()
    for one in runs:
        assert not process.alive(one.machine.vmm_identity)
        assert groups(one) == []
        assert not one.machine.run.root.exists()
    host.machines.cores.reconcile()
    assert not {one.machine.id for one in runs} & {entry.id for entry in read_entries(host.layout.ledger)}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="vmlib.sweep")
    return caplog


def said(lines: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in lines.records if record.name == "vmlib.sweep"]


def start(host: Host, *, task: str = "web") -> Running:
    return host.start("tick", task=task, cores=CoresSpec(exclusive=True), disks=(DATA,))


def test_a_start_whose_machine_is_forgotten_is_taken_back_by_its_run_directory(
    fake: Host, lines: pytest.LogCaptureFixture
) -> None:
    one = start(fake)
    shutil.rmtree(fake.layout.machine(one.spec.name).root.parent)
    assert sweep_late(fake, dry_run=True) == [str(one.machine.run.root)]
    assert process.alive(one.machine.vmm_identity)
    assert sweep_late(fake) == [str(one.machine.run.root)]
    why = f"run={one.machine.run.root}: neither journal nor record of alloc/web names it"
    assert said(lines) == [f"would remove {why}", f"removed {why}"]
    expect_gone(fake, one)
    assert fake.processes() == NOTHING
    assert start(fake, task="db").machine.running()  # with the core and the disk


def test_processes_without_a_run_directory_are_found_by_their_cgroup(
    fake: Host, lines: pytest.LogCaptureFixture
) -> None:
    one = start(fake)
    (*_, group) = groups(one)
    shutil.rmtree(fake.layout.machine(one.spec.name).root.parent)
    shutil.rmtree(one.machine.run.root)
    assert sweep_late(fake) == [str(group)]
    assert said(lines) == [f"removed cgroup={group}: {one.machine.run.root} is gone"]
    expect_gone(fake, one)
    assert fake.processes() == NOTHING


@pytest.mark.parametrize("lost", [("journal",), ("mark.json",), ("journal", "mark.json")])
def test_one_that_has_lost_a_file_goes_on_and_is_destroyed_whole(fake: Host, lost: tuple[str, ...]) -> None:
    one = start(fake)
    for name in lost:
        (fake.layout.machine(one.spec.name).root / name).unlink()
    assert sweep_late(fake) == []
    assert one.machine.running()
    fake.machines.destroy(one.spec.name, one.machine.id)
    expect_gone(fake, one)
    assert fake.processes() == NOTHING


def test_one_of_another_owner_or_another_data_directory_is_not_ours(fake: Host) -> None:
    one = start(fake)
    shutil.rmtree(fake.layout.machine(one.spec.name).root.parent)
    assert sweeper(fake, owner="nomad").sweep(0.0) == []
    other = sweeper(fake, owner="nomad")
    other.orphan_grace_s = 0.0
    assert other.sweep(0.0) == []
    elsewhere = Host(fake.directory / "else", fake.guest, "fake")
    elsewhere.layout.data_dir.mkdir(parents=True)
    elsewhere.layout.run_dir.symlink_to(fake.layout.run_dir)
    assert sweep_late(elsewhere) == []
    assert one.machine.running()
    assert sweep_late(fake) == [str(one.machine.run.root)]
    reap()


def test_what_looks_like_ours_and_bears_no_mark_stays(fake: Host) -> None:
    group = cgroup.read_layout().tops[0] / run_key("look-alike")
    run_dir = fake.layout.runs / run_key("look-alike")
    run_dir.mkdir(parents=True)
    (run_dir / "plan.json").write_text("{}")
    cgroup.create([group / "vmm"])
    with subprocess.Popen(["qemu-system-x86_64", "60"], executable="/bin/sleep", cwd=run_dir) as alike:
        try:
            cgroup.join(group / "vmm", alike.pid)
            assert sweep_late(fake) == []
            assert alike.poll() is None
        finally:
            alike.kill()
            alike.wait()
            cgroup.remove(group / "vmm")
            shutil.rmtree(run_dir)


def test_half_made_things_go_once_they_are_old(fake: Host) -> None:
    one = start(fake)
    layout = fake.layout
    half = layout.machine("alloc/half")
    for path in (half.root, layout.machines / "empty", layout.disks / ".0123456789ab.0a1b2c3d"):
        path.mkdir(parents=True)
    half.lock.touch()
    (layout.runs / "000000000000").mkdir()
    machine = layout.machine(one.spec.name).root
    torn = [layout.data_dir / ".ledger.json.00112233", machine / ".exit.json.00112233"]
    kept = [layout.data_dir / ".mine", machine / ".notes.txt", machine / "disk" / "notes.00112233"]
    (machine / "disk").mkdir(exist_ok=True)
    for path in (*torn, *kept):
        path.touch()
    # The rest somebody may just be making.
    assert sweep_late(fake) == [str(layout.disks / ".0123456789ab.0a1b2c3d")]
    aged = (*torn, half.root, layout.machines / "empty", layout.runs / "000000000000")
    for path in (*aged, *kept):
        os.utime(path, (LONG_AGO, LONG_AGO))
    assert sorted(sweep_late(fake)) == sorted(map(str, aged))
    assert not any(path.exists() for path in aged)
    assert all(path.exists() for path in kept)
    assert one.machine.running()
    for path in kept:
        path.unlink()


def test_nothing_is_stray_while_the_directory_of_machines_is_out_of_sight(fake: Host) -> None:
    one = start(fake)
    away = fake.layout.machines.with_name("elsewhere")
    fake.layout.machines.rename(away)
    assert sweep_late(fake) == []
    away.rename(fake.layout.machines)
    assert one.machine.running()


def test_a_machine_is_not_stray_by_what_another_directory_in_the_place_of_ours_says(fake: Host) -> None:
    """A filesystem was unmounted, and the next start has made everything anew beneath."""
    one = start(fake)
    data, away = fake.layout.data_dir, fake.layout.data_dir.with_name("elsewhere")
    data.rename(away)
    fake.layout.machines.mkdir(parents=True)
    assert sweep_late(fake) == []
    assert one.machine.running()
    shutil.rmtree(data)
    away.rename(data)
    shutil.rmtree(fake.layout.machine(one.spec.name).root.parent)
    assert sweep_late(fake) == [str(one.machine.run.root)]
    expect_gone(fake, one)


def test_a_lock_above_the_data_directory_is_not_ours(fake: Host) -> None:
    fake.layout.machines.mkdir(parents=True)
    torn = fake.layout.data_dir / ".ledger.json.00112233"
    torn.touch()
    os.utime(torn, (LONG_AGO, LONG_AGO))
    (above := fake.layout.data_dir.parent / "lock").mkdir()
    assert sweep_late(fake) == [str(torn)]
    above.rmdir()


def test_the_empty_place_of_a_mount_goes(fake: Host) -> None:
    """A host was rebooted, or somebody was killed before the mount, and the journal is lost."""
    fake.layout.machines.mkdir(parents=True)
    place = fake.layout.mounts(fake.layout.runs / "0123456789ab") / "vms"
    place.mkdir(parents=True)
    assert sweep_late(fake) == [str(place.parent)]
    assert not place.parent.exists()
    assert sweep_late(fake) == []


def test_the_next_start_ends_the_one_whose_journal_and_record_are_lost(fake: Host) -> None:
    """Its uid would have two VMMs, else."""
    one = start(fake)
    paths = fake.layout.machine(one.spec.name)
    for lost in (paths.root / "journal", paths.record):
        lost.unlink()
    paths.uid.write_text("200000")
    assert start(fake).machine.running()
    expect_gone(fake, one)


def test_two_sweepers_at_once_do_no_harm_and_tell_each_removal_once(
    fake: Host, lines: pytest.LogCaptureFixture
) -> None:
    lost = [fake.start("tick", task=f"lost{n}", alive_while=fake.directory / f"gone{n}") for n in range(3)]
    kept = start(fake)
    sweepers = [sweeper(fake), sweeper(fake)]
    for one in sweepers:
        one.sweep(0.0)
    threads = [threading.Thread(target=one.sweep, args=(GRACE_S,)) for one in sweepers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expect_gone(fake, *lost)
    assert sorted(said(lines)) == [f"removed machine=alloc/lost{n}: {fake.directory}/gone{n} is gone" for n in range(3)]
    assert kept.machine.running()


def test_a_machine_half_of_which_is_removed_is_removed_by_the_next(fake: Host) -> None:
    """Whoever removes one is killed in the middle."""
    one = fake.start("tick", alive_while=fake.directory / "gone", disks=(DATA,))
    words = (
        "import os, shutil, signal, sys; from pathlib import Path\n"
        "import tests.integration.machines as m\n"
        "rmtree = shutil.rmtree\n"
        "def die(path, **kw):\n"
        f"    if Path(path) == Path({str(fake.layout.machine(one.spec.name).root)!r}): os.kill(os.getpid(), 9)\n"
        "    rmtree(path, **kw)\n"
        "shutil.rmtree = die\n"
        f"m.Host(Path({str(fake.directory)!r}), Path({str(fake.guest)!r}), 'fake').machines.remove({one.spec.name!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", words], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -9
    assert [path.name for path in sorted(fake.layout.machine(one.spec.name).root.iterdir())] == ["lock", "mark.json"]
    again = sweeper(fake)
    assert again.sweep(0.0) == []
    assert again.sweep(60.0) == [one.spec.name]
    assert list(fake.layout.machines.iterdir()) == []
    reap()


@pytest.mark.needs("virtiofsd")
@pytest.mark.parametrize("lost", ["nothing", "machine", "machine and run directory"])
def test_a_helper_that_outlives_its_keeper_and_vmm_goes_with_what_is_left(qemu: Host, lost: str) -> None:
    """Keeper and VMM are killed; a virtiofsd, which has a child that serves, may be left."""
    shared = qemu.directory / "shared"
    shared.mkdir()
    mounts = (MountSpec(source=shared, guest_path="/srv/data"),)
    one = qemu.start(mounts=mounts, alive_while=qemu.directory / "gone")
    helpers = [path for path, _ in cgroup.marked(run_key(one.machine.id))]
    served = {pid for path in helpers for pid in cgroup.pids(path)} - {one.vmm, one.keeper.pid}
    known = [who for who in map(process.identify, served) if who is not None]
    assert known
    one.kill_keeper()
    assert process.send_signal(one.machine.vmm_identity, 9)
    assert process.wait_gone(one.machine.vmm_identity, 10.0)
    if lost != "nothing":
        shutil.rmtree(qemu.layout.machine(one.spec.name).root.parent)
    if lost == "machine and run directory":
        shutil.rmtree(one.machine.run.root)
    sweeping = sweeper(qemu)
    sweeping.sweep(0.0)
    assert len(sweeping.sweep(GRACE_S)) == 1
    expect_gone(qemu, one)
    assert not any(process.alive(who) for who in known)
