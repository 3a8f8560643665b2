"""Starts a VMM from a LaunchPlan without keeper and launcher, and does by hand what these do for it."""

import contextlib
import json
import os
import re
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vmlib.hypervisor.base import LaunchPlan

Message = dict[str, Any]


class DirectMachine:
    """A running VMM: its process, its console, its events and what came over the guest channel."""

    def __init__(self, plan: LaunchPlan, run_dir: Path, *, stack: contextlib.ExitStack) -> None:
        for name in ("console.in", "console.out", "stderr"):
            os.mkfifo(run_dir / name)
        self.console = b""
        self.channel = b""
        self.errors = b""
        self.events: list[Message] = []
        self._event_bytes = b""
        self._all_events = b""
        listeners = {name: stack.enter_context(_listen(run_dir / file)) for name, file in plan.listeners.items()}
        fds = {**plan.files, **{name: sock.fileno() for name, sock in listeners.items()}}
        # Opened for both directions, as the keeper does: neither open waits for the other side.
        ours = {name: _open(run_dir / name, stack) for name in ("console.in", "console.out", "stderr")}
        theirs = {name: os.open(run_dir / name, os.O_RDWR | os.O_CLOEXEC) for name in ours}
        try:
            self.process = subprocess.Popen(
                [re.sub(r"\{fd:([a-z0-9_.-]+)\}", lambda found: str(fds[found[1]]), word) for word in plan.argv],
                stdin=theirs["console.in"],
                stdout=theirs["console.out"],
                stderr=theirs["stderr"],
                env=dict(plan.environment),
                pass_fds=tuple(fds.values()),
                start_new_session=True,
                cwd="/",
            )
        finally:
            for fd in theirs.values():
                os.close(fd)
        stack.callback(self._end)
        self._console_in = ours["console.in"]
        self._readers: dict[int, Callable[[bytes], None]] = {
            ours["console.out"]: self._take_console,
            ours["stderr"]: self._take_errors,
        }
        events = stack.enter_context(_connect(run_dir / plan.listeners[plan.monitor]))
        channel = stack.enter_context(_connect(run_dir / plan.listeners[plan.channel]))
        # Only now: a VMM that ended at once must not take the sockets away before we have connected.
        for sock in listeners.values():
            sock.close()
        events.sendall(b'{"execute": "qmp_capabilities"}\n')
        self._readers[events.fileno()] = self._take_events
        self._readers[channel.fileno()] = self._take_channel
        self.paused_readers: set[int] = set()
        self.console_fd = ours["console.out"]
        # The greeting and the answer to the capabilities: from here on the VMM tells its events.
        self.until(lambda: b'"return"' in self._all_events, "an answer on the event monitor")

    def open_console(self, path: str) -> None:
        """For VMMs that make their console by themselves."""

    def type(self, text: str) -> None:
        """Type into the console."""
        os.write(self._console_in, text.encode())

    def pump(self, timeout_s: float = 0.0) -> None:
        """Take in whatever comes within `timeout_s`."""
        poll = select.poll()
        for fd in self._readers.keys() - self.paused_readers:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(timeout_s * 1000):
            try:
                data = os.read(fd, 1 << 16)
            except BlockingIOError:  # another file by now, with the number of one that is gone
                continue
            except OSError:  # reset, or a pty whose other side is closed
                data = b""
            if data:
                self._readers[fd](data)
            else:
                self._readers.pop(fd, None)

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        """Take in what comes until `condition` holds; fails the test after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}\n{self.report()}"
            assert self.process.poll() is None or self._any_left(), f"the VMM ended before {what}\n{self.report()}"
            self.pump(0.1)

    def until_line(self, text: str, *, count: int = 1, timeout_s: float = 60.0) -> None:
        """Wait until the console has shown `text` that many times."""
        self.until(lambda: self.console.count(text.encode()) >= count, f"{count} x {text!r} on the console", timeout_s)

    def until_event(self, name: str) -> Message:
        """Wait for the first event of that name; return its data."""
        self.until(lambda: bool(self.named(name)), f"event {name}")
        return self.named(name)[0]

    def named(self, name: str) -> list[Message]:
        """The data of every event of that name."""
        return [event.get("data", {}) for event in self.events if event["event"] == name]

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for the end, read everything that is left; return the wait status as subprocess says it."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s for the end\n{self.report()}"
            self.pump(0.05)
        while self._any_left():
            self.pump()
        return int(self.process.returncode)

    def report(self) -> str:
        """All that is known, for the message of a failed test."""
        return f"console: {self.console[-2000:]!r}\nevents: {self.events}\nstderr: {self.errors!r}"

    def _any_left(self) -> bool:
        poll = select.poll()
        for fd in self._readers.keys() - self.paused_readers:
            poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))

    def _take_console(self, data: bytes) -> None:
        self.console += data

    def _take_errors(self, data: bytes) -> None:
        self.errors += data

    def _take_channel(self, data: bytes) -> None:
        self.channel += data

    def _take_events(self, data: bytes) -> None:
        self._all_events += data
        *lines, self._event_bytes = (self._event_bytes + data).split(b"\n")
        messages = [json.loads(line) for line in lines if line.strip()]
        self.events += [message for message in messages if "event" in message]

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def direct_launch(plan: LaunchPlan, run_dir: Path) -> Iterator[DirectMachine]:
    """A VMM of that plan, held, with the test as its keeper; ended at the latest when the block ends."""
    with contextlib.ExitStack() as stack:
        yield DirectMachine(plan, run_dir, stack=stack)


def _open(path: Path, stack: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(4)
    return sock


def _connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock
