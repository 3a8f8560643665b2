"""vsock as the host sees it: the socket that leads into the guest, and connections from the guest to `PATH_5000`.

The guest has a virtio-serial port instead (org.chv.agent.0): what it writes there goes to the host's port 5000.
"""

import contextlib
import os
import socket
from collections.abc import Callable

from tests.fakes.ch.config import RefusedError
from tests.fakes.ch.threads import Loop

AGENT_PORT = 5000
_FIRST_HOST_PORT = 1_073_741_824


class Vsock:
    """All but `open` runs in the loop."""

    def __init__(self, loop: Loop, path: str, *, listening: int | None, to_guest: Callable[[bytes], None]) -> None:
        """`listening` is a port of the guest's on which somebody answers: then `to_guest` gets what the host sends."""
        self._loop = loop
        self._path = path
        self._listening = listening
        self._to_guest = to_guest
        self._inward: list[socket.socket] = []  # connections from the host into the guest
        self._outward: socket.socket | None = None  # the one from the guest to the host
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(path)
        except OSError as exc:
            words = f"{exc.strerror} (os error {exc.errno})"
            raise RefusedError(
                "Error from device manager",
                "Cannot create virtio-vsock backend",
                "Error binding to the host-side Unix socket",
                words,
            ) from exc
        self._listener.listen(8)
        loop.call(lambda: loop.watch(self._listener.fileno(), self._accept))

    def from_guest(self, data: bytes) -> None:
        if self._inward:
            for sock in self._inward:
                with contextlib.suppress(OSError):
                    sock.sendall(data)
            return
        if self._outward is None:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(f"{self._path}_{AGENT_PORT}")
            except OSError:  # nobody listens: the guest's connection is refused, its words are lost
                sock.close()
                return
            self._outward = sock
            self._loop.watch(sock.fileno(), lambda: self._from_host(sock))
        with contextlib.suppress(OSError):
            self._outward.sendall(data)

    def guest_closed(self) -> None:
        """The guest's program let go of the port."""
        if self._outward is not None:
            self._drop(self._outward)

    def close(self, *, unlink: bool) -> None:
        for sock in (self._listener, *self._inward, *((self._outward,) if self._outward else ())):
            self._loop.unwatch(sock.fileno())
            sock.close()
        self._outward = None
        self._inward.clear()
        if unlink:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        words = b""

        def wanted() -> None:
            nonlocal words
            piece = b""
            with contextlib.suppress(OSError):
                piece = sock.recv(1)
            words += piece
            if piece and not words.endswith(b"\n") and len(words) < 32:
                return
            self._loop.unwatch(sock.fileno())
            if self._listening is None or words != f"CONNECT {self._listening}\n".encode():
                sock.close()  # nobody listens there
                return
            sock.sendall(f"OK {_FIRST_HOST_PORT}\n".encode())
            self._inward.append(sock)
            self._loop.watch(sock.fileno(), lambda: self._from_host(sock))

        self._loop.watch(sock.fileno(), wanted)

    def _from_host(self, sock: socket.socket) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = sock.recv(1 << 16)
        if data:
            self._to_guest(data)
        else:
            self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        self._loop.unwatch(sock.fileno())
        sock.close()
        if sock is self._outward:
            self._outward = None
        else:
            self._inward.remove(sock)
