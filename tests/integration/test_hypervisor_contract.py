"""The contract behind the door: the same tests for every hypervisor, each with a real process."""

import array
import fcntl
import os
import signal
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests import needs
from tests.fakes.ch.install import install
from tests.fakes.direct_cloud import direct_cloud
from tests.fakes.direct_launch import DirectMachine, direct_launch
from tests.guest.build import Guest
from vmlib import probe
from vmlib.errors import HypervisorError
from vmlib.handover import with_vmm_dir
from vmlib.hypervisor.base import Hypervisor, Vmm
from vmlib.hypervisor.cloud_hypervisor import CloudHypervisor
from vmlib.hypervisor.fake import Fake
from vmlib.hypervisor.qemu import Qemu
from vmlib.hypervisor.qmp import QmpClient
from vmlib.hypervisor.select import attach
from vmlib.paths import RunPaths
from vmlib.resources import BootFiles, Credentials, DiskAttachment, OpenFile, Resources
from vmlib.spec import DirectBoot, FileRef, MachineSpec, OnPanic, OnReboot

READY = "chv test guest: ready"
PTY_HOLDS = 4000  # bytes, at least


# The same backend on the fake, its guest played or run by QEMU, and on the real program where that is named.
CLOUD = ("cloud-light", "cloud-qemu", pytest.param("cloud-real", marks=pytest.mark.needs("cloud-hypervisor", "kvm")))


@pytest.fixture(params=["fake", "qemu", *CLOUD])
def hypervisor(request: pytest.FixtureRequest, short_dir: Path) -> Hypervisor:
    match str(request.param).partition("-"):
        case ("fake", _, _):
            return Fake()
        case ("cloud", _, "real"):
            return CloudHypervisor(binary=str(needs.find_cloud_hypervisor()), version="53.0")
        case ("cloud", _, guest):
            place = short_dir / "program"
            place.mkdir()
            return CloudHypervisor(binary=str(install(place, guest=guest)), version="53.0")
    return Qemu(binary=probe.qemu_program("qemu-system-x86_64").path)


@pytest.fixture
def qmp_only(hypervisor: Hypervisor) -> None:
    """For what Cloud Hypervisor cannot be told: its keeper does it, and the tests of that see to it."""
    if hypervisor.name == "cloud-hypervisor":
        pytest.skip("not the VMM's business with cloud-hypervisor, but its keeper's")


class Started:
    """A held machine, and the conversation with it."""

    def __init__(self, machine: DirectMachine, vmm: Vmm) -> None:
        self.machine = machine
        self.vmm = vmm


Start = Callable[..., Started]


@pytest.fixture
def start(hypervisor: Hypervisor, guest: Guest, short_dir: Path) -> Iterator[Start]:
    """`start("word word", on_panic=…)` starts a held machine whose guest obeys these words."""
    with ExitStack() as stack:

        def begin(
            words: str = "",
            *,
            vcpus: int = 1,
            on_reboot: OnReboot = "restart",
            on_panic: OnPanic = "exit",
        ) -> Started:
            cmdline = f"console=ttyS0 quiet panic=-1 no_timer_check {words}".strip()
            paths = {"kernel": guest.kernel, "initrd": guest.initrd}
            files = {name: OpenFile(fd=os.open(path, os.O_RDONLY), path=path) for name, path in paths.items()}
            for file in files.values():
                stack.callback(os.close, file.fd)
            ref = FileRef(root=guest.directory, relative="vmlinuz")
            spec = MachineSpec(
                id="contract/1",
                name="contract",
                owner="run",
                vcpus=vcpus,
                memory_mib=256,
                boot=DirectBoot(kernel=ref, cmdline=cmdline),
                on_reboot=on_reboot,
                on_panic=on_panic,
            )
            res = Resources(
                run_dir=short_dir,
                credentials=Credentials(uid=os.getuid(), gid=os.getgid()),
                boot=BootFiles(kernel=files["kernel"], initrd=files["initrd"], cmdline=cmdline),
            )
            cloud = hypervisor.name == "cloud-hypervisor"
            if cloud:
                # Its clock keeps no mark over a reboot.
                mark = short_dir / "mark.img"
                mark.write_bytes(bytes(1 << 20))
                file = OpenFile(fd=os.open(mark, os.O_RDWR), path=mark)
                stack.callback(os.close, file.fd)
                res = replace(res, disks=(DiskAttachment(name="data", file=file, format="raw", serial="data"),))
                res = with_vmm_dir(res, RunPaths(short_dir))
                assert res.vmm_dir is not None
                stack.callback(os.close, res.vmm_dir.fd)
            plan = hypervisor.plan(spec, res, reason="contract")
            context: AbstractContextManager[DirectMachine] = (direct_cloud if cloud else direct_launch)(plan, short_dir)
            machine = stack.enter_context(context)
            vmm = hypervisor.prepare(plan, short_dir, console=machine.open_console)
            stack.callback(vmm.close)
            return Started(machine, vmm)

        yield begin


def test_guest_is_held_until_boot(start: Start) -> None:
    one = start()
    assert one.vmm.status() == "created"
    one.machine.pump(0.5)
    assert one.machine.console == b""
    one.vmm.boot()
    assert one.vmm.status() == "running"
    one.machine.until_line(READY)


def test_each_vcpu_is_a_thread_of_the_process(start: Start, hypervisor: Hypervisor) -> None:
    one = start(vcpus=2)
    if not hypervisor.capabilities.threads_before_boot:
        one.vmm.boot()
    assert one.vmm.foreign_files() == ()
    vcpus = one.vmm.vcpus()
    assert [vcpu.index for vcpu in vcpus] == [0, 1]
    threads = {int(name) for name in os.listdir(f"/proc/{one.machine.process.pid}/task")}
    assert {vcpu.thread_id for vcpu in vcpus} < threads
    assert len({vcpu.thread_id for vcpu in vcpus}) == 2
    if hypervisor.capabilities.threads_before_boot:
        one.vmm.boot()
    one.machine.until_line("vcpus 2")


def test_a_reboot_leaves_every_vcpu_on_its_thread(qmp_only: None, start: Start) -> None:
    """Who pins the threads once need not look for others; what else a reboot does to the pins is another matter."""
    one = start("reboot-once say=again", vcpus=2)
    before = one.vmm.vcpus()
    one.vmm.boot()
    one.machine.until_line("say again")
    assert one.machine.named("RESET")
    assert one.vmm.vcpus() == before
    one.vmm.reboot()
    one.machine.until_line("say again", count=2)
    assert one.vmm.vcpus() == before
    threads = {int(name) for name in os.listdir(f"/proc/{one.machine.process.pid}/task")}
    assert {vcpu.thread_id for vcpu in before} < threads


def test_pause_stops_the_guest_and_resume_lets_it_go_on(start: Start) -> None:
    one = start("tick")
    one.vmm.boot()
    one.machine.until_line("tick 2")
    one.vmm.pause()
    assert one.vmm.status() == "paused"
    one.machine.until_event("STOP")
    one.machine.pump(0.3)
    before = len(one.machine.console)
    for _ in range(10):
        one.machine.pump(0.1)
    assert len(one.machine.console) == before
    resumed = len(one.machine.named("RESUME"))
    one.vmm.resume()
    assert one.vmm.status() == "running"
    one.machine.until(lambda: len(one.machine.named("RESUME")) > resumed, "a second RESUME")
    one.machine.until(lambda: len(one.machine.console) > before, "more of the console")


def test_power_button_ends_a_willing_guest(start: Start) -> None:
    one = start()
    one.vmm.boot()
    one.machine.until_line(READY)
    one.vmm.power_button()
    assert one.machine.wait() == 0
    assert one.machine.named("POWERDOWN") == [{}]
    assert one.machine.named("SHUTDOWN") == [{"guest": True, "reason": "guest-shutdown"}]
    assert b"power button" in one.machine.console


