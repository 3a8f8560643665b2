"""What was asked for: the words in which a caller describes a machine. Imports nothing of ours."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

DiskFormat = Literal["raw", "qcow2"]
RootMode = Literal["overlay", "copy", "direct"]
Packing = Literal["", "xz", "zst", "gz"]
OnReboot = Literal["restart", "exit"]
OnPanic = Literal["exit", "restart"]
FirmwareKind = Literal["", "bios", "uefi"]
GuestOs = Literal["linux", "windows"]
NumaPolicy = Literal["strict", "prefer", "spread"]
MacvtapMode = Literal["bridge", "private", "vepa", "passthru"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NfsExport:
    """A directory of a file server that the operator lets machines reach."""

    name: str
    server: str  # a host name or an address
    export: str
    options: tuple[str, ...] = ()
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """A file that a job named: `relative` is opened beneath `root`, and no link may lead out of it.

    With `nfs` it lies on a server that may stop answering, and `root` is the place where the machine has that mounted.
    """

    root: Path
    relative: str
    nfs: NfsExport | None = None

    def __str__(self) -> str:
        return str(self.root / self.relative) if self.nfs is None else f"nfs://{self.nfs.name}/{self.relative}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectBoot:
    """Boot a Linux kernel without firmware."""

    kernel: FileRef
    initrd: FileRef | None = None
    cmdline: str = "console=ttyS0"


@dataclass(frozen=True, slots=True, kw_only=True)
class RootDisk:
    """The first disk of the guest."""

    image: FileRef
    format: DiskFormat
    mode: RootMode = "overlay"
    size_bytes: int | None = None  # grow to this; None keeps the image's own size
    packed: Packing = ""  # how the file is compressed; `format` is of what comes out
    cached: bool = False  # the file may change or go under us: the machine builds on what the image cache has of it


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class DiskKey:
    """What a persistent disk belongs to: whoever asks with the same words gets the same disk."""

    namespace: str
    job: str
    group: str
    index: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpec:
    """A further disk of the guest: a file's content, or so many bytes."""

    name: str
    format: DiskFormat
    source: FileRef | None = None  # read-only it is used as it is, otherwise copied
    packed: Packing = ""  # how that is compressed
    cached: bool = False  # as of a root disk
    size_bytes: int | None = None  # of a disk without source; a copy is grown to it
    readonly: bool = False
    serial: str = ""  # what the guest knows it by
    rate_bytes: int = 0  # a second, at most; 0 = no limit
    persistent: DiskKey | None = None  # None: it goes with the machine


@dataclass(frozen=True, slots=True, kw_only=True)
class MountSpec:
    """Something of the host's that the guest shall have: a directory as a share, a file or block device as a disk."""

    source: Path
    guest_path: str  # where the guest mounts a share; the name of a disk comes from it, too
    readonly: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedSpec:
    """Content of the NoCloud seed disk. What may be a secret is not shown by repr, so that no log can hold it."""

    instance_id: str
    hostname: str
    ssh_authorized_keys: tuple[str, ...] = field(default=(), repr=False)
    user_data: bytes | None = field(default=None, repr=False)  # byte for byte as the user gave it
    user_data_file: FileRef | None = None  # or the file that holds it, read when the seed is made
    network_config: bytes | None = field(default=None, repr=False)
    environment: dict[str, str] = field(default_factory=dict, repr=False)  # nomad.env on the seed
    agent: bool = False  # bring the guest agent along


@dataclass(frozen=True, slots=True, kw_only=True)
class PortForward:
    """A host port that reaches a guest port, TCP and UDP."""

    label: str
    host_ip: str  # "" = every address of the host
    host_port: int
    guest_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UserLink:
    """No link of the kernel's: a process of ours is the router, and host ports are forwarded to the guest."""

    forwards: tuple[PortForward, ...] = ()
    netns: Path | None = None  # the network namespace whose routes it uses and on whose ports it listens; None: ours


