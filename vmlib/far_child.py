"""Does one thing that may hang, and is killed when it does. Standard library only; see `vmlib.far`.

Run by path, as `python -I -S …/far_child.py PARENT_PID`, with a socket on standard input: a request comes in, an answer
goes out, both with descriptors if need be.
"""

import array
import base64
import contextlib
import ctypes
import errno
import json
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Isolated mode knows no site-packages; the library is found from where this file lies.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vmlib.errors import HostError, NoCapacityError
from vmlib.files import open_beneath
from vmlib.hold import hold_image

_PR_SET_PDEATHSIG = 1
_CHUNK_BYTES = 1 << 20
_SAY_EVERY_S = 1.0
_BUSY = b'{"busy": true}'

_libc = ctypes.CDLL(None, use_errno=True)

Answer = tuple[dict[str, Any], list[int]]


class _FailedError(Exception):
    def __init__(self, step: str, code: int, words: str) -> None:
        super().__init__(words)
        self.step = step
        self.code = code


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise _FailedError(name, exc.errno or 0, exc.strerror or str(exc)) from exc


def _open(root: str, relative: str, *, write: bool) -> int:
    # O_NONBLOCK: opening a FIFO that somebody put there must not hang even us.
    with _step("open"):
        return open_beneath(Path(root), relative, (os.O_RDWR if write else os.O_RDONLY) | os.O_NONBLOCK)


def _hold(fd: int, *, alone: bool) -> None:
    with _step("read"):
        try:
            hold_image(fd, alone=alone, what="")
        except NoCapacityError as exc:
            raise _FailedError("held", 0, str(exc).removeprefix(": ")) from exc
        except HostError as exc:
            raise _FailedError("locks", 0, str(exc).removeprefix(": ")) from exc


def open_(*, root: str, relative: str, write: bool, hold: str, head_bytes: int) -> Answer:
    """A file's descriptor, what stat says of it, and its first bytes."""
    fd = _open(root, relative, write=write)
    with _step("read"):
        status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise _FailedError("kind", 0, "not a regular file")
    if hold:
        _hold(fd, alone=hold == "alone")
    with _step("read"):
        status = os.fstat(fd)
        head = os.pread(fd, head_bytes, 0)
    facts = {name: getattr(status, name) for name in ("st_mode", "st_ino", "st_size", "st_mtime_ns")}
    return {"status": facts, "head": base64.b64encode(head).decode()}, [fd]


def fetch(sock: socket.socket, target: int, *, root: str, relative: str, max_bytes: int) -> None:
    """Copy a file's data into the empty one that came with the request; holes stay holes."""
    fd = _open(root, relative, write=False)
    with _step("read"):
        status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise _FailedError("kind", 0, "not a regular file")
    if status.st_size > max_bytes:
        raise _FailedError("size", errno.EFBIG, str(status.st_size))
    _hold(fd, alone=False)
    with _step("write"):
        os.ftruncate(target, status.st_size)
    said_at = time.monotonic()
    for start, end in _data(fd, status.st_size):
        pos = start
        while pos < end:
            with _step("read"):
                piece = os.pread(fd, min(_CHUNK_BYTES, end - pos), pos)
            if not piece:
                raise _FailedError("read", errno.EIO, "became shorter while it was copied")
            with _step("write"):
                pos += os.pwrite(target, piece, pos)
            if time.monotonic() - said_at > _SAY_EVERY_S:
                said_at = time.monotonic()
                sock.send(_BUSY)


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has data, and not only a hole."""
    pos = 0
    while pos < size:
        with _step("read"):
            try:
                start = os.lseek(fd, pos, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno == errno.ENXIO:  # only a hole is left
                    return
                raise
            pos = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, pos


def resize(fd: int, *, size: int) -> None:
    with _step("write"):
        os.ftruncate(fd, size)


def mount(
    *,
    server: str,
    port: int,
    export: str,
    target: str,
    options: str,
    flags: int,
    connect_s: float,
) -> None:
    """Mount an export. A connection first: what that meets says more than what mount(2) would say, and sooner."""
    with _step("resolve"):
        addresses = socket.getaddrinfo(server, port, type=socket.SOCK_STREAM)
    with _step("connect"):
        its, mine = _connect([(info[0], info[4]) for info in addresses], connect_s)
    source = f"[{its}]:{export}" if ":" in its else f"{its}:{export}"
    data = ",".join([options, f"addr={its}", f"clientaddr={mine}"])
    with _step("mount"):
        _check(_libc.mount(os.fsencode(source), os.fsencode(target), b"nfs4", ctypes.c_ulong(flags), data.encode()))


def _connect(addresses: list[tuple[int, Any]], timeout_s: float) -> tuple[str, str]:
    """The first of the server's addresses that answers, and ours on the way to it."""
    last = OSError(errno.EHOSTUNREACH, "has no address")
    for family, address in addresses:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.settimeout(timeout_s)
                probe.connect(address)
                return probe.getpeername()[0], probe.getsockname()[0]
        except TimeoutError:
            last = OSError(errno.ETIMEDOUT, f"no answer within {timeout_s:g} s")
        except OSError as exc:
            last = exc
    raise last


def umount(*, target: str, flags: int) -> None:
    with _step("umount"):
        _check(_libc.umount2(os.fsencode(target), flags))


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _do(sock: socket.socket, fds: list[int], op: str, details: dict[str, Any]) -> Answer:
    match op:
        case "open":
            return open_(**details)
        case "fetch":
            fetch(sock, fds[0], **details)
        case "resize":
            resize(fds[0], **details)
        case "mount":
            mount(**details)
        case "umount":
            umount(**details)
    return {}, []


def main() -> None:
    # Whoever started us may be killed while we hang, and nobody else knows us.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        raise SystemExit(1)
    sock = socket.socket(fileno=0)
    sock.send(_BUSY)  # from now on it is the server that takes the time
    data, fds, _, _ = socket.recv_fds(sock, 1 << 16, 1)
    request = json.loads(data)
    try:
        answer, given = _do(sock, fds, request.pop("op"), request)
    except _FailedError as exc:
        answer, given = {"failed": exc.step, "code": exc.code, "words": str(exc).lower()}, []
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", given))] if given else []
    sock.sendmsg([json.dumps(answer).encode()], rights)
    # Not before its receiver has one may our copy of what was given be closed: closing the last asks the server.
    sock.recv(1)


if __name__ == "__main__":
    main()