def test_power_button_does_nothing_to_an_unwilling_guest(start: Start) -> None:
    one = start("ignore-acpi tick")
    one.vmm.boot()
    one.machine.until_line("tick 1")
    one.vmm.power_button()
    one.machine.until_event("POWERDOWN")
    seen = one.machine.console.count(b"tick")
    one.machine.until_line("tick", count=seen + 5)
    assert one.vmm.status() == "running"


def test_quit_is_the_end_and_no_error(start: Start) -> None:
    one = start()
    one.vmm.boot()
    one.vmm.quit()
    assert one.machine.wait() == 0
    assert one.machine.named("SHUTDOWN") == [{"guest": False, "reason": "host-qmp-quit"}]


def test_quit_ends_a_held_machine(start: Start) -> None:
    one = start()
    one.vmm.quit()
    assert one.machine.wait() == 0


def test_a_dead_vmm_is_an_error_that_names_the_command(start: Start) -> None:
    one = start()
    one.machine.process.kill()
    assert one.machine.wait() == -signal.SIGKILL
    with pytest.raises(HypervisorError, match=r"^(query-status|vm\.info): "):
        one.vmm.status()
    with pytest.raises(HypervisorError, match="connection refused"):
        one.vmm.status()


def test_panic_ends_with_1_when_told_so(qmp_only: None, start: Start) -> None:
    one = start("panic", on_panic="exit")
    one.vmm.boot()
    assert one.machine.wait() == 1
    (panic,) = one.machine.named("GUEST_PANICKED")
    assert panic["action"] == "poweroff"
    assert one.machine.named("SHUTDOWN") == [{"guest": True, "reason": "guest-panic"}]
    assert [event["event"] for event in one.machine.events] == ["RESUME", "GUEST_PANICKED", "SHUTDOWN"]
    assert b"Kernel panic" in one.machine.console


def test_panic_is_only_told_when_the_machine_shall_restart(start: Start) -> None:
    one = start("panic", on_panic="restart")
    one.vmm.boot()
    assert one.machine.until_event("GUEST_PANICKED")["action"] == "run"
    one.machine.until_line("panicking", count=2)
    assert one.machine.process.poll() is None


def test_guest_reboot_goes_on_in_the_same_process(start: Start) -> None:
    one = start("reboot-once say=again", on_reboot="restart")
    one.vmm.boot()
    one.machine.until_line("say again")
    # Several for one reboot: the firmware resets the machine again when it finds itself started by a reset.
    resets = one.machine.named("RESET")
    assert resets == [{"guest": True, "reason": "guest-reset"}] * len(resets)
    assert 1 <= len(resets) < 10
    assert one.machine.console.count(READY.encode()) == 2


def test_guest_reboot_ends_with_0_when_told_so(qmp_only: None, start: Start) -> None:
    one = start("reboot-once", on_reboot="exit")
    one.vmm.boot()
    assert one.machine.wait() == 0
    assert one.machine.named("SHUTDOWN") == [{"guest": True, "reason": "guest-reset"}]


def test_reboot_resets_a_running_guest(start: Start) -> None:
    one = start()
    one.vmm.boot()
    one.machine.until_line(READY)
    one.vmm.reboot()
    one.machine.until_line(READY, count=2)
    ours, *firmwares = one.machine.named("RESET")
    assert ours == {"guest": False, "reason": "host-qmp-system-reset"}
    # QEMU's firmware resets the machine again, up to four times on a busy host; where there is none, nobody does.
    assert all(one == {"guest": True, "reason": "guest-reset"} for one in firmwares)
    assert len(firmwares) < 10


def test_reboot_ends_a_machine_that_shall_not_reboot(qmp_only: None, start: Start) -> None:
    one = start(on_reboot="exit")
    one.vmm.boot()
    one.machine.until_line(READY)
    one.vmm.reboot()
    assert one.machine.wait() == 0
    assert one.machine.named("SHUTDOWN") == [{"guest": False, "reason": "host-qmp-system-reset"}]


