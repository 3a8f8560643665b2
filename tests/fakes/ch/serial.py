"""The serial port: bytes between the guest and a pty, a file or a socket. The guest never waits for a reader."""

import contextlib
import os
import socket
import termios
import threading
import tty
from collections.abc import Callable, Mapping
from typing import Any

from tests.fakes.ch.config import RefusedError
from tests.fakes.ch.threads import Loop

KEPT_BYTES = 1 << 20
_RETRY_S = 0.05
_LAST_WORDS_S = 1.0


class Serial:
    """One port, from `vm.create` or a reboot to the machine's end. Any thread may call `output` and `close`."""

    def __init__(self, loop: Loop, config: Mapping[str, Any], typed: Callable[[bytes], None]) -> None:
        """Raises RefusedError when the place is taken. The path of a pty is in `path`."""
        self._loop = loop
        self._typed = typed
        self._kept = bytearray()
        self._waiting = False
        self._empty = threading.Event()
        self._empty.set()
        self._fds: list[int] = []
        self._out: int | None = None
        self._listener: socket.socket | None = None
        self._client: socket.socket | None = None
        self._socket_path = ""
        self._closed = False
        self.path = ""
        match config["mode"]:
            case "Pty":
                self._open_pty()
            case "File":
                self._out = os.open(config["file"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                self._fds = [self._out]
            case "Tty":
                self._out = 1
            case "Socket":
                self._listen(config["socket"])

    def output(self, data: bytes) -> None:
        """What the guest wrote."""
        self._loop.call(lambda: self._keep(data))

    def close(self) -> None:
        """Let the reader have what is there, then end. From another thread than the loop's."""
        self._loop.ask(lambda: None)  # what was written before has arrived
        self._empty.wait(_LAST_WORDS_S)
        self._loop.ask(self._close)

    def _open_pty(self) -> None:
        ours, theirs = os.openpty()
        tty.setraw(theirs, termios.TCSANOW)
        # Kept open: without any reader the kernel would say "hung up" instead of keeping what is written.
        self._fds = [ours, theirs]
        for fd in self._fds:
            os.set_inheritable(fd, False)
        self.path = os.ttyname(theirs)
        with contextlib.suppress(OSError):
            os.chmod(self.path, 0o600)
        os.set_blocking(ours, False)
        self._out = ours
        self._loop.call(lambda: self._loop.watch(ours, self._readable))

    def _listen(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(path)
        except OSError as exc:
            words = f"{exc.strerror} (os error {exc.errno})"
            raise RefusedError("Error creating console devices", "Error creating console device", words) from exc
        self._socket_path = path
        self._listener.listen(1)
        listener = self._listener
        self._loop.call(lambda: self._loop.watch(listener.fileno(), self._accept))

    def _accept(self) -> None:
        assert self._listener is not None
        if self._client is not None:  # the newest wins
            self._loop.unwatch(self._client.fileno())
            self._client.close()
        self._client, _ = self._listener.accept()
        self._client.setblocking(False)
        self._out = self._client.fileno()
        self._loop.watch(self._client.fileno(), self._readable)
        self._pump()

    def _readable(self) -> None:
        assert self._out is not None
        try:
            data = os.read(self._out, 4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._typed(data)
        elif self._client is not None:
            self._loop.unwatch(self._client.fileno())
            self._client.close()
            self._client = self._out = None

    def _keep(self, data: bytes) -> None:
        if self._closed:
            return
        self._kept += data
        del self._kept[: max(0, len(self._kept) - KEPT_BYTES)]
        if not self._waiting:
            self._pump()

    def _pump(self) -> None:
        self._waiting = False
        if self._closed:
            return
        if self._out is None:
            if self._listener is None:  # nowhere to go
                self._kept.clear()
            return
        try:
            while self._kept:
                del self._kept[: os.write(self._out, self._kept)]
        except BlockingIOError:
            self._waiting = True
            self._loop.after(_RETRY_S, self._pump)
        except OSError:
            self._kept.clear()
        if self._kept:
            self._empty.clear()
        else:
            self._empty.set()

    def _close(self) -> None:
        self._closed = True
        for fd in self._fds:
            self._loop.unwatch(fd)
            os.close(fd)
        for sock in (self._client, self._listener):
            if sock is not None:
                self._loop.unwatch(sock.fileno())
                sock.close()
        if self._socket_path:
            with contextlib.suppress(OSError):
                os.unlink(self._socket_path)
