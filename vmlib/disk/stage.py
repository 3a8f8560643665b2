"""Kernel and initrd for a direct boot: copied from where the job may write into the machine's own directory."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from vmlib.disk.copy import clone_or_copy, made_beside, told
from vmlib.disk.image import in_words
from vmlib.errors import SpecError
from vmlib.files import make_directory, open_ref, parse_json, read_own, write_atomic
from vmlib.resources import BootFiles, OpenFile
from vmlib.spec import DirectBoot, FileRef

_MAX_KERNEL_BYTES = 256 << 20
_MAX_INITRD_BYTES = 4 << 30

# The x86 boot protocol's setup header in a bzImage, or an ELF kernel (PVH).
_SETUP_MAGIC_AT = 0x202
_SETUP_MAGIC = b"HdrS"
_ELF_MAGIC = b"\x7fELF"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    key: str  # of the job, and the name of the copy
    max_bytes: int


_KERNEL = _Kind(key="kernel", max_bytes=_MAX_KERNEL_BYTES)
_INITRD = _Kind(key="initrd", max_bytes=_MAX_INITRD_BYTES)


def stage_boot(boot: DirectBoot, into: Path, owner_uid: int, owner_gid: int) -> BootFiles:
    """Copy what `boot` names into the directory `into` and open the copies; the caller owns the descriptors.

    The copies belong to the VMM's user (0400), because a VMM opens its kernel anew through /proc/self/fd. A copy that
    an earlier start made is used again when neither it nor its source has changed.
    Raises SpecError, NoCapacityError when the host's disk is full, HostError.
    """
    with told(f"boot directory {into}"):
        make_directory(into)
    kernel = _stage(_KERNEL, boot.kernel, into, owner_uid, owner_gid)
    initrd = None
    if boot.initrd is not None:
        try:
            initrd = _stage(_INITRD, boot.initrd, into, owner_uid, owner_gid)
        except BaseException:
            os.close(kernel.fd)
            raise
    return BootFiles(kernel=kernel, initrd=initrd, cmdline=boot.cmdline)


def _stage(kind: _Kind, ref: FileRef, into: Path, uid: int, gid: int) -> OpenFile:
    source_fd = open_ref(ref, key=kind.key, max_bytes=kind.max_bytes)
    try:
        _check(kind, ref, source_fd)
        target, note = into / kind.key, into / f"{kind.key}.json"
        source = _identity(os.fstat(source_fd))
        with told(f"{kind.key} {target}"):
            if not _is_copy_of(source, target, note, uid, gid):
                with made_beside(target) as (fd, _):
                    clone_or_copy(source_fd, fd)
                    os.fchown(fd, uid, gid)
                    os.fchmod(fd, 0o400)
                # After the renaming, because that changes the copy's ctime. Without the note it is copied again.
                copy = _identity(os.stat(target, follow_symlinks=False))
                write_atomic(note, json.dumps({"source": source, "copy": copy}).encode())
            return OpenFile(fd=os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), path=target)
    finally:
        os.close(source_fd)


def _check(kind: _Kind, ref: FileRef, fd: int) -> None:
    what = f"{kind.key} = {str(ref)!r}"
    size = os.fstat(fd).st_size
    if not 0 < size <= kind.max_bytes:
        raise SpecError(f"{what}: {size} bytes, expected 1 byte to {in_words(kind.max_bytes)}")
    if kind is _KERNEL:
        head = os.pread(fd, _SETUP_MAGIC_AT + len(_SETUP_MAGIC), 0)
        if not is_kernel(head):
            raise SpecError(f"{what}: not a kernel, expected a bzImage or an ELF file")


def is_kernel(head: bytes) -> bool:
    """True when the first 0x206 bytes are those of something that a VMM can boot directly."""
    return head.startswith(_ELF_MAGIC) or head[_SETUP_MAGIC_AT:].startswith(_SETUP_MAGIC)


def _identity(status: os.stat_result) -> list[int]:
    """What changes with a file or its content. The ctime is what the file's owner, the VMM's user, cannot set."""
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _is_copy_of(source: list[int], target: Path, note: Path, uid: int, gid: int) -> bool:
    try:
        noted = parse_json(read_own(note))
        status = os.stat(target, follow_symlinks=False)
    except (FileNotFoundError, ValueError):
        return False
    ours = (status.st_uid, status.st_gid) == (uid, gid)
    return ours and bool(noted == {"source": source, "copy": _identity(status)})
