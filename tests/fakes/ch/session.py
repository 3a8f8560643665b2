"""A `cloud-hypervisor` process, fake or real, and somebody who talks to it by hand: no code of vmlib takes part."""

import contextlib
import json
import os
import re
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Session:
    """One process, its API socket handed over, its events in a pipe, and the guest's serial port when that is read."""

    def __init__(self, executable: Path, directory: Path, *, words: Sequence[str] = ("-v",), read_stderr: bool = True):
        self.directory = directory
        self.api = directory / "api"
        self.console = b""
        self.stderr = b""
        self.events_text = ""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.api))
        listener.listen(16)
        self._events, events_in = os.pipe()
        self._stderr, stderr_in = os.pipe()
        os.set_blocking(self._events, False)
        os.set_blocking(self._stderr, False)
        self._readers = {self._events: self._take_event}
        if read_stderr:
            self._readers[self._stderr] = self._take_stderr
        self._pty: int | None = None
        self.process = subprocess.Popen(
            [str(executable), "--api-socket", f"fd={listener.fileno()}", "--event-monitor", f"fd={events_in}", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr_in,
            pass_fds=(listener.fileno(), events_in),
            cwd="/",
        )
        for fd in (events_in, stderr_in):
            os.close(fd)
        listener.close()

    def call(
        self, verb: str, name: str, body: Any = None, *, timeout_s: float = 30.0, fds: Sequence[int] = ()
    ) -> Answer:
        """Raises TimeoutError, ConnectionError when there is no answer to be had, ValueError when it is none."""
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        length = "" if body is None else f"Content-Length: {len(data)}\r\n"
        head = f"{verb} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n".encode()
        return self.raw(head + data, timeout_s=timeout_s, fds=fds)

    def raw(self, data: bytes, *, timeout_s: float = 30.0, fds: Sequence[int] = ()) -> Answer:
        with self.connect(timeout_s) as sock:
            if fds:
                sent = socket.send_fds(sock, [data], list(fds))
                data = data[sent:]
            sock.sendall(data)
            return receive(sock)

    def connect(self, timeout_s: float = 30.0) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout_s)
        sock.connect(str(self.api))
        return sock

    def put(self, name: str, body: Any = None, **more: Any) -> Answer:
        return self.call("PUT", name, body, **more)

    def get(self, name: str, **more: Any) -> Answer:
        return self.call("GET", name, **more)

    def must(self, name: str, body: Any = None, **more: Any) -> None:
        answer = self.put(name, body, **more)
        assert answer.status in (200, 204), f"{name}: {answer}\n{self.report()}"

    def info(self) -> dict[str, Any]:
        answer = self.get("vm.info")
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.json
        return found

    def open_console(self) -> str:
        """Read the serial port from now on. Returns the path of its pty."""
        self.close_console()
        path = str(self.info()["config"]["serial"]["file"])
        self._pty = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self._readers[self._pty] = self._take_console
        return path

    def close_console(self) -> None:
        if self._pty is not None:
            self._readers.pop(self._pty, None)
            os.close(self._pty)
            self._pty = None

    def type(self, text: str) -> None:
        assert self._pty is not None
        os.write(self._pty, text.encode())

    def drain_stderr(self) -> None:
        """Read stderr from now on."""
        self._readers[self._stderr] = self._take_stderr

    def pump(self, timeout_s: float = 0.0) -> None:
        """Take in what comes."""
        ready, _, _ = select.select(list(self._readers), [], [], timeout_s)
        for fd in ready:
            data = b""
            with contextlib.suppress(OSError):
                data = os.read(fd, 1 << 16)
            if data:
                self._readers[fd](data)
            else:
                del self._readers[fd]

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}\n{self.report()}"
            self.pump(0.05)
            if not self._readers:
                time.sleep(0.01)

    def until_line(self, text: str, *, count: int = 1) -> None:
        self.until(lambda: self.console.count(text.encode()) >= count, f"{count} x {text!r} on the console")

    def until_event(self, name: str, *, count: int = 1) -> None:
        self.until(lambda: self.events().count(name) >= count, f"{count} x the event {name}")

    def events(self) -> list[str]:
        """What the event monitor has told, as `vm/booted`; devices by their id, as `virtio-device/reset root`."""
        self.pump()
        return [
            "/".join((one["source"], one["event"]))
            + "".join(f" {value}" for value in (one["properties"] or {}).values())
            for one in parse_events(self.events_text)
        ]

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for the end, read what is left; the status as subprocess says it."""
        self.until(lambda: self.process.poll() is not None, "the end", timeout_s)
        for _ in range(50):
            self.pump()
        return int(self.process.returncode)

    def threads(self) -> dict[str, int]:
        """Name to number."""
        found = {}
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            found[(task / "comm").read_text().strip()] = int(task.name)
        return found

    def report(self) -> str:
        return f"console: {self.console[-1500:]!r}\nevents: {self.events()}\nstderr: {self.stderr[-1500:].decode()}"

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.close_console()
        for fd in (self._events, self._stderr):
            os.close(fd)

    def _take_event(self, data: bytes) -> None:
        self.events_text += data.decode()

    def _take_stderr(self, data: bytes) -> None:
        self.stderr += data

    def _take_console(self, data: bytes) -> None:
        self.console += data


def receive(sock: socket.socket) -> Answer:
    """One answer. Raises ConnectionError, ValueError for what is none."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(sock, data)
    head, _, body = data.partition(b"\r\n\r\n")
    found = re.match(rb"HTTP/1\.1 (\d{3})", head)
    if found is None:
        raise ValueError(f"no answer of a server: {head[:64]!r}")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    wanted = int(length[1]) if length else 0
    while len(body) < wanted:
        body += _more(sock, body)
    return Answer(int(found[1]), body)


def _more(sock: socket.socket, seen: bytes) -> bytes:
    data = sock.recv(1 << 16)
    if not data:
        raise ConnectionError(f"hung up after {seen[:64]!r}")
    return data


def parse_events(text: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder()
    at = 0
    while at < len(text):
        try:
            one, at = decoder.raw_decode(text, at)
        except ValueError:
            return  # the rest is on its way
        yield one
        while at < len(text) and text[at].isspace():
            at += 1
