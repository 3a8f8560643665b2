"""The sockets and the serial port of the fake VMM: what QEMU's chardevs do, in one loop. Standard library only."""

import contextlib
import fcntl
import json
import os
import selectors
import socket
from collections.abc import Callable, Mapping
from typing import Any

MAX_REQUEST_BYTES = 1 << 20
CONSOLE_ROOM_BYTES = 1 << 14

Event = dict[str, Any]


class Port:
    """A listening socket that serves one client at a time, as QEMU's socket chardev does."""

    def __init__(self, loop: selectors.BaseSelector, fd: int) -> None:
        self._loop = loop
        self._listener = socket.socket(fileno=fd)
        self._listener.setblocking(False)
        self._out = bytearray()
        self.client: socket.socket | None = None
        loop.register(self._listener, selectors.EVENT_READ, self._accept)

    def connected(self) -> None:
        """A client has come."""

    def received(self, data: bytes) -> None:
        """The client sent something."""

    def send(self, data: bytes) -> None:
        """Queue for the client; dropped when there is none or when it reads nothing at all."""
        if self.client is not None and len(self._out) < MAX_REQUEST_BYTES:
            self._out += data
            self._pump()

    def flush(self, timeout_s: float) -> None:
        """Give the client a last chance to read."""
        if self.client is not None:
            with contextlib.suppress(OSError):
                self.client.settimeout(timeout_s)
                self.client.sendall(self._out)

    def hang_up(self) -> None:
        """Drop the client and serve the next one."""
        if self.client is not None:
            self._loop.unregister(self.client)
            self.client.close()
            self.client = None
            self._out.clear()
            self._loop.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self, _mask: int) -> None:
        try:
            self.client, _ = self._listener.accept()
        except BlockingIOError:
            return
        self.client.setblocking(False)
        self._loop.unregister(self._listener)
        self._loop.register(self.client, selectors.EVENT_READ, self._ready)
        self.connected()

    def _ready(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._pump()
        if self.client is None or not mask & selectors.EVENT_READ:
            return
        try:
            data = self.client.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.received(data)
        else:
            self.hang_up()

    def _pump(self) -> None:
        if self.client is None:
            return
        try:
            while self._out:
                del self._out[: self.client.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self.hang_up()
            return
        interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        self._loop.modify(self.client, interest, self._ready)


class Monitor(Port):
    """One QMP server."""

    def __init__(self, loop: selectors.BaseSelector, fd: int, execute: Callable[[str, Mapping[str, Any]], Any]) -> None:
        super().__init__(loop, fd)
        self._execute = execute
        self._rest = b""
        self._negotiated = False

    def connected(self) -> None:
        self._rest = b""
        self._negotiated = False
        version = {"qemu": {"major": 0, "minor": 0, "micro": 0}, "package": "fake"}
        self._say({"QMP": {"version": version, "capabilities": []}})

    def event(self, event: Event) -> None:
        """Tell the client, if it has switched events on."""
        if self._negotiated:
            self._say(event)

    def received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_REQUEST_BYTES:
            self.hang_up()
            return
        for line in lines:
            if line.strip():
                self._say(self._answer(line))

    def _answer(self, line: bytes) -> Event:
        try:
            request = json.loads(line)
            command = str(request["execute"])
            arguments = dict(request.get("arguments", {}))
        except (ValueError, TypeError, KeyError):
            return {"error": {"class": "GenericError", "desc": "JSON parse error, not a command"}}
        tag = {"id": request["id"]} if "id" in request else {}
        if not self._negotiated:
            if command != "qmp_capabilities":
                desc = "Expecting capabilities negotiation with 'qmp_capabilities'"
                return {"error": {"class": "CommandNotFound", "desc": desc}, **tag}
            self._negotiated = True
            return {"return": {}, **tag}
        try:
            return {"return": self._execute(command, arguments), **tag}
        except LookupError:
            desc = f"The command {command} has not been found"
            return {"error": {"class": "CommandNotFound", "desc": desc}, **tag}

    def _say(self, message: Event) -> None:
        self.send(json.dumps(message).encode() + b"\r\n")


class Console:
    """The serial port: standard input and output, never waited for."""

    def __init__(self, loop: selectors.BaseSelector, typed: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._typed = typed
        self._out = bytearray()
        for fd in (0, 1):
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
        loop.register(0, selectors.EVENT_READ, self._readable)

    def room(self) -> bool:
        """False while the reader is behind: a guest that prints waits then."""
        return len(self._out) < CONSOLE_ROOM_BYTES

    def empty(self) -> bool:
        return not self._out

    def write(self, text: str) -> None:
        waiting = bool(self._out)
        self._out += text.replace("\n", "\r\n").encode()
        if not waiting:
            self._pump()
            if self._out:
                self._loop.register(1, selectors.EVENT_WRITE, lambda _mask: self._pump_and_rest())

    def _pump_and_rest(self) -> None:
        self._pump()
        if not self._out:
            self._loop.unregister(1)

    def _pump(self) -> None:
        try:
            while self._out:
                del self._out[: os.write(1, self._out)]
        except BlockingIOError:
            pass
        except OSError:  # nobody will ever read it
            self._out.clear()

    def _readable(self, _mask: int) -> None:
        try:
            data = os.read(0, 1 << 12)
        except BlockingIOError:
            return
        if data:
            self._typed(data)
        else:
            self._loop.unregister(0)
