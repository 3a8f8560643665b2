"""The guest channel over vsock: the VMM connects here, once for each connection that the guest makes."""

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from vmlib.keeper.fds import receive
from vmlib.keeper.loop import Loop
from vmlib.lines import LineBuffer

_LINE = 4096  # longer lines of a guest are passed over
_MAX_CALLERS = 16  # the one that came first makes room


def listen_for_vmm(path: Path) -> socket.socket:
    """Listen at `path`, in a directory that is the VMM's and nobody else's, so that the VMM may connect.

    What lies there is removed. No chown and no chmod after the bind: the VMM could have put something else there.
    """
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0)
    try:
        sock.bind(str(path))
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(before)
    sock.listen(16)
    return sock


class ChannelListener:
    """Passes on each line that a guest says on any of its connections."""

    def __init__(self, loop: Loop, said: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._said = said
        self._listener: socket.socket | None = None
        self._callers: dict[socket.socket, LineBuffer] = {}

    def listen(self, path: Path) -> None:
        self._listener = listen_for_vmm(path)
        self._listener.setblocking(False)
        self._loop.on_read(self._listener.fileno(), self._on_call)

    def drain(self) -> None:
        """Take what was said and not read yet; to be called once the VMM has ended."""
        while self._on_call():
            pass
        for caller in list(self._callers):
            while caller in self._callers and self._on_words(caller):
                pass

    def _on_call(self) -> bool:
        """True when there was one."""
        if self._listener is None:
            return False
        try:
            caller, _ = self._listener.accept()
        except OSError:
            return False
        caller.setblocking(False)
        if len(self._callers) >= _MAX_CALLERS:
            self._forget(next(iter(self._callers)))
        self._callers[caller] = LineBuffer(_LINE, skip_long=True)
        self._loop.on_read(caller.fileno(), lambda: self._on_words(caller))
        return True

    def _on_words(self, caller: socket.socket) -> bool:
        """True when there were some."""
        data = receive(caller)
        lines = self._callers[caller]
        if data is None:
            # socat and the like may end without a line break.
            for line in lines.feed(b"\n"):
                self._said(line)
            self._forget(caller)
            return False
        for line in lines.feed(data):
            self._said(line)
        return bool(data)

    def _forget(self, caller: socket.socket) -> None:
        del self._callers[caller]
        self._loop.forget(caller.fileno())
        with contextlib.suppress(OSError):
            caller.close()
