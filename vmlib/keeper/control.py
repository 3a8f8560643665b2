"""The keeper's side of its control socket: one JSON object a line, requests in, answers and events out."""

import json
import socket
from collections.abc import Callable
from typing import Any

from vmlib.lines import LineBuffer

_MAX_REQUEST = 1 << 20  # a plan is a request too
_MAX_UNSENT = 1 << 20  # a client that does not read is dropped


class Client:
    """One connection. A `taker` gets its socket once all answers are given: with what could not be sent yet."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.subscribed = False
        self.taker: Callable[[socket.socket, bytes], None] | None = None
        self.closed = False
        self._lines = LineBuffer(_MAX_REQUEST)
        self._unsent = bytearray()

    @property
    def fd(self) -> int:
        return self.sock.fileno()

    @property
    def waiting(self) -> bool:
        return bool(self._unsent)

    def receive(self) -> list[dict[str, Any]]:
        """Read what is there; return the requests. Marks the client closed at its end or on nonsense."""
        try:
            data = self.sock.recv(1 << 16)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return []
        try:
            requests = [json.loads(line) for line in self._lines.feed(data)]
        except (ValueError, RecursionError):  # not JSON, or a line that is too long
            self.closed = True
            return []
        return [request for request in requests if isinstance(request, dict)]

    def send(self, message: dict[str, Any]) -> None:
        if self.closed:
            return
        data = json.dumps(message).encode() + b"\n"
        if len(self._unsent) + len(data) > _MAX_UNSENT:
            self.closed = True
            return
        self._unsent += data
        self.pump()

    def give_away(self) -> None:
        """The socket is somebody else's from now on."""
        assert self.taker is not None
        self.taker(self.sock, bytes(self._unsent))

    def pump(self) -> None:
        while self._unsent:
            try:
                sent = self.sock.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.closed = True
                return
            del self._unsent[:sent]
