"""What preflight, keeper and launcher cost: a machine's start over the same QEMU command run by hand."""

import os
import select
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from tests.bench.measure import Line, Settings, in_turns, line
from tests.fakes.direct_launch import direct_launch
from tests.guest.build import CMDLINE
from vmlib import probe
from vmlib.hypervisor.qemu import Qemu
from vmlib.hypervisor.select import attach
from vmlib.keeper.client import reap
from vmlib.machine import Machines
from vmlib.paths import Layout
from vmlib.resources import BootFiles, Credentials, OpenFile, Resources
from vmlib.running import Machine
from vmlib.settings import HostSettings
from vmlib.spec import DirectBoot, FileRef, MachineSpec

BANNER = b"chv test guest: up"
_BANNER_S = 120.0
_MEMORY_MIB = 128


def run(settings: Settings) -> list[Line]:
    by_hand: list[tuple[float, float]] = []
    ours: list[tuple[float, float]] = []
    numbers = count()
    directory = settings.directory("start")
    with machines_in(directory) as machines:

        def start_ours() -> float:
            # A new machine each time: a second start of one finds its kernel copied already.
            fifo = directory / f"console-{next(numbers)}"
            ours.append(started(machines, spec_of(fifo.name, settings.guest_dir, stdout=fifo)))
            return ours[-1][1]

        def start_theirs() -> float:
            by_hand.append(started_by_hand(settings.directory(f"hand-{next(numbers)}"), settings.guest_dir))
            return by_hand[-1][1]

        in_turns([start_theirs, start_ours], pairs=settings.pairs)
    by_hand, ours = by_hand[1:], ours[1:]  # the first of each was to warm up
    return [
        line(
            "start to banner",
            "Machines.start to the guest's banner / the same QEMU command run by hand to the banner",
            ours=[banner for _, banner in ours],
            baseline=[banner for _, banner in by_hand],
        ),
        line(
            "start to cont",
            "Machines.start until it returns / the same command by hand until QMP `cont` is answered",
            ours=[cont for cont, _ in ours],
            baseline=[cont for cont, _ in by_hand],
        ),
    ]


def qemu_here() -> Qemu:
    return Qemu(binary=probe.qemu_program("qemu-system-x86_64").path)


def spec_of(name: str, guest_dir: Path, *, stdout: Path = Path("/dev/null")) -> MachineSpec:
    return MachineSpec(
        id=f"bench/{name}/1",
        name=f"bench/{name}",
        owner="run",
        vcpus=1,
        memory_mib=_MEMORY_MIB,
        boot=DirectBoot(
            kernel=FileRef(root=guest_dir, relative="vmlinuz"),
            initrd=FileRef(root=guest_dir, relative="initrd.img"),
            cmdline=CMDLINE,
        ),
        stdout=stdout,
    )


@contextmanager
def machines_in(directory: Path) -> Iterator[Machines]:
    """Machines on QEMU, of which none is left when the block ends."""
    layout = Layout(directory / "data", directory / "run")
    machines = Machines(HostSettings(layout=layout), lambda _: (qemu_here(), "for the benchmark"), attach)
    try:
        yield machines
    finally:
        for mark in machines.marks():
            machines.remove(mark.name)
        reap()


def started(machines: Machines, spec: MachineSpec) -> tuple[float, float]:
    """Seconds until `start` returned and until the banner came through the log."""
    os.mkfifo(spec.stdout)
    log = os.open(spec.stdout, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        begin = time.perf_counter()
        machine: Machine = machines.start(spec)
        cont = time.perf_counter() - begin
        read_until(log, BANNER)
        banner = time.perf_counter() - begin
    finally:
        os.close(log)
    machine.destroy()
    return cont, banner


def read_until(fd: int, text: bytes) -> None:
    """Read a pipe that somebody writes. Raises TimeoutError when `text` does not come."""
    seen = b""
    deadline = time.monotonic() + _BANNER_S
    while text not in seen:
        if not select.select([fd], [], [], deadline - time.monotonic())[0]:
            raise TimeoutError(f"no {text!r} within {_BANNER_S:g} s, but {seen[-500:]!r}")
        seen += os.read(fd, 1 << 16)


def started_by_hand(run_dir: Path, guest_dir: Path) -> tuple[float, float]:
    """Seconds until `cont` was answered and until the banner came. Neither keeper nor launcher nor preflight."""
    begin = time.perf_counter()
    with ExitStack() as ours:

        def opened(name: str) -> OpenFile:
            path = guest_dir / name
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            ours.callback(os.close, fd)
            return OpenFile(fd=fd, path=path)

        qemu = qemu_here()
        boot = BootFiles(kernel=opened("vmlinuz"), initrd=opened("initrd.img"), cmdline=CMDLINE)
        res = Resources(run_dir=run_dir, credentials=Credentials(uid=os.getuid(), gid=os.getgid()), boot=boot)
        plan = qemu.plan(spec_of("hand", guest_dir), res, reason="by hand")
        machine = ours.enter_context(direct_launch(plan, run_dir))
        vmm = qemu.prepare(plan, run_dir, console=lambda _: None)
        ours.callback(vmm.close)
        vmm.boot()
        cont = time.perf_counter() - begin
        machine.until_line(BANNER.decode())
        banner = time.perf_counter() - begin
    return cont, banner
