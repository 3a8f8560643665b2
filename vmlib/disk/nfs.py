"""Mounts of file servers: one for each machine and export, made before its disks and gone after its VMM.

Each is a mount of its own (`nosharecache`), so that a dead one can be forced and the other machines' go on. Whether one
is there is read from mountinfo alone: asking the mount itself would wait for the server.
"""

import contextlib
import dataclasses
import errno
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from vmlib import far, remote
from vmlib.disk import nfs_options
from vmlib.errors import HostError, NoCapacityError, VmError
from vmlib.spec import FileRef, NfsExport

log = logging.getLogger(__name__)

T = TypeVar("T")

_CONNECT_S = 5.0
_MOUNT_S = 20.0  # a name to resolve, a connection, then the mount itself
_UMOUNT_S = 2.0  # the VMM is gone, and what it wrote went with it: there is next to nothing to be written
_FORCE_S = 2.0
_FIRST_FORCE_S = 1.0  # what SIGKILL ends by itself is gone by then

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MNT_FORCE, _MNT_DETACH = 1, 2

_FORCED = "forced"  # a file beside the mounts: the server was silent, so that asking it again is no use


# -- which -----------------------------------------------------------------------------------------------------------


def exports_of(spec: object) -> tuple[NfsExport, ...]:
    """The exports from which a spec names files, each once, by name."""
    found = {ref.nfs.name: ref.nfs for ref in _refs(spec) if ref.nfs is not None}
    return tuple(found[name] for name in sorted(found))


def with_roots(spec: T, roots: Mapping[str, Path]) -> T:
    """The same with every file on an export beneath the place where that is mounted, by the export's name."""
    if not roots:
        return spec
    found: object = spec
    match spec:
        case FileRef(nfs=NfsExport(name=name)):
            found = dataclasses.replace(spec, root=roots[name])
        case tuple():
            found = tuple(with_roots(one, roots) for one in spec)
        case _ if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
            names = [field.name for field in dataclasses.fields(spec)]
            found = dataclasses.replace(spec, **{name: with_roots(getattr(spec, name), roots) for name in names})
    return found  # type: ignore[return-value]


def _refs(value: object) -> Iterator[FileRef]:
    match value:
        case FileRef():
            yield value
        case tuple():
            for one in value:
                yield from _refs(one)
        case _ if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                yield from _refs(getattr(value, field.name))


# -- making ----------------------------------------------------------------------------------------------------------


def mount(export: NfsExport, target: Path) -> None:
    """Mount an export on the empty directory `target`, which is made. One attempt, bounded.

    Raises NoCapacityError when the server does not answer, HostError when it or this kernel refuses.
    """
    for directory in (target.parent.parent, target.parent, target):
        directory.mkdir(mode=0o700, exist_ok=True)
    details = {
        "server": export.server,
        "port": nfs_options.port(export.options),
        "export": export.export,
        "target": str(target),
        "options": nfs_options.kernel_options(export.options),
        "flags": _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | (_MS_RDONLY if export.read_only else 0),
        "connect_s": _CONNECT_S,
    }
    try:
        far.call("mount", details, timeout_s=_MOUNT_S)
    except (far.FarError, far.SilentError) as exc:
        raise _in_words(exc, export) from exc


def _in_words(exc: far.FarError | far.SilentError, export: NfsExport) -> VmError:
    what = f"nfs.{export.name} ({export.server}:{export.export})"
    if isinstance(exc, far.SilentError):
        return NoCapacityError(f"{what}: did not answer within {exc.after_s:g} s")
    if exc.step in ("resolve", "connect", "child") or remote.is_passing(exc.code):
        return NoCapacityError(f"{what}: {exc}")
    hints = {
        errno.ENOENT: "does the server export that very directory?",
        errno.ENODEV: "this kernel has no NFS: load the module nfsv4",
        errno.EPROTONOSUPPORT: 'the server does not speak that version: set options = "vers=4.1" or lower',
        errno.EACCES: "does the server export it to this host?",
        errno.EPERM: "does the server export it to this host?",
        errno.EINVAL: "this kernel does not take these options",
    }
    return HostError(f"{what}: {exc}", hint=hints.get(exc.code, ""))


# -- looking ---------------------------------------------------------------------------------------------------------


def mounted_beneath(top: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> list[Path]:
    """Every NFS mount directly in `top`, the newest last. Asks the kernel's list, never the mounts."""
    found = []
    for line in mountinfo.read_text().splitlines():
        words = line.split()
        path = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4]))
        if path.parent == top and words[words.index("-") + 1].startswith("nfs"):
            found.append(path)
    return found


# -- taking back -----------------------------------------------------------------------------------------------------


def unmount(target: Path) -> None:
    """Undo `mount`, whatever the server does, and once the VMM is gone. Raises HostError when it is still mounted."""
    top = target.parent
    while target in mounted_beneath(top):
        if not (top / _FORCED).exists() and _umount(target, 0, _UMOUNT_S):
            continue
        # A dead server, or somebody who holds a file: nothing of ours that still counts.
        log.warning("forcing an unmount path=%s", target)
        # The first attempt may have come to its end after we gave it up: then there is nothing left to be unmounted.
        if not _umount(target, _MNT_FORCE | _MNT_DETACH, _FORCE_S) and target in mounted_beneath(top):
            raise HostError(f"{target} cannot be unmounted", hint="the next start, DestroyTask or sweep tries again")
    with contextlib.suppress(FileNotFoundError):
        target.rmdir()
    tidy(top)


def clear(top: Path) -> None:
    """Take back everything in the directory of a machine's mounts. Raises HostError when something is still mounted."""
    for target in mounted_beneath(top):
        unmount(target)
    for place in top.glob("[!.]*"):  # of a mount that was never made, or that a reboot took away
        with contextlib.suppress(OSError):  # somebody's files: they stay
            place.rmdir()
    tidy(top)


def tidy(top: Path) -> None:
    """Remove the directory of a machine's mounts with the last of them."""
    if mounted_beneath(top) or any(path.is_dir() for path in top.glob("[!.]*")):
        return
    for path in (top / _FORCED, *top.glob(".fetched-*")):
        path.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        top.rmdir()


def free(top: Path, gone: Callable[[float], bool], *, timeout_s: float) -> bool:
    """Wait until whoever was sent SIGKILL is gone, aborting what it waits for in the mounts in `top` again and again.

    `gone` waits so many seconds and says whether it is so. False when it still lives after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    if gone(_FIRST_FORCE_S if mounted_beneath(top) else timeout_s):
        return True
    while time.monotonic() < deadline:
        if mounted_beneath(top):
            (top / _FORCED).touch()
        abort(top)
        if gone(min(_FORCE_S, max(0.0, deadline - time.monotonic()))):
            return True
    return False


def abort(top: Path) -> None:
    """Fail all calls to servers that are on their way in the mounts in `top`. The mounts stay."""
    for target in mounted_beneath(top):
        log.warning("aborting I/O on a file server path=%s", target)
        _umount(target, _MNT_FORCE, _FORCE_S)


def _umount(target: Path, flags: int, timeout_s: float) -> bool:
    try:
        far.call("umount", {"target": str(target), "flags": flags}, timeout_s=timeout_s)
    except far.SilentError:
        return False
    except far.FarError as exc:
        if exc.code == errno.EBUSY and flags == _MNT_FORCE:
            return True  # what it is for: calls in flight were aborted all the same
        log.info("umount path=%s flags=%d: %s", target, flags, exc)
        return False
    return True