@dataclass(frozen=True, slots=True, kw_only=True)
class MacvtapLink:
    """A macvtap on an interface of the host's."""

    parent: str
    mode: MacvtapMode = "bridge"
    filter: bool = False  # drop what the guest sends from another MAC, or from other than its static addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeLink:
    """A tap on a bridge of the host's."""

    bridge: str
    filter: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NetnsLink:
    """The guest takes over an interface of a network namespace: its MAC, its addresses, its routes."""

    netns: Path
    interface: str = "eth0"


Link = UserLink | MacvtapLink | BridgeLink | NetnsLink


@dataclass(frozen=True, slots=True, kw_only=True)
class NicSpec:
    """One network interface of the guest. `network` is the operator's name for what it is plugged into.

    Without `addresses` the guest asks by DHCP.
    """

    network: str
    link: Link
    mac: str = ""  # "" = that of the interface that the guest takes over
    addresses: tuple[str, ...] = ()  # with the length of the prefix: "192.168.1.20/24", "2001:db8::20/64"
    gateways: tuple[str, ...] = ()  # at most one of each family
    dns: tuple[str, ...] = ()  # addresses of servers
    search: tuple[str, ...] = ()  # domains
    rate_bytes: int = 0  # a second in each direction, at most; 0 = no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class CoresSpec:
    """Which CPUs the machine wants for itself."""

    exclusive: bool = False  # whole cores of its own; otherwise its vCPUs float
    expose: bool = False  # two vCPUs a physical core, which the guest sees as threads of one
    numa: NumaPolicy = "prefer"
    isolate_emulator: bool = False  # one more core, for the VMM's other threads
    given: frozenset[int] = frozenset()  # logical CPUs that the scheduler chose
    tokens: Mapping[int, int] = field(default_factory=dict)  # NUMA node -> dedicated cores that the scheduler counted
    cpu_shares: int = 0  # weight among the machines that float; 0 = the kernel's default


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """A whole machine, as asked for.

    `id` names this start of the machine and is new at each start; `name` names the machine over its restarts
    (for Nomad `<alloc>/<task>`), and its directory is `machines/<name>`. `owner` says who may sweep it.
    """

    id: str
    name: str
    owner: Literal["nomad", "dev", "run"]
    vcpus: int
    memory_mib: int
    boot: DirectBoot | None = None  # None: from the root disk by firmware
    firmware: FirmwareKind | FileRef = ""  # "" = what the hypervisor and the guest like best; means nothing with `boot`
    guest_os: GuestOs = "linux"  # what the machine's devices and its clock are made for
    root: RootDisk | None = None
    disks: tuple[DiskSpec, ...] = ()  # after the root disk, in this order
    mounts: tuple[MountSpec, ...] = ()
    tpm: bool = False
    seed: SeedSpec | None = None
    agent: bool = False  # a guest agent may speak on the channel; without a seed that has it, one that the guest brings
    nics: tuple[NicSpec, ...] = ()
    cores: CoresSpec = field(default_factory=CoresSpec)
    memory_max_mib: int = 0  # the VMM's cgroup may use at least this much; 0 = what its RAM and overhead need
    hugepages: bool = False
    balloon: bool = False  # the guest gives back memory that it does not use
    vfio: tuple[str, ...] = ()  # PCI addresses of devices of the host's that it takes over
    hypervisor: str = ""  # "" = the best one that is usable
    avoid: Mapping[str, str] = field(
        default_factory=dict
    )  # hypervisors that were found not to do, each with the reason
    on_reboot: OnReboot = "restart"
    on_panic: OnPanic = "exit"
    stdout: Path = Path("/dev/null")  # where the guest's console goes: a FIFO or /dev/null
    stderr: Path = Path("/dev/null")  # where the VMM's and our own words go
    labels: Mapping[str, str] = field(default_factory=dict)  # what the caller knows the machine by, for hooks
    alive_while: Path | None = None  # the machine's directory is kept as long as this directory exists

    @property
    def boot_firmware(self) -> FirmwareKind | FileRef:
        """What firmware the machine brings along; "" when it boots a kernel, or by the hypervisor's own."""
        if self.boot is not None or self.firmware == "bios":
            return ""
        return "uefi" if self.firmware == "" and self.guest_os == "windows" else self.firmware
