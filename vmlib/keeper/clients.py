"""Everybody who is connected to a keeper, and the events that it tells them or keeps for whoever comes."""

import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmlib.keeper.control import Client
from vmlib.keeper.loop import Loop
from vmlib.kinds import EventKind

_EVENTS_KEPT = 64  # for a plugin that is away
_MAX_CLIENTS = 64
_FAREWELL_S = 1.0

Answer = Callable[[Client, dict[str, Any]], dict[str, Any]]


class Clients:
    """`answer` takes a request and gives its answer."""

    def __init__(self, loop: Loop, *, answer: Answer) -> None:
        self._loop = loop
        self._answer = answer
        self._all: list[Client] = []
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS_KEPT)
        self._seq = 0

    def listen(self, path: Path) -> None:
        """Let others connect at `path`, which a keeper before us may have left."""
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(16)
        listener.setblocking(False)
        self._listener = listener
        self._loop.on_read(listener.fileno(), self._on_connect)

    def add(self, sock: socket.socket) -> Client:
        client = Client(sock)
        self._all.append(client)
        self._loop.on_read(client.fd, lambda: self._on_client(client))
        return client

    def arm_writers(self) -> None:
        for client in self._all:
            if not client.closed:
                self._loop.want_write(client.fd, client.pump if client.waiting else None)

    def drop_closed(self) -> None:
        for client in [client for client in self._all if client.closed]:
            self._loop.forget(client.fd)
            client.sock.close()
            self._all.remove(client)

    def tell(self, kind: EventKind, text: str) -> None:
        """Tell whoever listens, and keep it for whoever comes."""
        self._seq += 1
        event = {"seq": self._seq, "kind": kind, "text": text, "at": time.time()}
        self._events.append(event)
        for client in self._all:
            if client.subscribed:
                client.send({"event": event})

    def acknowledge(self, seq: int) -> None:
        while self._events and self._events[0]["seq"] <= seq:
            self._events.popleft()

    def say_farewell(self, message: dict[str, Any], lease: Client | None) -> None:
        """The last message, for which everybody gets a moment."""
        for client in self._all:
            if client.subscribed or client is lease:
                client.sock.setblocking(True)
                client.sock.settimeout(_FAREWELL_S)
                client.send(message)

    def _on_connect(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            if len(self._all) < _MAX_CLIENTS:
                self.add(sock)
            else:
                sock.close()

    def _on_client(self, client: Client) -> None:
        for request in client.receive():
            client.send(self._answer(client, request))
            if client.subscribed and request.get("op") == "subscribe":
                for event in self._events:
                    client.send({"event": event})
        if client.taker is not None and not client.closed:
            self._loop.forget(client.fd)
            self._all.remove(client)
            client.give_away()
