"""The real guest agent as a process on this host, and a host's end for it that tests steer frame by frame."""

import itertools
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from vmlib.guest.delivery import agent_source
from vmlib.guest.wire import (
    CANCEL,
    CREDIT,
    DATA,
    EXITED,
    HELLO,
    NOTE,
    OPEN,
    PONG,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    WINDOW,
    Decoder,
    Frame,
    credit_of,
    encode,
    encode_credit,
    encode_data,
    encode_json,
    json_of,
)

T = TypeVar("T")
LIMIT_S = 30.0  # for whatever is expected to happen


@cache
def pythons() -> dict[str, str]:
    """By its version, from 3.6 on: our own interpreter, and the oldest and the newest on PATH or of pyenv."""
    found = {".".join(map(str, sys.version_info[:2])): sys.executable}
    roots = [Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()]
    places = [*os.environ.get("PATH", os.defpath).split(os.pathsep)]
    places += [str(path) for root in roots for path in root.glob("versions/*/bin")]
    for minors in (range(6, 30), range(29, 5, -1)):
        for version, program in ((f"3.{minor}", _python(f"3.{minor}", places)) for minor in minors):
            if program:
                found.setdefault(version, program)
                break
    return dict(sorted(found.items(), key=lambda item: int(item[0].partition(".")[2])))


def _python(version: str, places: list[str]) -> str:
    """An interpreter of that version that runs: a shim of pyenv's may be there for one that is not the chosen one."""
    named = (shutil.which(f"python{version}", path=place) for place in places)
    return next((one for one in named if one and does(one, "")), "")


def does(python: str, script: str) -> bool:
    """Whether an interpreter can do that."""
    return subprocess.run([python, "-c", script], check=False, capture_output=True).returncode == 0


@dataclass
class Stream:
    """One thing that the agent does for the host."""

    host: "Host"
    number: int
    said: dict[int, bytearray] = field(default_factory=lambda: {STDOUT: bytearray(), STDERR: bytearray()})
    ended: set[int] = field(default_factory=set)  # channels
    exited: dict[str, Any] | None = None
    credit: int = WINDOW  # bytes that we may still send
    waiting: bytearray = field(default_factory=bytearray)
    ends: bool = False

    def send(self, data: bytes) -> None:
        self.waiting += data
        self.host.feed(self)

    def end(self) -> None:
        self.ends = True
        self.host.feed(self)

    def resize(self, rows: int, cols: int) -> None:
        self.host.write(encode_json(RESIZE, self.number, {"rows": rows, "cols": cols}))

    def cancel(self) -> None:
        self.host.write(encode(CANCEL, self.number))

    def wait(self, timeout_s: float = LIMIT_S) -> dict[str, Any]:
        """How it ended."""
        return self.host.until(lambda: self.exited, timeout_s)

    def until_says(self, text: bytes) -> bytes:
        """All that it has said on stdout, once `text` is in there."""
        self.host.until(lambda: text in self.said[STDOUT])
        return self.out

    @property
    def out(self) -> bytes:
        return bytes(self.said[STDOUT])

    @property
    def err(self) -> bytes:
        return bytes(self.said[STDERR])


