"""The door: what `vmlib.machine` needs from a hypervisor, and no more.

A hypervisor decides (`plan`, pure) and talks (`Vmm`). It does not start processes: the keeper is the VMM's parent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from vmlib.resources import Credentials, Firmware, Resources
from vmlib.spec import MachineSpec, OnPanic, OnReboot

Accel = Literal["kvm", "tcg", "none"]
Dialect = Literal["qmp", "cloud-hypervisor"]  # in which a VMM tells of its events and is asked for things


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a hypervisor can do here, so that nobody has to ask for its name."""

    user_nic: bool
    firmware_boot: bool
    uefi: bool
    shares: bool
    tpm: bool
    vhost_net: bool = False  # it can leave the frames of a tap to the kernel, with KVM
    bios: bool = True  # it brings firmware of its own, which boots a disk without any file
    flash: bool = True  # it takes what a job brings for UEFI firmware, in the form in which distributions ship that
    remote_disks: bool = True  # files on a server that may stop answering, or that does not know the VMM's user
    nic_rate: bool = False  # it keeps an interface to a rate
    vfio: bool = False  # it lets a guest have devices of the host's
    opens_files: bool = False  # it opens by itself, as its own user, what it has descriptors of
    threads_before_boot: bool = True  # its vCPUs have their threads while the guest is still held
    max_vcpus: int | None = None  # fewer than a job may ask for
    max_devices: int | None = None  # disks, interfaces, shares and all else that a machine may have or not, together


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A call that makes a part of the machine once its VMM runs; `fds` go along with it."""

    call: str
    body: Mapping[str, object]
    fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """Everything the keeper needs to start a VMM, as plain data.

    `argv` may hold `{fd:NAME}` placeholders: the launcher replaces them by the number of the inherited descriptor
    of that name. Descriptors are `files` (opened by preflight, by name), `listeners` (sockets that the keeper
    binds in the run directory before the VMM exists; name -> file name in the run directory) and, by the names of
    shares and TPM, sockets that are connected to their helpers. A descriptor has the same number here and there.
    `requests` make the machine where the command line does not.
    Standard input, output and error of the VMM are the FIFOs `console.in`, `console.out` and `stderr` there.
    """

    hypervisor: str
    reason: str  # why this one, for the `machine started` event
    argv: tuple[str, ...]
    files: Mapping[str, int] = field(default_factory=dict)
    listeners: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    netns: str = ""  # the network namespace that the VMM runs in, where it is a router itself; "" = see `own_network`
    own_network: bool = True  # it needs no network but what it inherits; False: it runs in ours, or in `netns`
    routes: bool = False  # it opens connections, for its guest
    shows: tuple[str, ...] = ()  # what it reads of the host beside the system's programs and libraries
    nodes: tuple[str, ...] = ()  # devices that it opens
    credentials: Credentials
    terminals: bool = False  # it makes ptys
    dialect: Dialect = "qmp"
    requests: tuple[Request, ...] = ()
    boot_timeout_s: float = 5.0  # to let the guest run
    monitor: str = "events"  # listener on which the keeper hears the VMM's events
    channel: str = "channel"  # listener of the guest channel
    on_reboot: OnReboot = "restart"
    on_panic: OnPanic = "exit"


@dataclass(frozen=True, slots=True, kw_only=True)
class VcpuThread:
    """One vCPU and the host thread that runs it."""

    index: int
    thread_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What a device of the guest's has moved, by the guest's own words: an interface writes what it sends."""

    read_bytes: int
    write_bytes: int
    read_ops: int  # of an interface: frames
    write_ops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a machine has done so far, and has now."""

    disks: tuple[Counters, ...]  # in the machine's order
    nics: tuple[Counters | None, ...]  # in the machine's order; none at all where the VMM does not count
    memory_bytes: int  # less what is in the balloon


class Vmm(Protocol):
    """The plugin's conversation with one running VMM, over its request socket.

    Every call is bounded in time and raises HypervisorError when the VMM does not answer or refuses.
    """

    def boot(self) -> None:
        """Let the held guest run."""

    def status(self) -> str:
        """`created` (held), `running`, `paused`, `panicked` or `shutdown`."""

    def vcpus(self) -> tuple[VcpuThread, ...]:
        """The threads that run the vCPUs, by index."""

    def foreign_files(self) -> tuple[str, ...]:
        """Files that it opened for its disks without having been given them: an image's header names such."""

    def usage(self) -> Usage: ...

    def power_button(self) -> None:
        """Press the guest's power button (ACPI)."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def reboot(self) -> None:
        """Hard reset."""

    def nmi(self) -> None: ...

    def quit(self) -> None:
        """End the VMM at once, the guest's memory is lost. An end of file after it is success."""

    def close(self) -> None:
        """Let go of the socket; the VMM goes on."""


class Hypervisor(Protocol):
    """One way to run machines on this host."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def accel(self) -> Accel: ...

    @property
    def version(self) -> str: ...

    def plan(self, spec: MachineSpec, res: Resources, *, reason: str) -> LaunchPlan:
        """Decide everything. Pure: no file, no socket, no clock."""

    def overhead_mib(self, spec: MachineSpec) -> int:
        """How much memory the VMM may need beside the guest's RAM: generous, it is for a limit. Pure."""

    def uefi_firmware(self) -> Firmware:
        """The UEFI firmware of this host that it boots. Raises HostError when none is installed."""

    def prepare(self, plan: LaunchPlan, run_dir: Path, *, console: Callable[[str], None]) -> Vmm:
        """Talk to a VMM that was just started by `plan`, and bring its machine to where only `boot` lacks.

        It may take its time until it answers. `console` is told of a console that only now has a name, and returns
        once somebody reads it. Raises HypervisorError: the VMM is of no use then.
        """
