"""Small steps on descriptors that never block and never raise for what is ordinary."""

import os
import socket
from pathlib import Path

from vmlib import process

READ_BYTES = 1 << 16


def leave_for(cgroups: list[str]) -> None:
    """Move into our own groups, out of those of the service that started us."""
    for group in cgroups:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))


def open_process(who: process.Identity) -> int | None:
    """A descriptor of that very process; None when it is gone."""
    try:
        fd = os.pidfd_open(who.pid)
    except ProcessLookupError:
        return None
    if process.alive(who):
        return fd
    os.close(fd)
    return None


def connect(path: Path) -> socket.socket:
    """Raises OSError, BlockingIOError when too many others wait there already."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    try:
        sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    return sock


def read(fd: int) -> bytes:
    try:
        return os.read(fd, READ_BYTES)
    except BlockingIOError:
        return b""


def receive(sock: socket.socket, most: int = READ_BYTES) -> bytes | None:
    """What came; None at the end."""
    try:
        return sock.recv(most) or None
    except (BlockingIOError, InterruptedError):
        return b""
    except OSError:
        return None
