"""Who looks at the guest's console: any number watch, one of them types.

A connection that asked for the console is its bytes from then on, both ways. The first that wants to type does; the
others of those wait for their turn if they can be told of it, in a line between those of the guest.
"""

import contextlib
import functools
import select
import socket
import time
from collections.abc import Mapping
from typing import Any

from vmlib.keeper.console import Typing
from vmlib.keeper.control import Client
from vmlib.keeper.fds import receive
from vmlib.keeper.loop import Action, Loop

_MOST = 16
_MAX_UNSENT = 1 << 20  # one that does not read is dropped
_WHO = 100  # characters
_FAREWELL_S = 1.0


class Watcher:
    """One connection. `who` is what others are told of it."""

    def __init__(self, sock: socket.socket, unsent: bytes, *, who: str, notices: bool) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.who = who
        self.notices = notices
        self.lost = False
        self.on_words: Action = lambda: None
        self._unsent = bytearray(unsent)

    @property
    def waiting(self) -> bool:
        return bool(self._unsent)

    def send(self, data: bytes) -> None:
        self.lost = self.lost or len(self._unsent) + len(data) > _MAX_UNSENT
        if not self.lost:
            self._unsent += data
            self.pump()

    def tell(self, text: str) -> None:
        if self.notices:
            self.send(f"\r\nchv: {text}\r\n".encode(errors="replace"))

    def pump(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self.sock.send(self._unsent)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.lost = True

    def hung_up(self) -> bool:
        """Also when what it has typed before is not read yet."""
        poll = select.poll()
        poll.register(self.sock, select.POLLRDHUP)
        return bool(poll.poll(0))


class Watchers:
    """`typing` is where what the writer says goes; while that is full, the writer is not read."""

    def __init__(self, loop: Loop, typing: Typing) -> None:
        self._loop = loop
        self._typing = typing
        self._all: list[Watcher] = []
        self._writers: list[Watcher] = []  # the first one types, the others wait

    def invite(self, client: Client, wish: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a client that asks for the console: whether it types, else who does."""
        for one in [one for one in self._all if one.hung_up()]:
            self._drop(one)
        if len(self._all) >= _MOST:
            return {"ok": False, "reason": f"{_MOST} others have the console already"}
        write, take = wish.get("write") is True, wish.get("take") is True
        who = "".join(char for char in str(wish.get("who", "")) if char.isprintable())[:_WHO] or "somebody"
        notices = wish.get("notices") is True
        writer = self._writers[0].who if self._writers else ""
        writes = write and (take or not writer)

        def come(sock: socket.socket, unsent: bytes) -> None:
            one = Watcher(sock, unsent, who=who, notices=notices)
            self._all.append(one)
            one.on_words = functools.partial(self._on_words, one)
            self._loop.on_read(sock.fileno(), one.on_words)
            if writes:
                self._take(one)
            elif write and notices:
                self._writers.append(one)

        client.taker = come
        return {"ok": True, "writes": writes, "writer": writer}

    def show(self, data: bytes) -> None:
        """What the guest says."""
        for one in self._all:
            one.send(data)

    def arm(self) -> None:
        """Ask for what can be read and written now, and let go of those that are gone."""
        for one in [one for one in self._all if one.lost]:
            self._drop(one)
        for one in self._all:
            held = self._typing.full and one in self._writers[:1]
            self._loop.want_read(one.sock.fileno(), None if held else one.on_words)
            self._loop.want_write(one.sock.fileno(), one.pump if one.waiting else None)

    def say_farewell(self) -> None:
        """The machine has ended: who reads gets a moment for its last words."""
        deadline = time.monotonic() + _FAREWELL_S
        for one in self._all:
            while one.waiting and not one.lost and (left := deadline - time.monotonic()) > 0:
                select.select([], [one.sock], [], left)
                one.pump()
            one.sock.close()
        self._all.clear()

    def _on_words(self, one: Watcher) -> None:
        data = receive(one.sock)
        if data is None:
            self._drop(one)
        elif data and one in self._writers[:1]:  # what the others type goes nowhere
            self._typing.add(data)

    def _take(self, one: Watcher) -> None:
        before = self._writers[:1]
        self._writers.insert(0, one)
        for other in before:
            other.tell(f"{one.who} types now, you watch")

    def _drop(self, one: Watcher) -> None:
        if one not in self._all:
            return
        self._all.remove(one)
        typed = one in self._writers[:1]
        if one in self._writers:
            self._writers.remove(one)
        self._loop.forget(one.sock.fileno())
        with contextlib.suppress(OSError):
            one.sock.close()
        if typed and self._writers:
            self._writers[0].tell("you type now")
