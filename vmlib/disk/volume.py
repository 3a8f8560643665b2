"""What somebody else has put on the host for a machine: a directory becomes a share, a file or block device a disk."""

import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Sequence

from vmlib.errors import HostError, SpecError
from vmlib.resources import DiskAttachment, OpenFile, ShareAttachment
from vmlib.spec import MountSpec

# cloud-init takes what has a colon for the name of a network file system and hands it on. Any other name it takes for a
# block device, and without a word mounts nothing when there is none.
_TAG_PREFIX = "chv:"
_MAX_TAG_BYTES = 36 - len(_TAG_PREFIX)  # of virtiofs
_MAX_SERIAL_BYTES = 20  # of virtio-blk
_DIGEST_DIGITS = 8
_SECTOR_BYTES = 512
_LOCKED = re.compile(r'Failed to get (shared )?"[a-z ]+" lock|Another instance likely holds a lock')
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def names(guest_paths: Sequence[str], *, max_bytes: int = _MAX_TAG_BYTES) -> list[str]:
    """The end of a tag, or a serial, for each path: `/srv/data` is `srv-data`.

    One that is too long or taken ends in a digest.
    """
    plain = [_NOT_IN_NAMES.sub("-", path.strip("/")) or "root" for path in guest_paths]
    return [
        name if len(name) <= max_bytes and plain.count(name) == 1 else _with_digest(name, path, max_bytes)
        for name, path in zip(plain, guest_paths, strict=True)
    ]


def _with_digest(name: str, path: str, max_bytes: int) -> str:
    digest = hashlib.sha256(path.encode()).hexdigest()[:_DIGEST_DIGITS]
    return f"{name[: max_bytes - _DIGEST_DIGITS - 1]}-{digest}"


def prepare_mounts(mounts: Sequence[MountSpec]) -> list[ShareAttachment | DiskAttachment]:
    """Open the disks among them, whose descriptors are the caller's. Raises SpecError, HostError."""
    _check_paths(mounts)
    tags = names([mount.guest_path for mount in mounts])
    serials = names([mount.guest_path for mount in mounts], max_bytes=_MAX_SERIAL_BYTES)
    made: list[ShareAttachment | DiskAttachment] = []
    shares = 0
    try:
        for index, mount in enumerate(mounts):
            mode = _mode(mount)
            if stat.S_ISDIR(mode):
                made.append(
                    ShareAttachment(
                        name=f"fs{shares}",
                        tag=_TAG_PREFIX + tags[index],
                        guest_path=mount.guest_path,
                        source=mount.source,
                        readonly=mount.readonly,
                    )
                )
                shares += 1
            elif stat.S_ISREG(mode) or stat.S_ISBLK(mode):
                made.append(_open_disk(mount, f"volume{index}", serials[index]))
            else:
                raise HostError(f"{_what(mount)}: expected a directory, a regular file or a block device")
    except BaseException:
        for one in made:
            if isinstance(one, DiskAttachment):
                os.close(one.file.fd)
        raise
    return made


def _check_paths(mounts: Sequence[MountSpec]) -> None:
    seen: set[str] = set()
    for mount in mounts:
        path = mount.guest_path
        if not path.startswith("/") or path != posixpath.normpath(path) or path in ("/", "//"):
            raise SpecError(f"mount at {path!r}: expected an absolute path below /, without '..'")
        # cloud-init writes it into a line of the guest's fstab.
        if not path.isprintable() or " " in path or len(path.encode()) > 1024:
            raise SpecError(f"mount at {path[:100]!r}: expected at most 1024 printable characters without a space")
        if path in seen:
            raise SpecError(f"mount at {path!r}: expected each path once")
        seen.add(path)


def _mode(mount: MountSpec) -> int:
    try:
        return os.stat(mount.source).st_mode
    except OSError as exc:
        raise HostError(f"{_what(mount)}: {(exc.strerror or str(exc)).lower()}") from exc


def _open_disk(mount: MountSpec, name: str, serial: str) -> DiskAttachment:
    """Always raw: its content is the guest's own, which could write any header there."""
    flags = (os.O_RDONLY if mount.readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(mount.source, flags)
    except OSError as exc:
        raise HostError(f"{_what(mount)}: {(exc.strerror or str(exc)).lower()}") from exc
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise HostError(f"{_what(mount)}: no longer a regular file or a block device")
        size = os.lseek(fd, 0, os.SEEK_END)
        if size < _SECTOR_BYTES:
            raise HostError(f"{_what(mount)}: {size} bytes, expected a disk of at least {_SECTOR_BYTES}")
    except BaseException:
        os.close(fd)
        raise
    return DiskAttachment(
        name=name,
        file=OpenFile(fd=fd, path=mount.source),
        format="raw",
        readonly=mount.readonly,
        serial=serial,
        block_device=stat.S_ISBLK(mode),
    )


def explain_lock(words: str, mounts: Sequence[MountSpec]) -> str | None:
    """What a VMM's words about a disk in use mean for these; None when they are about something else."""
    if not mounts or _LOCKED.search(words) is None:
        return None
    return f"a disk among {', '.join(str(mount.source) for mount in mounts)}: another process on this host has it open"


def _what(mount: MountSpec) -> str:
    return f"mount at {mount.guest_path!r}: {mount.source}"
