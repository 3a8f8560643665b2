"""Disks and firmware on QEMU's command line: descriptors, block nodes and devices."""

import re
from collections.abc import Iterator

from vmlib.errors import SpecError
from vmlib.hypervisor.options import inherited, json_option, option, plain
from vmlib.hypervisor.qemu_slots import FIRST_DISK_SLOT, MAX_DISKS, slot
from vmlib.resources import (
    DiskAttachment,
    FirmwareFiles,
    OpenFile,
)

_FIRST_FLASH_SET = 2 * MAX_DISKS + 1  # after the descriptor sets of all disks and their backing images
_MAX_SERIAL_BYTES = 20  # of virtio-blk; QEMU cuts longer ones without a word
_DISK_NAME = re.compile(r"[a-z][a-z0-9_-]{0,15}")  # with our suffixes within the 31 bytes of a block node's name


def flash_files(firmware: FirmwareFiles | None) -> Iterator[tuple[str, OpenFile]]:
    """The flash chips in their order, code first."""
    if firmware is not None:
        yield "firmware", firmware.code
        if firmware.variables is not None:
            yield "firmware-vars", firmware.variables


def flash_args(firmware: FirmwareFiles | None) -> list[str]:
    """Firmware by descriptor, as the disks: `-bios` would open a file by its name, and as the VMM's user."""
    args = []
    for number, (name, _) in enumerate(flash_files(firmware), start=_FIRST_FLASH_SET):
        readonly = name == "firmware"
        args += ["-add-fd", option("", ("fd", inherited(name)), ("set", str(number)), ("opaque", name))]
        args += ["-blockdev", json_option(_file_node(f"{name}-file", number, readonly=readonly))]
        args += ["-blockdev", json_option(_format_node(name, "raw", readonly=readonly, backing=None))]
    if firmware is not None and firmware.smm:
        # Only firmware itself, in system management mode, may write to its variables.
        args += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    return args


def disk_files(disks: tuple[DiskAttachment, ...]) -> Iterator[tuple[str, OpenFile]]:
    for disk in disks:
        if _DISK_NAME.fullmatch(disk.name) is None:
            raise SpecError(f"disk name = {disk.name!r}: expected a lower case letter, then at most 15 of a-z 0-9 _ -")
        yield _file_name(disk.name), disk.file
        if disk.backing is not None:
            yield _file_name(disk.name, "backing"), disk.backing


def _file_name(disk: str, *more: str) -> str:
    return ".".join(["disk", disk, *more])


def disks_args(disks: tuple[DiskAttachment, ...], remote_aio: str) -> list[str]:
    """Each file becomes a descriptor set of its own, which block nodes open as /dev/fdset/N."""
    sets = {name: number for number, (name, _) in enumerate(disk_files(disks), start=1)}
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
    return option("virtio-blk-pci", *pairs, slot(FIRST_DISK_SLOT + index))
