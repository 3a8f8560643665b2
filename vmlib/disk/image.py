"""What a disk image says about itself, read by us before any tool or VMM opens it.

A tool that opens a hostile image follows the file names in its header; so everything that leads out of the file is
refused here, and the format is what the job declared, never what somebody guesses.
"""

import os
import stat
import struct
from dataclasses import dataclass

from vmlib import remote
from vmlib.errors import SpecError
from vmlib.spec import DiskFormat

HEAD_BYTES = remote.HEAD_BYTES  # how much of the file the check looks at
SECTOR_BYTES = 512

_QCOW2_MAGIC = b"QFI\xfb"
_V2_HEADER_BYTES = 72
_V3_HEADER_BYTES = 104
_CLUSTER_BITS = range(9, 22)

_INCOMPATIBLE_CORRUPT = 1 << 1
_INCOMPATIBLE_DATA_FILE = 1 << 2
# Dirty, corrupt, external data file, compression type, extended L2 entries: the first, fourth and fifth are harmless.
_INCOMPATIBLE_KNOWN = 0b11111
_INCOMPATIBLE_EXTENDED_L2 = 1 << 4

# As far as QEMU goes. What is beyond was not made by a tool, and costs the reader its memory.
_MAX_L1_BYTES = 32 << 20
_MAX_REFCOUNT_TABLE_BYTES = 8 << 20
_MAX_REFCOUNT_ORDER = 6
_MAX_SNAPSHOTS = 65536
_SNAPSHOT_BYTES = 40  # at least
_ENTRY_BYTES = 8

_EXTENSION_END = 0
_EXTENSION_DATA_FILE = 0x44415441
_EXTENSION_ENCRYPTION = 0x0537BE77

