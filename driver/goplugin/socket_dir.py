"""A private directory for the plugin's socket, and the removal of those whose plugins were killed."""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from driver.goplugin.handshake import SOCKET_PATH_MAX_BYTES, HandshakeError

_SOCKET = "p.sock"


@contextlib.contextmanager
def private_socket(parents: Sequence[Path], prefix: str) -> Iterator[Path]:
    """Path for a unix socket in a new 0700 directory beneath the first of `parents` that will do; removed at the end.

    The directory is locked for as long as its process lives, however that ends. That is how the next one knows which
    directories with its `prefix` are left over.
    """
    reasons = []
    for parent in parents:
        try:
            directory, lock_fd = _make(parent, prefix)
        except OSError as exc:
            reasons.append(f"{parent}: {(exc.strerror or str(exc)).lower()}")
            continue
        try:
            path = directory / _SOCKET
            if len(os.fsencode(path)) > SOCKET_PATH_MAX_BYTES:
                reasons.append(f"{parent}: socket path would be longer than {SOCKET_PATH_MAX_BYTES} bytes")
                continue
            remove_left_over(parent, prefix)
            yield path
            return
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            os.close(lock_fd)
    raise HandshakeError(f"no directory for the plugin's socket: {'; '.join(reasons)}")


def remove_left_over(parent: Path, prefix: str) -> None:
    """Remove our own directories that no living process holds. What cannot be removed stays."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(parent):
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _remove_if_unheld(Path(entry.path))


def _remove_if_unheld(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != stat.S_IRWXU:
            return
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory)
    finally:
        os.close(fd)


def _make(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new directory and the descriptor that holds its lock."""
    for _ in range(100):
        directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        # Until we hold the lock another plugin may take it for a left-over.
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if directory.exists():
                    return directory, fd
            os.close(fd)
    raise OSError(errno.EBUSY, "another process removes every directory that is made")
