"""QEMU's command line as a function of what was asked for and what exists. Nothing here touches the host."""

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vmlib.errors import HostError, SpecError
from vmlib.hypervisor.base import Accel
from vmlib.hypervisor.options import BALLOON_AND_DEVICE, Inherited, inherited, json_option, option, pci_address, plain
from vmlib.paths import run_key
from vmlib.resources import (
    BootFiles,
    DiskAttachment,
    FirmwareFiles,
    Forward,
    Nic,
    OpenFile,
    PciDevice,
    Resources,
    ShareAttachment,
    StreamNic,
    TapNic,
    TpmAttachment,
    UserNic,
)
from vmlib.spec import MachineSpec

CHANNEL_NAME = "org.chv.agent.0"  # of the virtio-serial port; guests look for it
LISTENERS = ("qmp", "events", "channel")
HUGE_PAGE_MIB = 2

# Fixed places on the PCI bus, so that a guest's names for its devices (enp0s2) do not change when another one is added.
_SHARES_SLOT = 0x01  # all of them in one slot, by function
_FIRST_NIC_SLOT = 0x02
_FIRST_DISK_SLOT = 0x08
_OWN_SLOT = 0x1C  # what every machine has, by function
_NIC_SLOTS = (*range(_FIRST_NIC_SLOT, _FIRST_DISK_SLOT), 0x1D, 0x1E)
_MAX_NICS = len(_NIC_SLOTS)
_MAX_DISKS = _OWN_SLOT - _FIRST_DISK_SLOT
_MAX_SHARES = 8
_VFIO_SLOT = _OWN_SLOT - 1  # of a machine with such devices the last place of a disk; a port for each, by function
_MAX_VFIO = 8

_FIRST_FLASH_SET = 2 * _MAX_DISKS + 1  # after the descriptor sets of all disks and their backing images

_RAM = "ram0"

_MAX_VCPUS = 255  # above it a guest needs x2APIC and an IOMMU that remaps interrupts
_MAX_CMDLINE_BYTES = 2047  # Linux on x86 reads 2048 with the final NUL
_MAX_SERIAL_BYTES = 20  # of virtio-blk; QEMU cuts longer ones without a word
_MAX_TAG_BYTES = 36

# What Windows asks of a hypervisor, in Hyper-V's words. TCG takes the first four and shows its guest none of them; of
# the others QEMU refuses hv-vpindex without KVM, and the rest rest on that. All are in KVM since Linux 4.20. A blue
# screen is a panic by hv-crash, without a driver in the guest.
_HYPER_V = ("hv-relaxed=on", "hv-vapic=on", "hv-time=on", "hv-spinlocks=0x1fff")
_HYPER_V_OF_KVM = ("hv-vpindex", "hv-runtime", "hv-synic", "hv-stimer", "hv-tlbflush", "hv-ipi", "hv-crash")

_DISK_NAME = re.compile(r"[a-z][a-z0-9_-]{0,15}")  # with our suffixes within the 31 bytes of a block node's name
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """What to run, and the files that it expects to inherit (name -> our descriptor)."""

    argv: tuple[str, ...]
    files: dict[str, int]


def command_line(
    spec: MachineSpec, res: Resources, *, binary: str, accel: Accel, io_uring: bool = False
) -> CommandLine:
    """The whole command line. Raises SpecError for values that QEMU would not take as they are meant.

    With `io_uring` disks on file servers are used by that: the only way of I/O that SIGKILL ends when one is silent.
    """
    _check(spec, res)
    return CommandLine(
        argv=(
            binary,
            *_base_args(spec),
            *_machine_args(spec, res, accel),
            *_console_args(),
            *_monitor_args(),
            *_channel_args(),
            *_boot_args(res.boot),
            *_flash_args(res.firmware),
            *_disks_args(res.disks, "io_uring" if io_uring else "threads"),
            *(word for index, share in enumerate(res.shares) for word in _share_args(index, share)),
            *_tpm_args(res.tpm),
            *(word for index, nic in enumerate(res.nics) for word in _nic_args(index, nic)),
            *(word for index, device in enumerate(res.vfio) for word in _vfio_args(index, device)),
        ),
        files={
            name: file.fd
            for name, file in (
                *_boot_files(res.boot),
                *_flash_files(res.firmware),
                *_disk_files(res.disks),
                *_nic_files(res.nics),
            )
        },
    )


