"""Files that survive a crash, and files that a job names: opened beneath a directory, used by descriptor."""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmlib.errors import SpecError

if TYPE_CHECKING:  # what it costs to import, each keeper would pay
    from vmlib.spec import FileRef

_libc = ctypes.CDLL(None, use_errno=True)
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08

# What says of a file that it is damaged, and not that it cannot be read just now (too many open files, no memory).
_BROKEN = (errno.EIO, errno.EISDIR, errno.ELOOP, errno.EUCLEAN)


class _OpenHow(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(root: Path, relative: str, flags: int = os.O_RDONLY) -> int:
    """Open `relative` beneath `root`; the caller owns the descriptor.

    Links are followed as long as they stay beneath `root`. Raises OSError; EXDEV means that the path leaves `root`.
    """
    dir_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
        fd = _libc.syscall(_SYS_OPENAT2, dir_fd, os.fsencode(relative), ctypes.byref(how), ctypes.sizeof(how))
        if fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(root / relative))
        return int(fd)
    finally:
        os.close(dir_fd)


def open_ref(ref: "FileRef", *, key: str, writable: bool = False, max_bytes: int = 1 << 40) -> int:
    """Open the regular file that the job named with `key`; the caller owns the descriptor.

    Everything may be done with it: of a file on a server it is a copy on this host, without a name. Such a file may
    have `max_bytes`, and is opened for writing by `vmlib.remote` alone. Raises SpecError, NoCapacityError when the
    server does not answer.
    """
    if ref.nfs is not None:
        assert not writable
        from vmlib import remote  # here: it would cost each keeper, which opens no such file, memory

        return remote.fetch(ref, key=key, max_bytes=max_bytes)
    try:
        # Only a place at first: opening a FIFO might hang us, and opening a device may be a deed.
        place = open_beneath(ref.root, ref.relative, os.O_PATH)
        try:
            if not stat.S_ISREG(os.fstat(place).st_mode):
                raise SpecError(f"{key} = {str(ref)!r}: not a regular file")
            return os.open(f"/proc/self/fd/{place}", (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        finally:
            os.close(place)
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        raise refused(ref, exc.errno or 0, reason, key=key, writable=writable) from exc


def refused(ref: "FileRef", code: int, reason: str, *, key: str, writable: bool = False) -> SpecError:
    """Why the file that the job named with `key` cannot be opened."""
    if code == errno.EXDEV:
        top = ref.root if ref.nfs is None else f"nfs://{ref.nfs.name}"
        return SpecError(f"{key} = {str(ref)!r}: leads out of {top}, expected a file beneath it")
    return SpecError(f"{key} = {str(ref)!r}: {reason}, expected a {'writable' if writable else 'readable'} file")


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write beside the target, sync, rename over it: a reader sees the old or the new content, after a crash too.

    When this returns the new content is there after a power failure as well.
    """
    beside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(fd)
        os.rename(beside, path)
        sync_directory(path.parent)
    except BaseException as exc:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        if isinstance(exc, OSError):
            exc.filename = str(path)  # a write or sync that fails does not say of what, and nobody knows what is beside
        raise


def parse_json(data: bytes) -> Any:
    """Raises ValueError for whatever is none, one that is nested too deep among it."""
    try:
        return json.loads(data)
    except RecursionError as exc:
        raise ValueError("nested too deep") from exc


def read_own(path: Path) -> bytes:
    """A file of ours. Raises ValueError when it is damaged, so that nobody will ever read it, and OSError otherwise."""
    try:
        return path.read_bytes()
    except OSError as exc:
        if exc.errno not in _BROKEN:
            raise
        raise ValueError((exc.strerror or str(exc)).lower()) from exc


def directory_identity(directory: Path) -> str:
    """Tells a directory from another one of its name, until the host reboots."""
    status = directory.stat()
    return f"{status.st_dev}:{status.st_ino}"


def each(machines: Path, name: str) -> Iterator[Path]:
    """Every `*/*/name` there, whether it exists or not.

    Raises OSError where one cannot look: from Python 3.12 on a glob passes over that, as if there were nothing.
    """
    for above in names(machines):
        for machine in names(machines / above):
            yield machines / above / machine / name


def names(directory: Path) -> list[str]:
    """What lies in a directory, in order; nothing where there is none. Raises OSError where one cannot look."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(os.listdir(directory))
    return []


def sync_directory(path: Path) -> None:
    """What was made, renamed or removed in a directory is so after a power failure, too."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # a filesystem that has no such thing
            raise
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """Make a directory (0700) and those above it that are missing, for good; one that is there is fine."""
    while True:
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            if not path.is_dir():
                raise
            return
        except FileNotFoundError:  # the one above; whoever removes empty ones may be at work there
            make_directory(path.parent)
            continue
        sync_directory(path.parent)
        return


@contextlib.contextmanager
def locked(path: Path, *, blocking: bool = True) -> Iterator[int]:
    """Hold an exclusive flock on `path` (made when missing). Raises BlockingIOError when not `blocking` and taken."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
            if _is_file_at(fd, path):
                yield fd
                return
        finally:
            os.close(fd)


def _is_file_at(fd: int, path: Path) -> bool:
    """False when whoever held the lock before us removed the file: the lock on a removed one keeps nobody out."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
