"""What preflight, keeper and launcher cost: a machine's start over the same VMM run by hand."""

import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from pathlib import Path

from tests import needs
from tests.bench.measure import LeftOutError, Line, Settings, in_turns, line
from tests.fakes.ch.install import install
from tests.fakes.direct_cloud import direct_cloud
from tests.fakes.direct_launch import DirectMachine, direct_launch
from tests.guest.build import CMDLINE
from vmlib import probe
from vmlib.handover import with_vmm_dir
from vmlib.hypervisor.base import Hypervisor, LaunchPlan
from vmlib.hypervisor.cloud_hypervisor import CloudHypervisor
from vmlib.hypervisor.qemu import Qemu
from vmlib.hypervisor.select import attach
from vmlib.keeper.client import reap
from vmlib.machine import Machines
from vmlib.paths import Layout, RunPaths
from vmlib.resources import BootFiles, Credentials, OpenFile, Resources
from vmlib.running import Machine
from vmlib.settings import HostSettings
from vmlib.spec import DirectBoot, FileRef, MachineSpec

BANNER = b"chv test guest: up"
_BANNER_S = 120.0
_MEMORY_MIB = 128
_MEMORY_MAX_MIB = 1024  # the fake has a QEMU inside


def run(settings: Settings) -> list[Line]:
    return _compared(settings, qemu_here(), "", "the same QEMU command run by hand", "cont")


def run_cloud(settings: Settings) -> list[Line]:
    """On the fake, whose guest is a real one under QEMU: calls and processes as with the real program."""
    fake = install(settings.directory("fake"), guest="qemu")
    return _compared_cloud(settings, fake, "cloud hypervisor's fake, ")


def run_real_cloud(settings: Settings) -> list[Line]:
    for need in ("cloud-hypervisor", "kvm"):
        if why := needs.lacking(need):
            raise LeftOutError(why)
    binary = needs.find_cloud_hypervisor()
    assert binary is not None
    return _compared_cloud(settings, binary, "cloud hypervisor, ")


def _compared_cloud(settings: Settings, binary: Path, prefix: str) -> list[Line]:
    cloud = CloudHypervisor(binary=str(binary), version="53.0")
    return _compared(settings, cloud, prefix, "the same command line and calls by hand", "vm.boot")


def _compared(settings: Settings, hypervisor: Hypervisor, prefix: str, theirs: str, last_call: str) -> list[Line]:
    by_hand: list[tuple[float, float]] = []
    ours: list[tuple[float, float]] = []
    numbers = count()
    directory = settings.directory(f"start-{hypervisor.name}")
    with machines_in(directory, hypervisor) as machines:

        def start_ours() -> float:
            # A new machine each time: a second start of one finds its kernel copied already.
            fifo = directory / f"console-{next(numbers)}"
            ours.append(started(machines, spec_of(fifo.name, settings.guest_dir, stdout=fifo)))
            return ours[-1][1]

        def start_theirs() -> float:
            place = settings.directory(f"hand-{hypervisor.name}-{next(numbers)}")
            by_hand.append(started_by_hand(hypervisor, place, settings.guest_dir))
            return by_hand[-1][1]

        in_turns([start_theirs, start_ours], pairs=settings.pairs)
    by_hand, ours = by_hand[1:], ours[1:]  # the first of each was to warm up
    return [
        line(
            f"{prefix}start to banner",
            f"Machines.start to the guest's banner / {theirs} to the banner",
            ours=[banner for _, banner in ours],
            baseline=[banner for _, banner in by_hand],
        ),
        line(
            f"{prefix}start to {last_call}",
            f"Machines.start until it returns / {theirs} until `{last_call}` is answered",
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
        memory_max_mib=_MEMORY_MAX_MIB,
        boot=DirectBoot(
            kernel=FileRef(root=guest_dir, relative="vmlinuz"),
            initrd=FileRef(root=guest_dir, relative="initrd.img"),
            cmdline=CMDLINE,
        ),
        stdout=stdout,
    )


@contextmanager
def machines_in(directory: Path, hypervisor: Hypervisor | None = None) -> Iterator[Machines]:
    """Machines on QEMU or `hypervisor`, of which none is left when the block ends."""
    layout = Layout(directory / "data", directory / "run")
    program = hypervisor or qemu_here()
    machines = Machines(HostSettings(layout=layout), lambda _: (program, "for the benchmark"), attach)
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
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError(f"no {text!r} within {_BANNER_S:g} s, but {seen[-500:]!r}")
        seen += os.read(fd, 1 << 16)


def started_by_hand(hypervisor: Hypervisor, run_dir: Path, guest_dir: Path) -> tuple[float, float]:
    """Seconds until the last call was answered and until the banner came. Neither keeper nor launcher nor preflight."""
    begin = time.perf_counter()
    with ExitStack() as ours:

        def opened(name: str) -> OpenFile:
            path = guest_dir / name
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            ours.callback(os.close, fd)
            return OpenFile(fd=fd, path=path)

        boot = BootFiles(kernel=opened("vmlinuz"), initrd=opened("initrd.img"), cmdline=CMDLINE)
        res = Resources(run_dir=run_dir, credentials=Credentials(uid=os.getuid(), gid=os.getgid()), boot=boot)
        launch: Callable[[LaunchPlan, Path], AbstractContextManager[DirectMachine]] = direct_launch
        if isinstance(hypervisor, CloudHypervisor):
            launch = direct_cloud
            res = with_vmm_dir(res, RunPaths(run_dir))
            assert res.vmm_dir is not None
            ours.callback(os.close, res.vmm_dir.fd)
        plan = hypervisor.plan(spec_of("hand", guest_dir), res, reason="by hand")
        machine = ours.enter_context(launch(plan, run_dir))
        vmm = hypervisor.prepare(plan, run_dir, console=machine.open_console)
        ours.callback(vmm.close)
        vmm.boot()
        cont = time.perf_counter() - begin
        machine.until_line(BANNER.decode())
        banner = time.perf_counter() - begin
    return cont, banner
