"""What now exists on the host for a machine. Made in preflight, read by the pure planners. Imports nothing of ours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """An open file that the VMM shall inherit. `path` is for messages only: the file is used by descriptor.

    A `remote` one lies on a server that may stop answering: nothing but passing it on is safe.
    """

    fd: int
    path: Path
    remote: bool = False

    @property
    def inherited_path(self) -> str:
        """By which the VMM may open this very file anew, whatever lies at `path` by then."""
        return f"/proc/self/fd/{self.fd}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFiles:
    """Kernel and initrd, staged so that nobody but us can change them any more."""

    kernel: OpenFile
    initrd: OpenFile | None
    cmdline: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """Firmware that is installed on the host."""

    code: Path
    variables: Path | None  # an empty variable store: the template of each machine's own; None: it keeps none
    smm: bool = False  # it protects its variables, for which it needs the CPU's system management mode
    enrolled: bool = False  # it comes with keys, and boots only what is signed with them


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareFiles:
    """Firmware as the VMM gets it."""

    code: OpenFile  # read-only
    variables: OpenFile | None = None  # the machine's own store; None: its variables are lost when it is off
    smm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskAttachment:
    """One guest block device. `backing` is the read-only image below an overlay."""

    name: str  # "root", "seed": also the name of its block node
    file: OpenFile
    format: Literal["raw", "qcow2"]
    readonly: bool = False
    serial: str = ""
    backing: OpenFile | None = None
    backing_format: Literal["raw", "qcow2"] | None = None
    block_device: bool = False
    rate_bytes: int = 0  # a second, at most; 0 = no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareAttachment:
    """A directory of the host's that a virtiofsd serves, which stands ready at the socket `name`."""

    name: str  # "fs0"
    tag: str  # by which the guest mounts it
    guest_path: str
    source: Path
    readonly: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmAttachment:
    """A TPM 2.0 that a swtpm plays at the socket `name`."""

    name: str  # "tpm"
    state_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """One forwarded port of a user-mode link."""

    protocol: Literal["tcp", "udp"]
    host_ip: str
    host_port: int
    guest_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UserNic:
    """A user-mode link: the VMM itself is the router."""

    name: str  # "net0"
    mac: str
    forwards: tuple[Forward, ...] = ()
    netns: str = ""  # the network namespace in which the router runs; "" = ours


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamNic:
    """A user-mode link whose router is a helper. It calls the VMM at the listening socket `name` and talks frames."""

    name: str
    mac: str
    network: str = ""  # the operator's name of it, for people
    forwards: tuple[Forward, ...] = ()
    netns: str = ""
    dns: tuple[str, ...] = ()  # resolvers that it is to give the guest; none: the host's


@dataclass(frozen=True, slots=True, kw_only=True)
class TapNic:
    """A link of the kernel's, tap or macvtap: one open descriptor for each pair of queues."""

    name: str
    mac: str
    queues: tuple[OpenFile, ...]
    vhost: tuple[OpenFile, ...] = ()  # as many, of the kernel's vhost-net; none: the VMM moves the frames itself
    mtu: int = 0  # of the link, which the guest is told; 0 = nobody knows


Nic = UserNic | StreamNic | TapNic


@dataclass(frozen=True, slots=True, kw_only=True)
class PciDevice:
    """A device of the host's that is ready to be taken over, and the IOMMU group that the kernel hands it out by."""

    address: str  # "0000:65:00.0"
    group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Whom the VMM runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NumaCell:
    """The vCPUs of a machine that sit on one NUMA node of the host's."""

    node: int
    vcpus: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """All that preflight made. Descriptors belong to the caller, who closes its copies once the VMM runs."""

    run_dir: Path
    credentials: Credentials
    boot: BootFiles | None = None
    firmware: FirmwareFiles | None = None  # None: what the hypervisor has by itself
    disks: tuple[DiskAttachment, ...] = ()
    shares: tuple[ShareAttachment, ...] = ()
    tpm: TpmAttachment | None = None
    nics: tuple[Nic, ...] = ()
    vfio: tuple[PciDevice, ...] = ()  # devices of the host's that the guest gets
    vmm_dir: OpenFile | None = None  # where the VMM may make sockets of its own
    landlock: bool = False  # the kernel can keep a process from all files but those that it names
    affinity: tuple[frozenset[int], ...] = ()  # the CPUs of each vCPU, for good; () = they may be moved
    cells: tuple[NumaCell, ...] = ()  # where they are on more than one NUMA node
