"""One short request of the keeper's own to Cloud Hypervisor's API. It waits for nobody: the loop brings the answer."""

import contextlib
import re
import socket
from collections.abc import Callable
from pathlib import Path

from vmlib.keeper.fds import connect, receive
from vmlib.keeper.loop import Loop

_TIMEOUT_S = 5.0
_MAX_ANSWER = 1 << 20

Done = Callable[[int, bytes], None]


def parse_answer(data: bytes) -> tuple[int, bytes] | None:
    """Status and body; None while something is missing. Raises ValueError on what is no such answer."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        if len(data) > 1 << 14:
            raise ValueError("an endless head")
        return None
    status = re.match(rb"HTTP/1\.[01] ([0-9]{3})", head)
    if status is None:
        raise ValueError("no HTTP")
    found = re.search(rb"(?i)\r\ncontent-length: *([0-9]{1,9}) *(?:\r\n|$)", head)
    length = int(found[1]) if found else 0
    if length > _MAX_ANSWER:
        raise ValueError(f"an answer of {length} bytes")
    return None if len(body) < length else (int(status[1]), body[:length])


class ApiCall:
    """Calls `done` once: with status and body, or with status 0 when nothing came that can be understood in time."""

    def __init__(self, loop: Loop, path: Path, method: str, endpoint: str, done: Done) -> None:
        self._loop = loop
        self._done: Done | None = done
        self._data = bytearray()
        self._sock: socket.socket | None = None
        loop.after(_TIMEOUT_S, lambda: self._finish(0, b""))
        try:
            self._sock = connect(path)
            self._sock.send(f"{method} /api/v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n".encode())
        except OSError:
            if self._sock is not None:
                self._sock.close()
                self._sock = None
            loop.after(0, lambda: self._finish(0, b""))  # not before whoever called us has us
            return
        loop.on_read(self._sock.fileno(), self._on_readable)

    def cancel(self) -> None:
        """`done` is not called any more."""
        self._done = None
        self._finish(0, b"")

    def _on_readable(self) -> None:
        assert self._sock is not None
        data = receive(self._sock)
        if data is None:
            self._finish(0, b"")
            return
        self._data += data
        try:
            answer = parse_answer(bytes(self._data))
        except ValueError:
            self._finish(0, b"")
            return
        if answer is not None:
            self._finish(*answer)

    def _finish(self, status: int, body: bytes) -> None:
        if self._sock is not None:
            self._loop.forget(self._sock.fileno())
            with contextlib.suppress(OSError):
                self._sock.close()
            self._sock = None
        done, self._done = self._done, None
        if done is not None:
            done(status, body)