class Host:
    """The host's end of a channel to an agent."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.reads = True
        self.whole = True  # no frame is damaged on the way
        self.gives_credit = True
        self.hellos: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.lines: list[bytes] = []
        self.pongs: list[bytes] = []
        self._streams: dict[int, Stream] = {}
        self._numbers = itertools.count(1)
        self._sessions = itertools.count(1)
        self._outgoing = bytearray()
        self._decoder = Decoder()

    def begin(self, timeout_s: float = LIMIT_S) -> dict[str, Any]:
        """A new session; the agent's answer. The streams of an earlier one are forgotten."""
        name = f"session {next(self._sessions)}"
        self._streams = {}
        self.write(encode_json(HELLO, 0, {"version": 1, "session": name}))
        return self.until(lambda: next((hello for hello in self.hellos if hello["session"] == name), None), timeout_s)

    def open(self, **wanted: Any) -> Stream:
        stream = Stream(self, next(self._numbers))
        self._streams[stream.number] = stream
        self.write(encode_json(OPEN, stream.number, wanted))
        return stream

    def exec(self, *argv: str, **wanted: Any) -> Stream:
        return self.open(op="exec", argv=argv, **wanted)

    def shell(self, script: str, **wanted: Any) -> Stream:
        return self.exec("sh", "-c", script, **wanted)

    def run(self, script: str, **wanted: Any) -> tuple[dict[str, Any], bytes, bytes]:
        """A script of sh, to its end: how it ended, stdout, stderr."""
        stream = self.shell(script, **wanted)
        exited = stream.wait()
        return exited, stream.out, stream.err

    def set_environment(self, text: bytes) -> dict[str, Any]:
        stream = self.open(op="environment")
        stream.send(text)
        stream.end()
        return stream.wait()

    def write(self, data: bytes) -> None:
        self._outgoing += data
        self.step(0.0)

    def feed(self, stream: Stream) -> None:
        """Pass on what the stream has for the agent, within its credit."""
        data = bytes(stream.waiting[: stream.credit])
        if data:
            del stream.waiting[: len(data)]
            stream.credit -= len(data)
            self._outgoing += encode_data(stream.number, STDIN, data)
        if stream.ends and not stream.waiting:
            stream.ends = False
            self._outgoing += encode_data(stream.number, STDIN, b"")

    def until(self, what: Callable[[], T | None], timeout_s: float = LIMIT_S) -> T:
        """The first answer of `what` that is true."""
        deadline = time.monotonic() + timeout_s
        while not (found := what()):
            assert time.monotonic() < deadline, f"not within {timeout_s} s; {self.hellos=} {self._streams=}"
            self.step(0.1)
        return found

    def rest(self, seconds: float) -> None:
        """Go on for a while."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.step(left)

    def step(self, timeout_s: float) -> None:
        """Read and write what can be."""
        ready, writable, _ = select.select(
            [self.sock] if self.reads else [], [self.sock] if self._outgoing else [], [], timeout_s
        )
        if writable:
            del self._outgoing[: self.sock.send(self._outgoing[: 1 << 16])]
        if ready:
            data = self.sock.recv(1 << 16)
            assert data, "the agent has closed its end"
            for one in self._decoder.feed(data):
                self._take(one)
            assert self._decoder.dropped == 0 or not self.whole

    def _take(self, one: Frame | bytes) -> None:
        if not isinstance(one, Frame):
            self.lines.append(one)
        elif one.kind == HELLO:
            self.hellos.append(json_of(one))
        elif one.kind == NOTE:
            self.notes.append(json_of(one))
        elif one.kind == PONG:
            self.pongs.append(one.payload)
        elif (stream := self._streams.get(one.stream)) is not None:
            self._take_of(stream, one)

    def _take_of(self, stream: Stream, frame: Frame) -> None:
        assert stream.exited is None, f"{frame} after the end"
        if frame.kind == DATA:
            channel, data = frame.payload[0], frame.payload[1:]
            assert channel not in stream.ended, f"{frame} after that channel's end"
            if data:
                stream.said[channel] += data
                if self.gives_credit:
                    self._outgoing += encode_credit(stream.number, len(data))
            else:
                stream.ended.add(channel)
        elif frame.kind == CREDIT:
            stream.credit += credit_of(frame)
            assert stream.credit <= WINDOW, "credit for what was never sent"
            self.feed(stream)
        else:
            assert frame.kind == EXITED, frame
            stream.exited = json_of(frame)


@dataclass
class AgentProcess:
    """An agent that runs, with the host's end of its channel."""

    host: Host
    pid: int
    program: Path
    python: str
    environment_file: Path

    def status_kib(self, field_name: str) -> int:
        """A line of /proc/PID/status in KiB, as VmHWM."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{field_name}:"))

    def cpu_s(self) -> float:
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def exit_program(self, *words: str, **how: Any) -> "subprocess.CompletedProcess[str]":
        """`chv-exit`, with programs that power nothing off first on its PATH."""
        harmless = self.program.parent / "harmless"
        harmless.mkdir(exist_ok=True)
        for name in ("poweroff", "systemctl"):
            (harmless / name).write_text(f"#!/bin/sh\necho {name} >>{harmless}/called\n")
            (harmless / name).chmod(0o755)
        return subprocess.run(
            [self.python, "-IS", str(self.program), "exit", *words],
            env={"PATH": f"{harmless}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
            **how,
        )


@contextmanager
def running_agent(
    python: str, directory: Path, changed: Mapping[str, object] | None = None, *, says: str = ""
) -> Iterator[AgentProcess]:
    """Start the agent under `python` as a service would, without a locale. It has to end by itself.

    `changed` are constants of its source, each with the value that it has here; `says` is all that it writes to stderr.
    """
    directory.chmod(0o755)
    source = agent_source()
    places: dict[str, object] = {
        "HOME": str(directory / "run"),
        "HOOKS": str(directory / "signals"),
        "PORT_NAME": "none",
        "EXIT_PORT": 1,
    }
    for name, value in {**places, **(changed or {})}.items():
        (line,) = [line for line in source.splitlines() if line.startswith(f"{name} = ")]
        source = source.replace(f"\n{line}\n", f"\n{name} = {value!r}\n")
    program = directory / "agent.py"
    program.write_text(source)
    environment_file = directory / "nomad" / "env"
    ours, theirs = socket.socketpair()
    with ours, (directory / "stderr").open("w+b") as stderr:
        with theirs:
            process = subprocess.Popen(
                [python, "-IS", str(program), "fd", str(theirs.fileno()), str(environment_file)],
                pass_fds=[theirs.fileno()],
                env={"PATH": "/usr/bin:/bin"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        try:
            yield AgentProcess(Host(ours), process.pid, program, python, environment_file)
            ours.close()
            code = process.wait(LIMIT_S)
            stderr.seek(0)
            assert (code, stderr.read().decode()) == (0, says)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            stderr.seek(0)
            print(stderr.read().decode())