def test_what_a_reboot_does_can_be_changed_while_the_machine_runs(
    qmp_only: None, start: Start, short_dir: Path
) -> None:
    """The keeper needs it for a panic that shall restart a machine which ends at every other reboot."""
    one = start(on_reboot="exit")
    one.vmm.boot()
    one.machine.until_line(READY)
    one.vmm.close()
    with QmpClient.connect(short_dir / "qmp") as client:
        client.execute("set-action", {"reboot": "reset"})
        client.execute("system_reset")
        one.machine.until_line(READY, count=2)
        client.execute("set-action", {"reboot": "shutdown"})
        client.execute("system_reset")
    assert one.machine.wait() == 0


def test_reboot_leaves_a_paused_machine_held(qmp_only: None, start: Start) -> None:
    one = start()
    one.vmm.boot()
    one.machine.until_line(READY)
    one.vmm.pause()
    one.vmm.reboot()
    assert one.vmm.status() == "created"
    one.vmm.boot()
    one.machine.until_line(READY, count=2)


def test_exit_code_comes_over_the_channel(start: Start) -> None:
    one = start("exit=7")
    one.vmm.boot()
    assert one.machine.wait() == 0
    assert one.machine.channel == b"exit 7\n"
    assert one.machine.named("SHUTDOWN") == [{"guest": True, "reason": "guest-shutdown"}]


def test_sigterm_is_an_orderly_end(start: Start) -> None:
    one = start()
    one.vmm.boot()
    one.machine.process.send_signal(signal.SIGTERM)
    assert one.machine.wait() == 0
    assert one.machine.named("SHUTDOWN") == [{"guest": False, "reason": "host-signal"}]


def test_what_is_typed_reaches_the_guest(start: Start) -> None:
    one = start("echo")
    one.vmm.boot()
    one.machine.until_line(READY)
    one.machine.pump(0.5)
    one.machine.type("hello\n")
    one.machine.until_line("echo: hello")


def waiting(fd: int) -> int:
    """How many bytes can be read from it."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def test_a_reader_that_is_behind_stalls_the_guest_but_not_the_vmm(start: Start, hypervisor: Hypervisor) -> None:
    # More than any buffer on the way: a pty, or a pipe. A guest on KVM leaves it once for each byte.
    size = 20_000 if hypervisor.name == "cloud-hypervisor" else 250_000
    one = start(f"flood={size}")
    one.vmm.boot()
    # Read until the guest is up: one that is reset as it boots gets a new pty, and the old one says nothing any more.
    one.machine.until_line(READY)
    one.machine.paused_readers.add(one.machine.console_fd)
    seen: list[int] = []
    deadline = time.monotonic() + 120
    while len(seen) < 10 or seen[-1] < PTY_HOLDS or seen[-1] != seen[-10]:
        assert time.monotonic() < deadline, f"the guest is not stalled, {seen[-10:]} bytes wait"
        one.machine.pump(0.1)
        assert one.vmm.status() == "running"
        assert not one.machine.named("RESET"), one.machine.report()
        seen.append(waiting(one.machine.console_fd))
    assert seen[-1] < size
    one.machine.paused_readers.clear()
    one.machine.until_line(f"flood end {size}", timeout_s=120)
    assert one.machine.console.count(b"flood 000") == size // 100


def test_nmi_is_taken(start: Start) -> None:
    one = start()
    one.vmm.boot()
    one.machine.until_line(READY)
    one.vmm.nmi()
    assert one.vmm.status() == "running"


def test_vmm_serves_a_second_conversation_after_the_first(
    start: Start, hypervisor: Hypervisor, short_dir: Path
) -> None:
    one = start()
    one.vmm.close()
    second = attach(hypervisor.name, short_dir)
    try:
        assert second.status() == "created"
    finally:
        second.close()
