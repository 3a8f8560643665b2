"""How large files a VMM or its TPM may make, and how many it may have open: what it needs at most, and some."""

import os
import struct

from vmlib.resources import DiskAttachment, Resources
from vmlib.spec import MachineSpec

_MIB = 1 << 20
_QCOW2_SIZE_AT = 24  # of the disk, in the image's header: eight bytes, big-endian
_FEW_FILES = 4096
_FILES_OF_A_QUEUE = 4

TPM_LIMITS = {"fsize": 16 * _MIB, "nofile": 256}


def vmm_limits(spec: MachineSpec, res: Resources, *, image_max_bytes: int) -> dict[str, int]:
    """The resource limits of a machine's VMM, by the names of RLIMIT_."""
    sizes = [_size_bytes(disk, image_max_bytes) for disk in res.disks if not (disk.readonly or disk.block_device)]
    ram = max(spec.memory_mib, spec.memory_max_mib) * _MIB  # a file, too, where somebody shares it
    largest = max([*sizes, ram])
    devices = 8 + len(res.disks) + len(res.nics) + len(res.shares) + len(res.vfio)
    return {
        # A full qcow2 image is a little larger than its disk.
        "fsize": largest + largest // 8 + 256 * _MIB,
        "nofile": max(_FEW_FILES, 1024 + spec.vcpus * devices * _FILES_OF_A_QUEUE),
    }


def _size_bytes(disk: DiskAttachment, image_max_bytes: int) -> int:
    if disk.file.remote:  # not ours to touch
        return image_max_bytes
    size = os.fstat(disk.file.fd).st_size
    if disk.format == "qcow2":
        header = os.pread(disk.file.fd, 8, _QCOW2_SIZE_AT)
        size = max(size, struct.unpack(">Q", header)[0] if len(header) == 8 else 0)
    return min(size, image_max_bytes)  # a job that may write to its image may have changed the header meanwhile
