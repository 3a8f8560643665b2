"""A person's terminal, or the pipe in its place, at a guest's console. Knows machines by vmlib alone."""

import contextlib
import os
import pwd
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Literal

from vmlib.keeper.client import Console

LEAVE = b"\x1d"  # Ctrl-]
_READ = 1 << 16
_AHEAD = 1 << 16  # typed and not yet taken by the keeper
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

Outcome = Literal["left", "lost", "refused"]


class Keyboard:
    """Standard input: a terminal, a pipe, or (-1) nothing."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.terminal = fd >= 0 and os.isatty(fd)

    @classmethod
    def standard_input(cls, *, watch: bool) -> "Keyboard":
        try:
            os.fstat(0)
        except OSError:  # closed
            return cls(-1)
        one = cls(0)
        return cls(-1) if watch and not one.terminal else one

    @contextlib.contextmanager
    def raw(self) -> Iterator[None]:
        """Every key as it is, and the terminal as it was at the end, whatever that is."""
        if not self.terminal:
            yield
            return
        before = termios.tcgetattr(self.fd)
        try:
            tty.setraw(self.fd, termios.TCSANOW)
            # Whoever has stopped us in between has set it otherwise.
            signal.signal(signal.SIGCONT, lambda *_: tty.setraw(self.fd, termios.TCSANOW))
            yield
        finally:
            for number in (*SIGNALS, signal.SIGCONT):
                signal.signal(number, signal.SIG_IGN)
            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(self.fd, termios.TCSANOW, before)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Signals that mean an end go to `handler`, and after that to whom they went before."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """A signal is an exception, so that what was begun is taken back; only the first one, so that nothing is left."""

    def end(number: int, _frame: FrameType | None) -> None:
        for other in SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    with handled(end):
        yield


def follow(line: Console, keyboard: Keyboard) -> Outcome:
    """Pass on what is typed and what the guest says, until one of both ends."""
    sock, typed, reads = line.sock, bytearray(), keyboard.fd >= 0
    while True:
        poll = select.poll()
        poll.register(sock, select.POLLIN | (select.POLLOUT if typed else 0))
        if reads and (keyboard.terminal or not typed):
            poll.register(keyboard.fd, select.POLLIN)
        ready = dict(poll.poll())
        if keyboard.fd in ready:
            data = os.read(keyboard.fd, _READ)
            before, key, _ = data.partition(LEAVE) if keyboard.terminal else (data, b"", b"")
            if key or (keyboard.terminal and not data):
                return "left"
            if data and not line.writes and not keyboard.terminal:
                return "refused"
            reads = bool(data)
            typed = (typed + before)[:_AHEAD]
        try:
            if typed:
                del typed[: sock.send(typed)]
        except BlockingIOError:
            pass
        except OSError:
            typed.clear()  # reading tells the end
        if ready.get(sock.fileno(), 0) & ~select.POLLOUT:
            try:
                said = sock.recv(_READ)
            except BlockingIOError:
                continue
            except OSError:
                return "lost"
            if not said:
                return "lost"
            write(said)


def write(data: bytes, fd: int = 1) -> None:
    while data:
        data = data[os.write(fd, data) :]


def say(keyboard: Keyboard, text: str) -> None:
    """To a person: a terminal in raw mode needs both ends of a line."""
    sys.stderr.write(f"chv: {text}\r\n" if keyboard.terminal else f"chv: {text}\n")
    sys.stderr.flush()


def me(keyboard: Keyboard) -> str:
    """For others at the same console."""
    user = os.environ.get("SUDO_USER", "")
    if not user:
        try:
            user = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            user = f"uid {os.getuid()}"
    place = ""
    if keyboard.terminal:
        with contextlib.suppress(OSError):
            place = f", {os.ttyname(keyboard.fd).removeprefix('/dev/')}"
    return f"{user} (pid {os.getpid()}{place})"
