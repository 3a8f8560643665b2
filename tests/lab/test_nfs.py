"""Machines with files on a real NFS server: where the mounts are, who else may write, and what a silent server does."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.machines import CHECKOUT, READY
from tests.lab import nfs_start
from tests.lab.conftest import KvmHost
from tests.lab.nfs_server import NfsServer, mounts
from vmlib.disk import nfs
from vmlib.errors import HostError, NoCapacityError, SpecError, VmError
from vmlib.keeper import client as keeper
from vmlib.keeper.plan import KeeperPlan
from vmlib.process import Identity
from vmlib.spec import DiskSpec, NfsExport, RootDisk

LAB_S = 90.0  # for what takes 5 s outside


def root_on(server: NfsServer, name: str = "disk.qcow2") -> RootDisk:
    return RootDisk(image=server.file(name), format="qcow2")


def test_a_machine_boots_from_an_image_on_a_server_and_leaves_no_mount(kvm_host: KvmHost, server: NfsServer) -> None:
    one = kvm_host.start(boot=None, root=root_on(server))
    (mount,) = mounts(kvm_host.layout.data_dir)
    where, flags, super_flags = mount.split()[4], mount.split()[5], mount.split()[-1]
    assert where == str(kvm_host.layout.nfs / one.machine.run.root.name / "vms")
    assert {"nosuid", "nodev", "noexec"} <= set(flags.split(","))
    assert {"hard", "nosharecache", "vers=4.2"} <= set(super_flags.split(","))
    assert stat.S_IMODE(os.stat(kvm_host.layout.nfs / one.machine.run.root.name).st_mode) == 0o700
    assert '"aio":"io_uring"' in Path(f"/proc/{one.vmm}/cmdline").read_text()
    one.until_line(READY, timeout_s=LAB_S)
    one.machine.stop(LAB_S)
    one.end(LAB_S)
    one.machine.destroy()
    assert mounts(kvm_host.layout.data_dir) == []
    assert not list(kvm_host.layout.nfs.iterdir())


def test_an_image_below_an_overlay_is_locked_against_every_writer(kvm_host: KvmHost, server: NfsServer) -> None:
    one = kvm_host.start(boot=None, root=root_on(server))
    writer = ["qemu-io", "-f", "qcow2", "-c", "write 0 512", str(server.directory / "disk.qcow2")]
    refused = subprocess.run(writer, capture_output=True, text=True, timeout=60, check=False)
    assert "Failed to get" in refused.stdout + refused.stderr  # on the server, past NFS
    one.machine.destroy()


def test_what_is_not_used_where_it_lies_is_copied(kvm_host: KvmHost, server: NfsServer) -> None:
    source = server.file("data.raw", read_only=True)
    spec = kvm_host.spec("read=ro read=rw write=rw:changed read=rw")
    assert spec.boot is not None
    one = kvm_host.run(
        replace(
            spec,
            boot=replace(spec.boot, kernel=server.file("vmlinuz", read_only=True)),
            disks=(
                DiskSpec(name="ro", format="raw", source=source, readonly=True, serial="ro"),
                DiskSpec(name="rw", format="raw", source=source, serial="rw"),
            ),
        )
    )
    (mount,) = mounts(kvm_host.layout.data_dir)
    assert mount.split()[5].startswith("ro,")
    one.until_line("read rw changed", timeout_s=LAB_S)
    assert [line for line in one.out.lines if line.startswith("read ")][:2] == [
        "read ro fromtheserver",
        "read rw fromtheserver",
    ]
    assert (server.directory / "data.raw").read_bytes().startswith(b"from the server")
    one.machine.destroy()


@pytest.mark.parametrize(
    ("relative", "error", "words"),
    [
        (
            "none.qcow2",
            SpecError,
            "image = 'nfs://vms/none.qcow2': no such file or directory, expected a readable file",
        ),
        ("out/passwd", SpecError, "image = 'nfs://vms/out/passwd': leads out of nfs://vms, expected a file beneath it"),
        ("fifo.qcow2", SpecError, "image = 'nfs://vms/fifo.qcow2': not a regular file"),
        ("text.qcow2", SpecError, "image = 'nfs://vms/text.qcow2': declared qcow2, but its header says raw"),
    ],
)
def test_a_file_that_cannot_be_is_refused_by_its_name(
    kvm_host: KvmHost, server: NfsServer, relative: str, error: type[VmError], words: str
) -> None:
    with contextlib.suppress(FileExistsError):
        (server.directory / "out").symlink_to("/etc")
        os.mkfifo(server.directory / "fifo.qcow2")
        (server.directory / "text.qcow2").write_text("text")
    with pytest.raises(error) as exc:
        kvm_host.start(boot=None, root=root_on(server, relative))
    assert str(exc.value).startswith(words)
    assert mounts(kvm_host.layout.data_dir) == []


def test_an_export_that_is_none_is_the_operators_business(kvm_host: KvmHost, server: NfsServer) -> None:
    image = replace(server.file("disk.qcow2"), nfs=replace(server.export(), export="/srv/none"))
    with pytest.raises(HostError, match=r"^nfs\.vms \(127\.0\.0\.1:/srv/none\): no such file or directory$"):
        kvm_host.start(boot=None, root=RootDisk(image=image, format="qcow2"))


def test_a_root_disk_on_a_server_is_one_machines_alone(kvm_host: KvmHost, server: NfsServer) -> None:
    writer = Writer(kvm_host, server, "alone")
    with pytest.raises(NoCapacityError, match=r"^image = 'nfs://vms/alone\.raw': in use by another machine$"):
        kvm_host.start(task="second", root=RootDisk(image=server.file("alone.raw"), format="raw", mode="direct"))
    with pytest.raises(NoCapacityError, match=r"^image = 'nfs://vms/alone\.raw': another machine writes to it"):
        kvm_host.start(task="second", root=RootDisk(image=server.file("alone.raw"), format="raw"))
    other = subprocess.run(  # on the server, as another host would
        ["qemu-io", "-f", "raw", "-c", "write 0 512", str(server.directory / "alone.raw")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Failed to get" in other.stdout + other.stderr
    writer.running.machine.destroy()
    root = RootDisk(image=server.file("alone.raw"), format="raw", mode="direct", size_bytes=32 << 20)
    kvm_host.start(task="second", root=root).machine.destroy()
    assert (server.directory / "alone.raw").stat().st_size == 32 << 20


# -- killed in between -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["start.mounted", "child.far"])
def test_a_start_that_was_killed_leaves_no_mount(kvm_host: KvmHost, server: NfsServer, place: str) -> None:
    marker = kvm_host.directory / "marker"
    marker.touch()
    killed = subprocess.run(
        [sys.executable, "-m", "tests.lab.nfs_start", str(kvm_host.directory), str(server.directory)],
        cwd=CHECKOUT,
        env=os.environ | {"CHV_FAILPOINT": f"{place}:{marker}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    time.sleep(3.0)  # for a child that was at work on it
    assert len(mounts(kvm_host.layout.data_dir)) == (place == "start.mounted")
    spec = kvm_host.spec(task=nfs_start.TASK)
    kvm_host.machines.destroy(spec.name, spec.id)
    assert mounts(kvm_host.layout.data_dir) == []
    assert not any(kvm_host.layout.nfs.iterdir()) if kvm_host.layout.nfs.exists() else True


# -- a silent server -------------------------------------------------------------------------------------------------


def test_a_silent_server_fails_a_start_soon_and_no_other_one(kvm_host: KvmHost, server: NfsServer) -> None:
    server.cut()
    found: list[BaseException | float] = []

    def start() -> None:
        began = time.monotonic()
        try:
            kvm_host.machines.start(spec)
        except VmError as exc:
            found.extend((exc, time.monotonic() - began))

    spec = kvm_host.spec(task="db", boot=None, root=root_on(server))
    thread = threading.Thread(target=start)
    thread.start()
    other = kvm_host.start()
    other.until_line(READY, timeout_s=LAB_S)
    thread.join(60)
    error, took_s = found
    assert isinstance(error, NoCapacityError)
    assert str(error) == "nfs.vms (127.0.0.1:/srv/vms): no answer within 5 s"
    assert isinstance(took_s, float)
    assert took_s < 30
    other.machine.destroy()


def test_a_server_that_falls_silent_in_a_start_fails_it_and_is_unmounted(
    kvm_host: KvmHost, server: NfsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = nfs.mount

    def mount_and_cut(export: NfsExport, target: Path) -> None:
        really(export, target)
        server.cut()

    monkeypatch.setattr(nfs, "mount", mount_and_cut)
    began = time.monotonic()
    with pytest.raises(NoCapacityError, match=r"^image = 'nfs://vms/disk\.qcow2': 127\.0\.0\.1 did not answer within"):
        kvm_host.start(boot=None, root=root_on(server))
    assert time.monotonic() - began < 40
    assert mounts(kvm_host.layout.data_dir) == []


def test_a_server_that_falls_silent_before_the_vmm_has_its_disks_fails_the_start_for_now(
    kvm_host: KvmHost, server: NfsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = keeper.start_keeper

    def cut_and_start(plan: KeeperPlan) -> tuple[keeper.Lease, Identity]:
        server.cut()
        return really(plan)

    monkeypatch.setattr(keeper, "start_keeper", cut_and_start)
    with pytest.raises(NoCapacityError, match=r"^nfs\.vms \(127\.0\.0\.1\): no answer within 5 s$"):
        kvm_host.start(boot=None, root=root_on(server))
    assert mounts(kvm_host.layout.data_dir) == []


class Writer:
    """A machine whose root disk is a file on the server, to which it writes again and again."""

    def __init__(self, host: KvmHost, server: NfsServer, task: str) -> None:
        with (server.directory / f"{task}.raw").open("wb") as file:
            file.truncate(16 << 20)
        self.name = task
        root = RootDisk(image=server.file(f"{task}.raw"), format="raw", mode="direct")
        self.running = host.start("ignore-acpi keep-writing=root", task=task, root=root)

    @property
    def written(self) -> int:
        self.running.pump()
        return self.running.out.text.count("\nwrote root ")

    def goes_on(self, *, timeout_s: float = LAB_S) -> None:
        """It writes three times more."""
        before = self.written
        self.running.until(lambda: self.written >= before + 3, f"{self.name} to write", timeout_s)
        assert "not wrote root" not in self.running.out.text

    def stands_still(self) -> None:
        """Whatever was on its way has arrived, and nothing follows."""
        deadline = time.monotonic() + 30
        while True:
            before = self.written
            self.running.pass_time(3.0)
            if self.written == before:
                return
            assert time.monotonic() < deadline


def test_a_silent_server_holds_up_neither_stop_nor_destroy_nor_another_machine(
    kvm_host: KvmHost, server: NfsServer
) -> None:
    stopped, left = writers = Writer(kvm_host, server, "a"), Writer(kvm_host, server, "b")
    for one in writers:
        one.goes_on()
    server.cut()
    for one in writers:
        one.stands_still()
    assert kvm_host.machines.recover("alloc/a", stopped.running.spec.id).running()

    began = time.monotonic()
    stopped.running.machine.stop(1.0)
    assert stopped.running.machine.exit_record() is not None
    stopped.running.machine.destroy()
    assert time.monotonic() - began < 1.0 + 15.0
    (mount,) = mounts(kvm_host.layout.data_dir)
    assert str(left.running.machine.run.root.name) in mount

    other = kvm_host.start(task="c")
    other.until_line(READY, timeout_s=LAB_S)
    other.machine.destroy()

    server.heal()  # what was left running goes on
    left.goes_on(timeout_s=180)

    server.cut()
    left.stands_still()
    began = time.monotonic()
    kvm_host.machines.destroy(left.running.spec.name, left.running.spec.id)
    assert time.monotonic() - began < 15.0
    assert mounts(kvm_host.layout.data_dir) == []


def test_what_frees_one_machine_leaves_another_on_the_same_export_alone(kvm_host: KvmHost, server: NfsServer) -> None:
    forced, other = Writer(kvm_host, server, "forced"), Writer(kvm_host, server, "other")
    top = kvm_host.layout.mounts(forced.running.machine.run.root)
    for _ in range(3):
        nfs.abort(top)
        other.goes_on()
    for one in (forced, other):
        one.running.machine.destroy()
    assert mounts(kvm_host.layout.data_dir) == []
