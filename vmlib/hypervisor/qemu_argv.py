"""QEMU's command line as a function of what was asked for and what exists. Nothing here touches the host."""

from collections.abc import Iterator
from dataclasses import dataclass

from vmlib.errors import SpecError
from vmlib.hypervisor.base import Accel
from vmlib.hypervisor.options import BALLOON_AND_DEVICE, inherited, option, pci_address, plain
from vmlib.hypervisor.qemu_disks import disk_files, disks_args, flash_args, flash_files
from vmlib.hypervisor.qemu_nics import nic_args, nic_files
from vmlib.hypervisor.qemu_slots import MAX_DISKS, MAX_NICS, MAX_SHARES, MAX_VFIO, OWN_SLOT, SHARES_SLOT, VFIO_SLOT
from vmlib.paths import run_key
from vmlib.resources import (
    BootFiles,
    OpenFile,
    PciDevice,
    Resources,
    ShareAttachment,
    TpmAttachment,
)
from vmlib.spec import MachineSpec

CHANNEL_NAME = "org.chv.agent.0"  # of the virtio-serial port; guests look for it
LISTENERS = ("qmp", "events", "channel")
HUGE_PAGE_MIB = 2
_RAM = "ram0"
_MAX_VCPUS = 255  # above it a guest needs x2APIC and an IOMMU that remaps interrupts
_MAX_CMDLINE_BYTES = 2047  # Linux on x86 reads 2048 with the final NUL
_MAX_TAG_BYTES = 36
# What Windows asks of a hypervisor, in Hyper-V's words. TCG takes the first four and shows its guest none of them; of
# the others QEMU refuses hv-vpindex without KVM, and the rest rest on that. All are in KVM since Linux 4.20. A blue
# screen is a panic by hv-crash, without a driver in the guest.
_HYPER_V = ("hv-relaxed=on", "hv-vapic=on", "hv-time=on", "hv-spinlocks=0x1fff")
_HYPER_V_OF_KVM = ("hv-vpindex", "hv-runtime", "hv-synic", "hv-stimer", "hv-tlbflush", "hv-ipi", "hv-crash")


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
            *flash_args(res.firmware),
            *disks_args(res.disks, "io_uring" if io_uring else "threads"),
            *(word for index, share in enumerate(res.shares) for word in _share_args(index, share)),
            *_tpm_args(res.tpm),
            *(word for index, nic in enumerate(res.nics) for word in nic_args(index, nic)),
            *(word for index, device in enumerate(res.vfio) for word in _vfio_args(index, device)),
        ),
        files={
            name: file.fd
            for name, file in (
                *_boot_files(res.boot),
                *flash_files(res.firmware),
                *disk_files(res.disks),
                *nic_files(res.nics),
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
    if len(res.vfio) > MAX_VFIO:
        raise SpecError(f"{len(res.vfio)} devices in vfio: expected at most {MAX_VFIO}")
    if len(res.disks) > (most := MAX_DISKS - bool(res.vfio)):
        raise SpecError(f"{len(res.disks)} disks: expected at most {most}{' with vfio' if res.vfio else ''}")
    if len(res.shares) > MAX_SHARES:
        raise SpecError(f"{len(res.shares)} shares: expected at most {MAX_SHARES}")
    if len(res.nics) > MAX_NICS:
        raise SpecError(f"{len(res.nics)} network interfaces: expected at most {MAX_NICS}")


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
    for unit, (name, _) in enumerate(flash_files(firmware)):
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
        "-device", option("virtio-rng-pci", ("rng", "rng0"), ("addr", f"{OWN_SLOT:#04x}.0"), ("multifunction", "on")),
        "-device", option("pvpanic-pci", ("addr", f"{OWN_SLOT:#04x}.1")),
        *_balloon_args(spec),
    ]  # fmt: skip


def _balloon_args(spec: MachineSpec) -> list[str]:
    """Nothing is taken from the guest; it gives back what it does not use, and has it again when it needs it."""
    if not spec.balloon:
        return []
    pairs = (("id", "balloon0"), ("deflate-on-oom", "on"), ("free-page-reporting", "on"))
    return [
        "-device", option("virtio-balloon-pci", *pairs, ("addr", f"{OWN_SLOT:#04x}.3")),
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
        "-device", option("virtio-serial-pci", ("id", "ports"), ("addr", f"{OWN_SLOT:#04x}.2")),
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


def _share_args(index: int, share: ShareAttachment) -> list[str]:
    """A socket that is connected already: QEMU never connects to a vhost-user device a second time anyway."""
    tag = plain(share.tag, key=f"tag of the share at {share.guest_path}", max_bytes=_MAX_TAG_BYTES)
    place = (("addr", f"{SHARES_SLOT:#04x}.{index}"), *((("multifunction", "on"),) if index == 0 else ()))
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


def _vfio_args(index: int, device: PciDevice) -> list[str]:
    """Behind a port of its own, as it is on a board: drivers look for the link there."""
    port = f"vfio-port{index}"
    place = (("addr", f"{VFIO_SLOT:#04x}.{index}"), *((("multifunction", "on"),) if index == 0 else ()))
    return [
        "-device", option("pcie-root-port", ("id", port), ("chassis", str(index + 1)), *place),
        "-device", option("vfio-pci", ("host", pci_address(device)), ("id", f"vfio{index}"), ("bus", port)),
    ]  # fmt: skip
