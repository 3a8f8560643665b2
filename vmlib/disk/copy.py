"""Copies of large files: shared blocks where the filesystem can, else data only, holes kept; nothing partial stays."""

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from vmlib.errors import HostError, NoCapacityError, VmError
from vmlib.files import sync_directory

_FICLONE = 0x40049409
_CHUNK_BYTES = 1 << 20
_IN_KERNEL_BYTES = 64 << 20  # at once, so that progress can be told
# What says "not on these two files" and not "something is broken".
_CANNOT_SHARE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "disk quota used up"}


# Bytes that are done, and all of them.
Progress = Callable[[int, int], None]


def clone_or_copy(source_fd: int, target_fd: int, *, progress: Progress | None = None) -> Literal["reflink", "sparse"]:
    """Give the empty file `target_fd` the content of `source_fd`. Moves the read position of the source."""
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError as exc:
        if exc.errno not in _CANNOT_SHARE:
            raise
    else:
        return "reflink"
    # Piece by piece, because copy_file_range over the whole file fills its holes on ext4.
    size = os.fstat(source_fd).st_size
    os.ftruncate(target_fd, size)
    pos = 0
    while pos < size:
        try:
            start = os.lseek(source_fd, pos, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # only a hole is left
                break
            raise
        pos = min(os.lseek(source_fd, start, os.SEEK_HOLE), size)
        for begin in range(start, pos, _IN_KERNEL_BYTES):
            _copy_range(source_fd, target_fd, begin, min(begin + _IN_KERNEL_BYTES, pos))
            if progress is not None:
                progress(begin, size)
    return "sparse"


def _copy_range(source_fd: int, target_fd: int, start: int, end: int) -> None:
    in_kernel = True
    while start < end:
        if in_kernel:
            try:
                count = os.copy_file_range(source_fd, target_fd, end - start, start, start)
            except OSError as exc:
                if exc.errno not in _CANNOT_SHARE:  # EXDEV between filesystems of two kinds
                    raise
                in_kernel = False
                continue
        else:
            data = os.pread(source_fd, min(_CHUNK_BYTES, end - start), start)
            count = os.pwrite(target_fd, data, start) if data else 0
        if count == 0:
            raise OSError(errno.EIO, "source became shorter while it was copied")
        start += count


@contextlib.contextmanager
def made_beside(path: Path) -> Iterator[tuple[int, Path]]:
    """A new empty file beside `path` (0600, open for reading and writing), renamed to `path` when the block ends well.

    Otherwise it is removed. What earlier processes left there when they were killed is removed as well, so at most
    one may be at work on `path`.
    """
    for stale in path.parent.glob(f".{path.name}.*"):
        stale.unlink(missing_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield fd, beside
        os.fsync(fd)
        os.rename(beside, path)
        sync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise
    finally:
        os.close(fd)


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Say in words which file the host could not give us room or access for."""
    try:
        yield
    except OSError as exc:
        raise _in_words(what, exc) from exc
    except HostError as exc:
        # A tool's last words; it has no other way to tell us.
        for code, reason in _FULL.items():
            if os.strerror(code).lower() in str(exc).lower():
                raise NoCapacityError(f"{what}: {reason} on the host") from exc
        raise


def _in_words(what: str, exc: OSError) -> VmError:
    full = _FULL.get(exc.errno or 0)
    if full is not None:
        return NoCapacityError(f"{what}: {full} on the host")
    return HostError(f"{what}: {(exc.strerror or str(exc)).lower()}")
