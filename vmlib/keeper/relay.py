"""The guest channel, passed on to whoever serves the guest agent; lines of it that are for the keeper are told here.

What goes through is bytes: the keeper neither understands frames nor trusts either side with its memory. Each side is
held up while the other does not read.
"""

import contextlib
import socket
import time
from collections.abc import Callable

from vmlib.keeper.fds import receive
from vmlib.keeper.loop import Action, Loop
from vmlib.lines import LineBuffer

_LINE = 4096  # longer lines of a guest are passed over; frames are longer, and nothing to us
_FULL = 1 << 18  # bytes that wait for one side: the other one is not read meanwhile
_PATIENCE_S = 10.0  # with a client that does not read: the guest may have to say `exit N`


class _End:
    """One side: a socket that is ours, and what waits for it."""

    def __init__(self, sock: socket.socket, unsent: bytes = b"") -> None:
        sock.setblocking(False)
        self.sock = sock
        self._unsent = bytearray(unsent)

    @property
    def waiting(self) -> bool:
        return bool(self._unsent)

    @property
    def full(self) -> bool:
        return len(self._unsent) >= _FULL

    def send(self, data: bytes) -> None:
        self._unsent += data
        self.pump()

    def pump(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self.sock.send(memoryview(self._unsent)[:65536].tobytes())]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # its end, which reading tells as well
            self._unsent.clear()


class Relay:
    """Between the guest and one client at a time.

    `said` gets each line of the guest's. `changed` is called when a client or the guest has come or gone, for whoever
    has to see to a way into the guest.
    """

    def __init__(self, loop: Loop, said: Callable[[bytes], None], changed: Action = lambda: None) -> None:
        self._loop = loop
        self._said = said
        self._changed = changed
        self._lines = LineBuffer(_LINE, skip_long=True)
        self._guest: _End | None = None
        self._client: _End | None = None
        self._held_since: float | None = None  # the guest is not read, because the client does not
        self._timed = False  # one timer, however often that begins anew

    @property
    def has_client(self) -> bool:
        return self._client is not None

    @property
    def has_guest(self) -> bool:
        return self._guest is not None

    def take_guest(self, sock: socket.socket) -> None:
        """The way into the guest, from now on ours. Its end is forgotten by itself."""
        self.drop_guest()
        self._guest = _End(sock)
        self._lines = LineBuffer(_LINE, skip_long=True)
        self._loop.on_read(sock.fileno(), self._from_guest)

    def take_client(self, sock: socket.socket, unsent: bytes = b"") -> None:
        """Whoever serves the agent from now on; its socket is ours. `unsent` is what it has to be told first."""
        self._drop_client()
        self._client = _End(sock, unsent)
        self._loop.on_read(sock.fileno(), self._from_client)
        if self._guest is not None:
            self._guest.send(b"\n")  # the end of whatever half a line the one before has left
        self._changed()

    def arm(self) -> None:
        """Ask for what can be read and written now."""
        guest, client = self._guest, self._client
        if client is not None:
            self._arm(client, self._from_client, held=guest is not None and guest.full)
        if guest is not None:
            held = client is not None and client.full
            if held and self._held_since is None:
                self._held_since = time.monotonic()
                self._look_after(_PATIENCE_S)
            elif not held:
                self._held_since = None
            self._arm(guest, self._from_guest, held=held)

    def drain(self) -> None:
        """Take what the guest has said and was not read yet; to be called once the VMM has ended."""
        while self._guest is not None and self._from_guest():
            pass

    def drop_guest(self) -> None:
        if self._guest is not None:
            self._close(self._guest)
            self._guest = None

    def _arm(self, end: _End, action: Action, *, held: bool) -> None:
        fd = end.sock.fileno()
        self._loop.want_read(fd, None if held else action)
        self._loop.want_write(fd, end.pump if end.waiting else None)

    def _from_guest(self) -> bool:
        """True when there was something."""
        assert self._guest is not None
        data = receive(self._guest.sock)
        if data is None:
            for line in self._lines.feed(b"\n"):
                self._said(line)
            self.drop_guest()
            self._changed()
            return False
        if self._client is not None and data:
            self._client.send(data)
        for line in self._lines.feed(data):
            self._said(line)
        return bool(data)

    def _from_client(self) -> None:
        assert self._client is not None
        data = receive(self._client.sock)
        if data is None:
            self._drop_client()
            self._changed()
        elif self._guest is not None:  # else it is lost: whoever is in the guest begins with a greeting
            self._guest.send(data)

    def _look_after(self, pause_s: float) -> None:
        if not self._timed:
            self._timed = True
            self._loop.after(pause_s, self._lose_patience)

    def _lose_patience(self) -> None:
        self._timed = False
        if self._held_since is None:
            return
        left_s = self._held_since + _PATIENCE_S - time.monotonic()
        if left_s > 0.01:
            self._look_after(left_s)
            return
        self._drop_client()
        self._changed()

    def _drop_client(self) -> None:
        if self._client is not None:
            self._close(self._client)
            self._client, self._held_since = None, None

    def _close(self, end: _End) -> None:
        self._loop.forget(end.sock.fileno())
        with contextlib.suppress(OSError):
            end.sock.close()