# (offset, first bytes, name): what a file can turn out to be when somebody declares it raw.
_MAGICS = (
    (0, _QCOW2_MAGIC, "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vhd"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"QED\0", "qed"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"\x1f\x8b", "gzip-compressed"),
    (0, b"\xfd7zXZ\0", "xz-compressed"),
    (0, b"BZh", "bzip2-compressed"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (0, b"PK\x03\x04", "a zip archive"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """What matters of an image that passed the check."""

    virtual_size_bytes: int  # as the guest sees it, in whole sectors


def check_image(fd: int, *, declared: DiskFormat, key: str, path: object, max_virtual_bytes: int) -> ImageInfo:
    """Check the image behind `fd`, which stays the caller's. `key` and `path` are for the complaint (SpecError)."""
    status = os.fstat(fd)
    what = f"{key} = {str(path)!r}"
    if not stat.S_ISREG(status.st_mode):
        raise SpecError(f"{what}: not a regular file")
    head = os.pread(fd, HEAD_BYTES, 0)
    return inspect(head, status.st_size, declared=declared, what=what, max_virtual_bytes=max_virtual_bytes)


def check_source(
    source: remote.Source, *, declared: DiskFormat, key: str, path: object, max_virtual_bytes: int
) -> ImageInfo:
    """The same for one that was opened where it lies, which may be on a server."""
    what = f"{key} = {str(path)!r}"
    return inspect(source.head, source.size_bytes, declared=declared, what=what, max_virtual_bytes=max_virtual_bytes)


def inspect(head: bytes, file_size_bytes: int, *, declared: DiskFormat, what: str, max_virtual_bytes: int) -> ImageInfo:
    """The check itself, on the first HEAD_BYTES of a file (all of it when it is shorter)."""
    if file_size_bytes == 0:
        raise SpecError(f"{what}: empty file, expected a {declared} image")
    found = header_says(head)
    if declared == "raw":
        if found is not None:
            raise SpecError(f"{what}: declared raw, but its header says {found}")
        size = file_size_bytes
    else:
        if found != "qcow2":
            raise SpecError(f"{what}: declared qcow2, but its header says {found or 'raw, or nothing we know'}")
        size = _qcow2_size(head, what)
    size = whole_sectors(size)
    if size > max_virtual_bytes:
        raise SpecError(f"{what}: virtual size {in_words(size)}, expected at most {in_words(max_virtual_bytes)}")
    if declared == "qcow2":
        _check_tables(head, file_size_bytes, size, what)
    return ImageInfo(virtual_size_bytes=size)


def most_bytes(max_virtual_bytes: int) -> int:
    """How large the file of an image may be: a full qcow2 is a little larger than what it holds."""
    return max_virtual_bytes + max_virtual_bytes // 64


def header_says(head: bytes) -> str | None:
    """What a file is by its first bytes, in a word; None when they are raw data, or nothing we know."""
    return next((name for at, magic, name in _MAGICS if head[at : at + len(magic)] == magic), None)


def whole_sectors(size_bytes: int) -> int:
    """Round up to what a block device can have."""
    return -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES


def in_words(size_bytes: int) -> str:
    """A size as a person writes it, and exact."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20)):
        if size_bytes and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift} {unit}"
    return f"{size_bytes} bytes"


def _qcow2_size(head: bytes, what: str) -> int:
    if len(head) < _V2_HEADER_BYTES:
        raise SpecError(f"{what}: qcow2 header cut short after {len(head)} bytes")
    version, backing_at, backing_len, cluster_bits, size, crypt = struct.unpack_from(">IQIIQI", head, 4)
    incompatible, header_len = 0, _V2_HEADER_BYTES
    if version == 3:
        if len(head) < _V3_HEADER_BYTES:
            raise SpecError(f"{what}: qcow2 header cut short after {len(head)} bytes")
        (incompatible,) = struct.unpack_from(">Q", head, 72)
        (header_len,) = struct.unpack_from(">I", head, 100)
    elif version != 2:
        raise SpecError(f"{what}: qcow2 version {version}, expected 2 or 3")
    if cluster_bits not in _CLUSTER_BITS:
        raise SpecError(f"{what}: qcow2 clusters of 2^{cluster_bits} bytes, expected 2^9 to 2^21")
    if backing_at or backing_len:
        raise SpecError(f"{what}: needs a backing file, expected an image that is complete in itself")
    if crypt:
        raise SpecError(f"{what}: encrypted, expected an image in the clear")
    if incompatible & _INCOMPATIBLE_DATA_FILE:
        raise SpecError(f"{what}: keeps its data in another file, expected an image that is complete in itself")
    if incompatible & _INCOMPATIBLE_CORRUPT:
        raise SpecError(f"{what}: marked as corrupt, expected one that `qemu-img check` finds sound")
    if incompatible & ~_INCOMPATIBLE_KNOWN:
        raise SpecError(f"{what}: unknown qcow2 features {incompatible & ~_INCOMPATIBLE_KNOWN:#x}")
    if size == 0:
        raise SpecError(f"{what}: virtual size 0, expected a disk")
    shortest = _V2_HEADER_BYTES if version == 2 else _V3_HEADER_BYTES
    if not shortest <= header_len <= 1 << cluster_bits or header_len % 8:
        raise SpecError(f"{what}: broken qcow2 header, {header_len} bytes long")
    _check_extensions(head, header_len, 1 << cluster_bits, what)
    return int(size)


def _check_extensions(head: bytes, header_len: int, cluster_bytes: int, what: str) -> None:
    """Walk the header extensions as QEMU does: to the end marker or the end of the first cluster."""
    at = header_len
    while at + 8 <= cluster_bytes:
        if at + 8 > len(head):
            # Beyond what we look at, or beyond the file: whoever reads on might find what we have not seen.
            raise SpecError(f"{what}: broken qcow2 header, its extensions have no end")
        kind, length = struct.unpack_from(">II", head, at)
        if kind == _EXTENSION_END:
            return
        if kind == _EXTENSION_DATA_FILE:
            raise SpecError(f"{what}: names an external data file, expected an image that is complete in itself")
        if kind == _EXTENSION_ENCRYPTION:
            raise SpecError(f"{what}: encrypted, expected an image in the clear")
        at += 8 + (length + 7) // 8 * 8
    if at > cluster_bytes:
        raise SpecError(f"{what}: broken qcow2 header, an extension ends outside it")


def _check_tables(head: bytes, file_size_bytes: int, size_bytes: int, what: str) -> None:
    """Refuse tables that no tool writes, or that the file does not have because its end was lost."""
    (cluster_bits,) = struct.unpack_from(">I", head, 20)
    l1_entries, l1_at, refcounts_at, refcount_clusters, snapshots, snapshots_at = struct.unpack_from(
        ">IQQIIQ", head, 36
    )
    extended = False
    if head[7] == 3:
        incompatible, _, _, refcount_order = struct.unpack_from(">QQQI", head, 72)
        extended = bool(incompatible & _INCOMPATIBLE_EXTENDED_L2)
        if refcount_order > _MAX_REFCOUNT_ORDER:
            raise SpecError(f"{what}: broken qcow2 header, refcounts of 2^{refcount_order} bits, expected at most 2^6")
    cluster_bytes = 1 << cluster_bits
    l2_reach = cluster_bytes // (2 * _ENTRY_BYTES if extended else _ENTRY_BYTES) * cluster_bytes
    tables = (
        ("L1 table", l1_at, l1_entries, _ENTRY_BYTES, -(-size_bytes // l2_reach), _MAX_L1_BYTES // _ENTRY_BYTES),
        (
            "refcount table",
            refcounts_at,
            refcount_clusters,
            cluster_bytes,
            1,
            _MAX_REFCOUNT_TABLE_BYTES // cluster_bytes,
        ),
        ("snapshot table", snapshots_at, snapshots, _SNAPSHOT_BYTES, 0, _MAX_SNAPSHOTS),
    )
    for name, at, entries, entry_bytes, fewest, most in tables:
        if not fewest <= entries <= most:
            raise SpecError(f"{what}: broken qcow2 header, {name} of size {entries}, expected {fewest} to {most}")
        if entries == 0:
            continue
        if at == 0 or at % cluster_bytes:
            raise SpecError(f"{what}: broken qcow2 header, {name} at byte {at}, expected a cluster of its own")
        end = at + entries * entry_bytes
        if end > file_size_bytes:
            raise SpecError(
                f"{what}: qcow2 image cut short, {name} to byte {end}, but the file ends at {file_size_bytes}"
            )
