"""What only QEMU has: disks given by descriptor, user-mode links, boot by firmware; and how small the fake is."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fakes.direct_launch import DirectMachine, direct_launch
from tests.guest.build import Guest
from vmlib import probe
from vmlib.hypervisor.fake import Fake
from vmlib.hypervisor.qemu import Qemu
from vmlib.resources import BootFiles, Credentials, DiskAttachment, Forward, OpenFile, Resources, UserNic
from vmlib.spec import MachineSpec

READY = "chv test guest: ready"


class Bench:
    """Opens files for a machine and starts it."""

    def __init__(self, run_dir: Path, stack: ExitStack) -> None:
        self.run_dir = run_dir
        self._stack = stack

    def open(self, path: Path, flags: int = os.O_RDONLY) -> OpenFile:
        fd = os.open(path, flags | os.O_CLOEXEC)
        self._stack.callback(os.close, fd)
        return OpenFile(fd=fd, path=path)

    def boot(
        self, *, boot: BootFiles | None = None, disks: tuple[DiskAttachment, ...] = (), nics: tuple[UserNic, ...] = ()
    ) -> DirectMachine:
        qemu = Qemu(binary=probe.qemu_program("qemu-system-x86_64").path)
        spec = MachineSpec(id="qemu/1", name="qemu", owner="run", vcpus=1, memory_mib=256)
        res = Resources(
            run_dir=self.run_dir,
            credentials=Credentials(uid=os.getuid(), gid=os.getgid()),
            boot=boot,
            disks=disks,
            nics=nics,
        )
        plan = qemu.plan(spec, res, reason="test")
        machine = self._stack.enter_context(direct_launch(plan, self.run_dir))
        vmm = qemu.prepare(plan, self.run_dir, console=lambda _: None)
        self._stack.callback(vmm.close)
        vmm.boot()
        return machine


@pytest.fixture
def bench(short_dir: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(short_dir, stack)


def make_overlay(path: Path, backing: Path, backing_format: str) -> None:
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(backing), "-F", backing_format, str(path)], check=True
    )


@pytest.mark.parametrize("backing_format", ["raw", "qcow2"])
def test_an_overlay_boots_by_firmware_and_its_image_stays_as_it_is(
    bench: Bench, guest: Guest, tmp_path: Path, backing_format: str
) -> None:
    image = guest.disk_raw if backing_format == "raw" else guest.disk_qcow2
    before = image.stat().st_mtime_ns
    make_overlay(tmp_path / "overlay", image, backing_format)
    # The name in the header leads nowhere: only what we pass is used.
    subprocess.run(
        ["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/nowhere", str(tmp_path / "overlay")],
        check=True,
    )
    root = DiskAttachment(
        name="root",
        file=bench.open(tmp_path / "overlay", os.O_RDWR),
        format="qcow2",
        backing=bench.open(image),
        backing_format="raw" if backing_format == "raw" else "qcow2",
    )
    machine = bench.boot(disks=(root,))
    machine.until_line(READY)
    machine.until_line("disk vda 33554432")
    assert image.stat().st_mtime_ns == before


def test_disks_links_and_forwards_reach_the_guest(bench: Bench, guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "data.raw").write_bytes(b"\0" * (1 << 20))
    (tmp_path / "seed.raw").write_bytes(b"\0" * (1 << 16))
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        port: int = probe_socket.getsockname()[1]
    machine = bench.boot(
        boot=BootFiles(
            kernel=bench.open(guest.kernel),
            initrd=bench.open(guest.initrd),
            cmdline="console=ttyS0 quiet panic=-1 no_timer_check http=80",
        ),
        disks=(
            DiskAttachment(
                name="data", file=bench.open(tmp_path / "data.raw", os.O_RDWR), format="raw", serial="one,two=3"
            ),
            DiskAttachment(name="seed", file=bench.open(tmp_path / "seed.raw"), format="raw", readonly=True),
        ),
        nics=(
            UserNic(
                name="net0",
                mac="52:54:00:12:34:56",
                forwards=(Forward(protocol="tcp", host_ip="127.0.0.1", host_port=port, guest_port=80),),
            ),
        ),
    )
    machine.until_line("http on port 80")
    machine.until_line("disk vda 1048576 one,two=3")
    machine.until_line("disk vdb 65536")
    machine.until_line("address eth0 10.0.2.15")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while data := client.recv(4096):
            answer += data
    assert b"hello from chv-guest" in answer


def test_a_taken_port_is_named_in_qemus_last_words(bench: Bench, guest: Guest) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port: int = taken.getsockname()[1]
        nic = UserNic(
            name="net0",
            mac="52:54:00:12:34:56",
            forwards=(Forward(protocol="tcp", host_ip="127.0.0.1", host_port=port, guest_port=80),),
        )
        boot = BootFiles(kernel=bench.open(guest.kernel), initrd=None, cmdline="")
        with pytest.raises(AssertionError, match=f"tcp:127.0.0.1:{port}-:80"):
            bench.boot(boot=boot, nics=(nic,))


def test_the_fake_is_small(short_dir: Path) -> None:
    spec = MachineSpec(id="fake/1", name="fake", owner="run", vcpus=1, memory_mib=4096)
    res = Resources(run_dir=short_dir, credentials=Credentials(uid=os.getuid(), gid=os.getgid()))
    plan = Fake().plan(spec, res, reason="test")
    with direct_launch(plan, short_dir) as machine:
        vmm = Fake().prepare(plan, short_dir, console=lambda _: None)
        vmm.boot()
        vmm.close()
        machine.until_line(READY)
        rollup = Path(f"/proc/{machine.process.pid}/smaps_rollup").read_text()
        private_kib = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
        cpu_before = _cpu_ticks(machine.process.pid)
        machine.pump(0.5)
        machine.pump(0.5)
        assert private_kib < 16 * 1024
        assert _cpu_ticks(machine.process.pid) - cpu_before <= 1  # it waits, it does not spin


def _cpu_ticks(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    fields = text[text.rindex(")") + 2 :].split()
    return int(fields[11]) + int(fields[12])
