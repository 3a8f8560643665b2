"""Calls into the guest over Cloud Hypervisor's vsock, again and again until somebody there answers."""

import contextlib
import math
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

from vmlib.keeper.fds import connect, receive
from vmlib.keeper.loop import Loop

AGENT_PORT = 1000  # of the guest
_ANSWER_S = 5.0
_AGAIN_S, _MUCH_LATER_S = 1.0, 10.0  # between calls; the second once it is likely that nobody ever answers
_SOON_CALLS = 120
_LONGEST_ANSWER = 32  # "OK " and a port


class Caller:
    """Calls while it is `wanted`. `answered` gets the connection, which is its owner's then."""

    def __init__(self, loop: Loop, path: Path, uid: int, answered: Callable[[socket.socket], None]) -> None:
        """`path` is where the VMM listens, whose user is `uid`."""
        self._loop = loop
        self._path = path
        self._uid = uid
        self._answered = answered
        self._wanted = False
        self._sock: socket.socket | None = None
        self._call = 0  # counts calls, so that the timer of an earlier one means nothing
        self._misses = 0
        self._tried_at = -math.inf

    def want(self, wanted: bool) -> None:
        """Begin, or stop. Called again with the same it changes nothing."""
        if wanted == self._wanted:
            return
        self._wanted = wanted
        self._misses = 0
        self._hang_up()
        if wanted:  # not at once again, when a guest answers and hangs up for ever
            self._try_after(self._tried_at + _AGAIN_S - time.monotonic())

    def _try(self) -> None:
        self._hang_up()
        if not self._wanted:
            return
        self._tried_at = time.monotonic()
        call = self._call
        self._loop.after(_ANSWER_S, lambda: self._missed() if call == self._call else None)
        try:
            self._sock = _connect_to_owned(self._path, self._uid)
            self._sock.send(f"CONNECT {AGENT_PORT}\n".encode())
        except OSError:
            self._missed()
            return
        self._loop.on_read(self._sock.fileno(), self._on_answer)

    def _on_answer(self) -> None:
        assert self._sock is not None
        # Not one byte more than the line: what comes after it is the guest's.
        try:
            data = self._sock.recv(_LONGEST_ANSWER, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        line, end, _ = data.partition(b"\n")
        if data and not end and len(data) < _LONGEST_ANSWER:
            return
        if not end or not line.startswith(b"OK "):
            self._missed()
            return
        receive(self._sock, len(line) + 1)
        sock, self._sock = self._sock, None
        self._loop.forget(sock.fileno())
        self._wanted = False
        self._hang_up()
        self._answered(sock)

    def _missed(self) -> None:
        self._hang_up()
        self._misses += 1
        self._try_after(_AGAIN_S if self._misses < _SOON_CALLS else _MUCH_LATER_S)

    def _try_after(self, pause_s: float) -> None:
        call = self._call
        self._loop.after(max(0.0, pause_s), lambda: self._try() if call == self._call else None)

    def _hang_up(self) -> None:
        self._call += 1
        if self._sock is not None:
            self._loop.forget(self._sock.fileno())
            with contextlib.suppress(OSError):
                self._sock.close()
        self._sock = None


def _connect_to_owned(path: Path, uid: int) -> socket.socket:
    """Raises OSError. The directory is the VMM's: a link there could lead us to a socket that is nothing to a VMM."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != uid:
            raise PermissionError(f"{path}: not a socket of the VMM's")
        return connect(Path(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)
