"""The HTTP server on the API socket: one request at a time, ten connections, descriptors that come with a request."""

import array
import contextlib
import json
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.ch.threads import Loop

MAX_CONNECTIONS = 10
MAX_BODY_BYTES = 51_200
MAX_FDS = 253
_REASONLESS = "HTTP/1.1 {status} \r\nServer: {server}\r\nConnection: keep-alive\r\n{more}\r\n"


@dataclass(slots=True)
class Request:
    verb: str
    path: str
    body: bytes | None
    fds: list[int]


class MalformedError(Exception):
    """What is no request to this server."""


def answer(status: int, body: Any = None, *, raw: bytes | None = None, server: str = "Cloud Hypervisor API") -> bytes:
    """An answer with a JSON body, with the bytes `raw`, or (204) with none."""
    data = raw if raw is not None else b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    more = "" if status == 204 else f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    return _REASONLESS.format(status=status, server=server, more=more).encode() + data


@dataclass(slots=True)
class _Connection:
    sock: socket.socket
    data: bytes = b""
    fds: list[int] = field(default_factory=list)


class Server:
    """Gives each whole request to `handle`, which returns the bytes to send, or None for hanging up."""

    def __init__(self, loop: Loop, listener: socket.socket, handle: Callable[[Request], bytes | None]) -> None:
        self._loop = loop
        self._listener = listener
        self._handle = handle
        self._connections: list[_Connection] = []
        listener.setblocking(False)
        loop.watch(listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            words = b'{ "error": "Too many open connections" }'
            head = (
                f"HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: {len(words)}\r\n\r\n"
            )
            with contextlib.suppress(OSError):
                sock.sendall(head.encode() + words)
            sock.close()
            return
        connection = _Connection(sock)
        self._connections.append(connection)
        self._loop.watch(sock.fileno(), lambda: self._readable(connection))

    def _readable(self, connection: _Connection) -> None:
        try:
            data, ancillary, _, _ = connection.sock.recvmsg(1 << 16, socket.CMSG_SPACE(MAX_FDS * 4))
        except OSError:
            data, ancillary = b"", []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
                for fd in numbers:
                    os.set_inheritable(fd, False)
                connection.fds += numbers
        if not data:
            self._close(connection)
            return
        connection.data += data
        while connection in self._connections and connection.data:
            try:
                request = take_request(connection)
            except MalformedError as exc:
                connection.data = b""
                text = f'{{ "error": "{exc}\nAll previous unanswered requests will be dropped." }}'
                self._send(connection, answer(400, raw=text.encode(), server="Firecracker API"))
                return
            if request is None:
                return
            said = self._handle(request)
            for fd in request.fds:  # whoever keeps one has made a copy
                os.close(fd)
            if said is None:
                self._close(connection)
            else:
                self._send(connection, said)

    def _send(self, connection: _Connection, data: bytes) -> None:
        try:
            connection.sock.sendall(data)
        except OSError:
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        for fd in connection.fds:
            os.close(fd)
        self._loop.unwatch(connection.sock.fileno())
        connection.sock.close()
        self._connections.remove(connection)


def take_request(connection: _Connection) -> Request | None:
    """The first request in the buffer, None when it is not whole yet. Raises MalformedError."""
    head, end, rest = connection.data.partition(b"\r\n\r\n")
    if not end:
        if len(head) > MAX_BODY_BYTES:
            raise MalformedError("Invalid request.")
        return None
    first, *fields = head.decode("latin-1").split("\r\n")
    verb, _, path_and_version = first.partition(" ")
    path, _, version = path_and_version.partition(" ")
    if version not in ("HTTP/1.0", "HTTP/1.1") or not path:
        raise MalformedError("Invalid request.")
    if verb not in ("GET", "PUT", "PATCH"):
        raise MalformedError("Invalid HTTP Method: Unsupported HTTP method.")
    length = 0
    for line in fields:
        name, _, value = line.partition(":")
        if name.lower() == "transfer-encoding" and "chunked" in value.lower():
            raise MalformedError("Invalid request.")
        if name.lower() == "content-length":
            if re.fullmatch(r"\d+", value.strip()) is None:
                raise MalformedError("Invalid request.")
            length = int(value)
    if length > MAX_BODY_BYTES:
        raise MalformedError(
            f"Request payload with size {length} is larger than the limit of {MAX_BODY_BYTES} allowed by server."
        )
    if len(rest) < length:
        return None
    connection.data = rest[length:]
    fds, connection.fds = connection.fds, []
    return Request(verb, path, rest[:length] if length else None, fds)
