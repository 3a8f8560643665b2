"""Files for a VMM that opens by itself, as its own user, what it was given as a descriptor.

What is the machine's own is given to that user. Somebody else's stays as it is, and has to be open to that user.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vmlib.disk.overlay import name_backing
from vmlib.errors import SpecError
from vmlib.paths import RunPaths
from vmlib.resources import Credentials, OpenFile, Resources


def hand_over(res: Resources, own: Sequence[Path]) -> str:
    """Give the VMM's user the files of `res` that lie below `own`. Returns why that is not enough; "" when it is.

    Walks nowhere: what is looked at, and changed, is the open file.
    """
    for file, write in _files(res):
        status = os.fstat(file.fd)
        if may(status, res.credentials, write=write):
            continue
        if any(file.path.is_relative_to(one) for one in own):
            if status.st_nlink > 1:  # shared with the image cache and other machines; only root can walk to it
                os.fchmod(file.fd, (status.st_mode & 0o777) | 0o044)
            else:
                os.fchown(file.fd, res.credentials.uid, res.credentials.gid)
            continue
        verb = "write" if write else "read"
        return f"{file.path}: uid {res.credentials.uid}, which its VMM runs as, may not {verb} it"
    return ""


def with_vmm_dir(res: Resources, run: RunPaths) -> Resources:
    """The machine with a directory of the VMM's own, where it makes its sockets. The caller closes its descriptor."""
    run.vmm_dir.mkdir(mode=0o700)
    os.chown(run.vmm_dir, res.credentials.uid, res.credentials.gid)
    fd = os.open(run.vmm_dir, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return replace(res, vmm_dir=OpenFile(fd=fd, path=run.vmm_dir))


def name_backings(res: Resources) -> None:
    """Have each overlay name the image below it as its VMM shall open it. Raises SpecError for one that is spoilt."""
    for disk in res.disks:
        if disk.backing is not None and disk.backing_format is not None:
            try:
                name_backing(disk.file.fd, disk.backing.inherited_path, disk.backing_format)
            except ValueError as exc:
                raise SpecError(f"disk {disk.name!r}: its overlay {disk.file.path} has {exc}") from exc


def may(status: os.stat_result, who: Credentials, *, write: bool) -> bool:
    """Whether that user may open such a file, by its mode; access lists are not looked at."""
    if who.uid == 0:
        return True
    needed = 0o6 if write else 0o4
    if status.st_uid == who.uid:
        bits = status.st_mode >> 6
    elif status.st_gid in (who.gid, *who.groups):
        bits = status.st_mode >> 3
    else:
        bits = status.st_mode
    return bits & needed == needed


def _files(res: Resources) -> Iterator[tuple[OpenFile, bool]]:
    if res.boot is not None:
        yield res.boot.kernel, False
        if res.boot.initrd is not None:
            yield res.boot.initrd, False
    if res.firmware is not None:
        yield res.firmware.code, False
    for disk in res.disks:
        yield disk.file, not disk.readonly
        if disk.backing is not None:
            yield disk.backing, False