def tcg_buffer_mib(memory_mib: int) -> int:
    """Size of the buffer for translated code, which QEMU takes on top of the guest's memory.

    Said explicitly because QEMU's own default is up to 1 GiB, an eighth of the host: too much to account for beside
    each machine. A quarter of the guest's memory is what QEMU used for many years; a Linux that boots fills about
    50 MiB, and a larger one than 256 MiB is rarely filled.
    """
    return max(64, min(256, memory_mib // 4))


def _check(spec: MachineSpec, res: Resources) -> None:
    if not 1 <= spec.vcpus <= _MAX_VCPUS:
        raise SpecError(f"vcpus = {spec.vcpus}: expected 1 to {_MAX_VCPUS}")
    if spec.memory_mib < 1:
        raise SpecError(f"memory = {spec.memory_mib}: expected at least 1 MiB")
    if spec.cores.expose and spec.vcpus % 2:
        raise SpecError(f"vcpus = {spec.vcpus}: expected an even number with threads = 'expose', two for each core")
    if spec.hugepages and spec.memory_mib % HUGE_PAGE_MIB:
        raise SpecError(f"memory = {spec.memory_mib}: expected a multiple of {HUGE_PAGE_MIB} MiB with hugepages = true")
    if spec.guest_os == "windows" and (spec.boot is not None or spec.firmware == "bios"):
        raise SpecError(
            "guest_os = 'windows': boots by UEFI from a disk, expected neither kernel nor firmware = 'bios'"
        )
    if res.boot is None and not res.disks:
        raise SpecError("nothing to boot from: expected image or kernel")
    if len({disk.name for disk in res.disks}) != len(res.disks):
        raise SpecError(f"disk names {', '.join(disk.name for disk in res.disks)}: expected each once")
    if spec.balloon and res.vfio:
        raise SpecError(BALLOON_AND_DEVICE)
    if len(res.vfio) > _MAX_VFIO:
        raise SpecError(f"{len(res.vfio)} devices in vfio: expected at most {_MAX_VFIO}")
    if len(res.disks) > (most := _MAX_DISKS - bool(res.vfio)):
        raise SpecError(f"{len(res.disks)} disks: expected at most {most}{' with vfio' if res.vfio else ''}")
    if len(res.shares) > _MAX_SHARES:
        raise SpecError(f"{len(res.shares)} shares: expected at most {_MAX_SHARES}")
    if len(res.nics) > _MAX_NICS:
        raise SpecError(f"{len(res.nics)} network interfaces: expected at most {_MAX_NICS}")


def _base_args(spec: MachineSpec) -> list[str]:
    return [
        "-nodefaults",
        "-no-user-config",
        "-display", "none",
        "-name", option("", ("guest", run_key(spec.id)), ("debug-threads", "on")),
        "-msg", "timestamp=off",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-S",  # held: the guest runs at `cont`
        "-action", option("", ("reboot", "shutdown" if spec.on_reboot == "exit" else "reset")),
        # With `none` the guest stays as it is after a panic, and the keeper resets it.
        "-action", option("", ("panic", "exit-failure" if spec.on_panic == "exit" else "none")),
    ]  # fmt: skip


def _machine_args(spec: MachineSpec, res: Resources, accel: Accel) -> list[str]:
    firmware = res.firmware
    if accel == "kvm":
        accelerator = ["-accel", "kvm", "-cpu", _cpu(spec, "host", accel)]
    else:
        size = str(tcg_buffer_mib(spec.memory_mib))
        accelerator = [
            "-accel",
            option("tcg", ("thread", "multi"), ("tb-size", size)),
            "-cpu",
            _cpu(spec, "max", accel),
        ]
    # A core dump of ours must not hold the guest's memory.
    machine = "q35,usb=off,vmport=off,dump-guest-core=off"
    for unit, (name, _) in enumerate(_flash_files(firmware)):
        machine += f",pflash{unit}={name}"
    if firmware is not None and firmware.smm:
        machine += ",smm=on"
    ram = _ram(spec, shared=bool(res.shares))
    # vCPU 2i and 2i+1 are the two threads of core i, as they are on the host.
    threads = 2 if spec.cores.expose else 1
    cores = str(spec.vcpus // threads)
    return [
        *ram,
        "-machine", f"{machine},memory-backend={_RAM}" if ram else machine,
        *accelerator,
        "-smp", option(str(spec.vcpus), ("sockets", "1"), ("cores", cores), ("threads", str(threads))),
        "-m", f"{spec.memory_mib}M",
        "-rtc", "base=localtime" if spec.guest_os == "windows" else "base=utc",  # what the guest takes it for
        "-object", "rng-builtin,id=rng0",
        "-device", option("virtio-rng-pci", ("rng", "rng0"), ("addr", f"{_OWN_SLOT:#04x}.0"), ("multifunction", "on")),
        "-device", option("pvpanic-pci", ("addr", f"{_OWN_SLOT:#04x}.1")),
        *_balloon_args(spec),
    ]  # fmt: skip


def _balloon_args(spec: MachineSpec) -> list[str]:
    """Nothing is taken from the guest; it gives back what it does not use, and has it again when it needs it."""
    if not spec.balloon:
        return []
    pairs = (("id", "balloon0"), ("deflate-on-oom", "on"), ("free-page-reporting", "on"))
    return [
        "-device", option("virtio-balloon-pci", *pairs, ("addr", f"{_OWN_SLOT:#04x}.3")),
    ]  # fmt: skip


def _cpu(spec: MachineSpec, model: str, accel: Accel) -> str:
    if spec.guest_os != "windows":
        return model
    more = tuple(f"{word}=on" for word in _HYPER_V_OF_KVM) if accel == "kvm" else ()
    return ",".join((model, *_HYPER_V, *more))


def _ram(spec: MachineSpec, *, shared: bool) -> list[str]:
    """RAM that is not QEMU's own way of it: of huge pages, or such as a virtiofsd can read and write as well.

    Huge pages are all taken now: one that lacks later would kill the VMM in the middle of its work.
    """
    if not spec.hugepages and not shared:
        return []
    pages = (("hugetlb", "on"), ("hugetlbsize", f"{HUGE_PAGE_MIB}M"), ("prealloc", "on")) if spec.hugepages else ()
    return [
        "-object",
        option(
            "memory-backend-memfd",
            ("id", _RAM),
            ("size", f"{spec.memory_mib}M"),
            *pages,
            ("share", "on" if shared else "off"),
        ),
    ]


def _console_args() -> list[str]:
    # signal=off: a ^C that somebody types into the console is the guest's.
    return ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]


def _listener(name: str) -> str:
    return option("socket", ("id", name), ("fd", inherited(name)), ("server", "on"), ("wait", "off"))


def _monitor_args() -> list[str]:
    return [
        word
        for name in ("qmp", "events")
        for word in ("-chardev", _listener(name), "-mon", option("", ("chardev", name), ("mode", "control")))
    ]


def _channel_args() -> list[str]:
    return [
        "-device", option("virtio-serial-pci", ("id", "ports"), ("addr", f"{_OWN_SLOT:#04x}.2")),
        "-chardev", _listener("channel"),
        "-device", option("virtserialport", ("bus", "ports.0"), ("chardev", "channel"), ("name", CHANNEL_NAME)),
    ]  # fmt: skip


def _boot_args(boot: BootFiles | None) -> list[str]:
    args = ["-boot", "menu=off,strict=on"]
    if boot is not None:
        args += ["-kernel", inherited("kernel", "/proc/self/fd/")]
        if boot.initrd is not None:
            args += ["-initrd", inherited("initrd", "/proc/self/fd/")]
        args += ["-append", plain(boot.cmdline, key="cmdline", max_bytes=_MAX_CMDLINE_BYTES)]
    return args


def _boot_files(boot: BootFiles | None) -> Iterator[tuple[str, OpenFile]]:
    if boot is not None:
        yield "kernel", boot.kernel
        if boot.initrd is not None:
            yield "initrd", boot.initrd


def _flash_files(firmware: FirmwareFiles | None) -> Iterator[tuple[str, OpenFile]]:
    """The flash chips in their order, code first."""
    if firmware is not None:
        yield "firmware", firmware.code
        if firmware.variables is not None:
            yield "firmware-vars", firmware.variables


def _flash_args(firmware: FirmwareFiles | None) -> list[str]:
    """Firmware by descriptor, as the disks: `-bios` would open a file by its name, and as the VMM's user."""
    args = []
    for number, (name, _) in enumerate(_flash_files(firmware), start=_FIRST_FLASH_SET):
        readonly = name == "firmware"
        args += ["-add-fd", option("", ("fd", inherited(name)), ("set", str(number)), ("opaque", name))]
        args += ["-blockdev", json_option(_file_node(f"{name}-file", number, readonly=readonly))]
        args += ["-blockdev", json_option(_format_node(name, "raw", readonly=readonly, backing=None))]
    if firmware is not None and firmware.smm:
        # Only firmware itself, in system management mode, may write to its variables.
        args += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    return args


def _disk_files(disks: tuple[DiskAttachment, ...]) -> Iterator[tuple[str, OpenFile]]:
    for disk in disks:
        if _DISK_NAME.fullmatch(disk.name) is None:
            raise SpecError(f"disk name = {disk.name!r}: expected a lower case letter, then at most 15 of a-z 0-9 _ -")
        yield _file_name(disk.name), disk.file
        if disk.backing is not None:
            yield _file_name(disk.name, "backing"), disk.backing


def _file_name(disk: str, *more: str) -> str:
    return ".".join(["disk", disk, *more])


def _disks_args(disks: tuple[DiskAttachment, ...], remote_aio: str) -> list[str]:
    """Each file becomes a descriptor set of its own, which block nodes open as /dev/fdset/N."""
    sets = {name: number for number, (name, _) in enumerate(_disk_files(disks), start=1)}
    args = []
    for name, number in sets.items():
        args += ["-add-fd", option("", ("fd", inherited(name)), ("set", str(number)), ("opaque", name))]
    for index, disk in enumerate(disks):
        for node in _block_nodes(disk, sets, remote_aio):
            args += ["-blockdev", json_option(node)]
        if disk.rate_bytes:
            args += _limited(disk)
        args += ["-device", _disk_device(index, disk)]
    return args


def _limited(disk: DiskAttachment) -> list[str]:
    """A node on top of the disk's, through which reads and writes together pass at its rate."""
    group, node = f"{disk.name}-rate", _limit_node(disk)
    limits = {"bps-total": disk.rate_bytes}
    return [
        "-object", json_option({"qom-type": "throttle-group", "id": group, "limits": limits}),
        "-blockdev",
        json_option({"driver": "throttle", "node-name": node, "throttle-group": group, "file": disk.name}),
    ]  # fmt: skip


def _limit_node(disk: DiskAttachment) -> str:
    return f"{disk.name}-limit"


def _block_nodes(disk: DiskAttachment, sets: dict[str, int], remote_aio: str) -> Iterator[dict[str, object]]:
    """The whole graph of one disk from the bottom up: QEMU guesses no format and follows no name inside an image."""
    backing = None
    if disk.backing is not None:
        if disk.format != "qcow2" or disk.backing_format is None:
            raise SpecError(f"disk {disk.name!r}: only qcow2 has a backing image, and the format of that must be known")
        backing = f"{disk.name}-backing"
        number = sets[_file_name(disk.name, "backing")]
        yield _disk_node(f"{backing}-file", number, disk.backing, remote_aio, readonly=True)
        yield _format_node(backing, disk.backing_format, readonly=True, backing=None)
    number = sets[_file_name(disk.name)]
    yield {
        **_disk_node(f"{disk.name}-file", number, disk.file, remote_aio, readonly=disk.readonly),
        "driver": "host_device" if disk.block_device else "file",
    }
    yield _format_node(disk.name, disk.format, readonly=disk.readonly, backing=backing)


def _disk_node(node: str, number: int, file: OpenFile, remote_aio: str, *, readonly: bool) -> dict[str, object]:
    found = _file_node(node, number, readonly=readonly)
    if file.remote:
        # Written past the page cache: what lies there when the server falls silent holds whoever closes the file.
        found |= {"aio": remote_aio, "cache": {"direct": not readonly, "no-flush": False}}
    return found


def _file_node(node: str, number: int, *, readonly: bool) -> dict[str, object]:
    return {
        "driver": "file",
        "node-name": node,
        "filename": f"/dev/fdset/{number}",
        "aio": "threads",
        "cache": {"direct": False, "no-flush": False},  # the host's page cache, and the guest's flushes are honoured
        "read-only": readonly,
        "discard": "unmap",
    }


def _format_node(node: str, driver: str, *, readonly: bool, backing: str | None) -> dict[str, object]:
    graph: dict[str, object] = {"driver": driver, "node-name": node, "file": f"{node}-file"}
    if driver == "qcow2":
        # null, not left out: a name in the image's own header must never be opened.
        graph["backing"] = backing
    return {**graph, "read-only": readonly, "discard": "unmap"}


def _disk_device(index: int, disk: DiskAttachment) -> str:
    pairs = [("drive", _limit_node(disk) if disk.rate_bytes else disk.name)]
    if disk.serial:
        pairs.append(("serial", plain(disk.serial, key=f"serial of disk {disk.name}", max_bytes=_MAX_SERIAL_BYTES)))
    if index == 0:
        pairs.append(("bootindex", "1"))  # 0 is the kernel's, with direct boot
    # The guest hears of a full or broken host disk; QEMU's default is to stop the guest until somebody resumes it.
    pairs += [("werror", "report"), ("rerror", "report")]
    return option("virtio-blk-pci", *pairs, _slot(_FIRST_DISK_SLOT + index))


def _share_args(index: int, share: ShareAttachment) -> list[str]:
    """A socket that is connected already: QEMU never connects to a vhost-user device a second time anyway."""
    tag = plain(share.tag, key=f"tag of the share at {share.guest_path}", max_bytes=_MAX_TAG_BYTES)
    place = (("addr", f"{_SHARES_SLOT:#04x}.{index}"), *((("multifunction", "on"),) if index == 0 else ()))
    return [
        "-chardev", option("socket", ("id", share.name), ("fd", inherited(share.name))),
        "-device", option("vhost-user-fs-pci", ("chardev", share.name), ("tag", tag), *place),
    ]  # fmt: skip


def _tpm_args(tpm: TpmAttachment | None) -> list[str]:
    if tpm is None:
        return []
    return [
        "-chardev", option("socket", ("id", tpm.name), ("fd", inherited(tpm.name))),
        "-tpmdev", option("emulator", ("id", "tpm0"), ("chardev", tpm.name)),
        "-device", option("tpm-crb", ("tpmdev", "tpm0")),
    ]  # fmt: skip


def _nic_args(index: int, nic: Nic) -> list[str]:
    if _MAC.fullmatch(nic.mac) is None:
        raise SpecError(f"mac = {nic.mac!r}: expected six pairs of lower case hex digits, as 52:54:00:12:34:56")
    netdev = f"net{index}"
    # Without an option ROM: the guest does not boot from the network.
    pairs = [("netdev", netdev), ("mac", nic.mac), ("romfile", ""), _slot(_NIC_SLOTS[index])]
    match nic:
        case UserNic():
            backend = option("user", ("id", netdev), *(("hostfwd", _host_forward(one)) for one in nic.forwards))
        case StreamNic():
            # As the server it takes a new helper in when one has ended; a client of 7.2 would call but once.
            backend = option(
                "stream", ("id", netdev), ("server", "on"), ("addr.type", "fd"), ("addr.str", inherited(nic.name))
            )
        case _:
            backend = option("tap", ("id", netdev), *_queues(nic))
            if nic.mtu:
                pairs.append(("host_mtu", str(nic.mtu)))
            if len(nic.queues) > 1:
                # An interrupt for each queue, one for its control queue and one for changes of its state.
                pairs += [("mq", "on"), ("vectors", str(2 * len(nic.queues) + 2))]
    return ["-netdev", backend, "-device", option("virtio-net-pci", *pairs)]


def _queues(nic: TapNic) -> list[tuple[str, str]]:
    many = "s" if len(nic.queues) > 1 else ""
    pairs: list[tuple[str, str]] = [(f"fd{many}", _all_inherited(nic.name, len(nic.queues)))]
    if nic.vhost:
        pairs += [("vhost", "on"), (f"vhostfd{many}", _all_inherited(f"{nic.name}.vhost", len(nic.vhost)))]
    return pairs


def _all_inherited(name: str, count: int) -> Inherited:
    return Inherited(":".join(inherited(f"{name}.{index}") for index in range(count)))


def _nic_files(nics: Iterable[Nic]) -> Iterator[tuple[str, OpenFile]]:
    for nic in nics:
        if isinstance(nic, TapNic):
            for index, file in enumerate(nic.queues):
                yield f"{nic.name}.{index}", file
            for index, file in enumerate(nic.vhost):
                yield f"{nic.name}.vhost.{index}", file


def frame_listeners(nics: Iterable[Nic]) -> tuple[str, ...]:
    """The sockets at which routers that are helpers call."""
    return tuple(nic.name for nic in nics if isinstance(nic, StreamNic))


def router_namespace(nics: Iterable[Nic]) -> str:
    """Where QEMU itself has to run because its own router does: a process is in one network namespace."""
    found = {nic.netns for nic in nics if isinstance(nic, UserNic)}
    if len(found) > 1:
        raise SpecError(
            "user networks in several network namespaces: expected one, since QEMU itself is their router here"
        )
    return "".join(found)


def _host_forward(forward: Forward) -> str:
    if forward.host_ip:
        try:
            ipaddress.IPv4Address(forward.host_ip)
        except ValueError as exc:
            raise HostError(
                f"host address {forward.host_ip!r} of port {forward.host_port}: a user-mode link forwards IPv4 only",
                hint="give the client's host network an IPv4 address",
            ) from exc
    for port in (forward.host_port, forward.guest_port):
        if not 1 <= port <= 65535:
            raise SpecError(f"port {port}: expected 1 to 65535")
    return f"{forward.protocol}:{forward.host_ip}:{forward.host_port}-:{forward.guest_port}"


def _vfio_args(index: int, device: PciDevice) -> list[str]:
    """Behind a port of its own, as it is on a board: drivers look for the link there."""
    port = f"vfio-port{index}"
    place = (("addr", f"{_VFIO_SLOT:#04x}.{index}"), *((("multifunction", "on"),) if index == 0 else ()))
    return [
        "-device", option("pcie-root-port", ("id", port), ("chassis", str(index + 1)), *place),
        "-device", option("vfio-pci", ("host", pci_address(device)), ("id", f"vfio{index}"), ("bus", port)),
    ]  # fmt: skip


def _slot(number: int) -> tuple[str, str]:
    return ("addr", f"{number:#04x}")
