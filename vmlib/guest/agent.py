"""The guest agent: runs inside the guest, serves the host, trusts nobody else. For Python 3.6 and later.

What goes into a guest is one file: this one with its neighbours before it (`delivery.py` joins them). One thread, one
loop over the channel, the commands that run, and those in the guest who want something of the host's.
"""

import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any, Callable, Dict, List, Optional

from vmlib.guest.environment import environment_file
from vmlib.guest.facts import HOOKED_SIGNALS, HOOKS, boot_id, hooks, numbers, quick_facts, uptime_s
from vmlib.guest.runs import RefusedError, Run
from vmlib.guest.service import HOST_CID, SOCKET, accept_vsock, end_machine, find_port, install, vsock
from vmlib.guest.wire import (
    CANCEL,
    CREDIT,
    DATA,
    EXITED,
    HELLO,
    MAX_STREAMS,
    NOTE,
    OPEN,
    PING,
    PONG,
    RESIZE,
    STDIN,
    VERSION,
    Decoder,
    Frame,
    credit_of,
    encode,
    encode_credit,
    encode_data,
    encode_json,
    json_of,
)

AGENT_PORT = 1000  # of the guest, over vsock: below 1024, where only root can be in the agent's place

_ANY_CID = 0xFFFFFFFF
_ENVIRONMENT_FILE = "/run/nomad/env"
_MOST_ENVIRONMENT = 4 << 20  # bytes
_OUT_FULL = 1 << 18  # bytes that wait for the host: commands have to wait too
_SILENCE_S = 30.0  # from the host, which pings: whoever wanted the commands is gone
_LOOK_S = 15.0  # between looks at the guest
_FIRST_LOOKS_S = 2.0  # the same while it still boots, or may be set up
_BOOTING_S = 120.0
_HOOKS_S = 30.0  # for all hooks of a signal
_RETRY_S = 1.0

# Each hook runs, whatever became of the one before; any failure is the failure of all.
_RUN_HOOKS = 'code=0; for hook in "$@"; do "$hook" || { echo "$hook: exit code $?" >&2; code=1; }; done; exit $code'


class Agent:
    """Everything that the agent knows and has open."""

    def __init__(self, channel: "Channel", environment_file: str = _ENVIRONMENT_FILE) -> None:
        self.channel = channel
        self.environment: Dict[str, str] = {}
        self.environment_file = environment_file
        self.session = ""
        self.runs: Dict[int, Run] = {}
        self.cancelled: List[Run] = []
        self.collecting: Dict[int, bytearray] = {}
        self.heard_at = time.monotonic()
        self.facts: Dict[str, Any] = {}
        self.look_at = 0.0
        self.numbers_at = 0.0
        self.started_uptime_s = uptime_s()

    # -- what the host says --------------------------------------------------------------------------------------

    def on_connected(self) -> None:
        """Somebody may be there: whatever was before is over."""
        self.end_session()
        self._say_hello()

    def on_frame(self, frame: Frame) -> None:
        self.heard_at = time.monotonic()
        if frame.kind == HELLO:
            self.end_session()
            self.session = str(json_of(frame).get("session", ""))[:64]
            self._say_hello()
        elif frame.kind == PING:
            self.channel.send(encode(PONG, 0, frame.payload))
        elif not self.session:
            pass  # of a session that we know nothing of
        elif frame.kind == OPEN:
            self._open(frame.stream, json_of(frame))
        elif frame.kind == DATA and frame.payload:
            self._take(frame.stream, frame.payload[0], frame.payload[1:])
        elif frame.kind == CREDIT and frame.stream in self.runs:
            self.runs[frame.stream].credit += credit_of(frame)
        elif frame.kind == RESIZE and frame.stream in self.runs:
            self.runs[frame.stream].resize(json_of(frame))
        elif frame.kind == CANCEL:
            self.collecting.pop(frame.stream, None)
            if frame.stream in self.runs:
                self.runs[frame.stream].cancel()

    def _say_hello(self) -> None:
        self.facts = quick_facts()
        hello = {
            "version": VERSION,
            "session": self.session,
            "boot_s": self.started_uptime_s,
            "boot_id": boot_id(),
            "python": sys.version.split()[0],
        }
        hello.update(self.facts)
        hello.update(numbers())
        self.channel.send(encode_json(HELLO, 0, hello))

    def _open(self, stream: int, wanted: Dict[str, Any]) -> None:
        if stream in self.runs or stream in self.collecting:
            return
        operation = wanted.get("op")
        try:
            if len(self.runs) + len(self.collecting) >= MAX_STREAMS:
                raise RefusedError(1, "{} commands run in the guest already".format(MAX_STREAMS))
            if operation == "environment":
                self.collecting[stream] = bytearray()
            elif operation == "exec":
                self._run(stream, wanted)
            elif operation == "signal":
                self._run(stream, {"argv": self._hooks_command(str(wanted.get("name"))), "cwd": "/"}, limit_s=_HOOKS_S)
            else:
                raise RefusedError(1, "{!r}: this agent does not know how".format(str(operation)[:32]))
        except RefusedError as exc:
            self._exited(stream, {"code": exc.code, "error": str(exc)})

    def _hooks_command(self, name: str) -> List[str]:
        if name not in HOOKED_SIGNALS:
            raise RefusedError(1, "{}: the agent knows {}".format(name[:32], ", ".join(HOOKED_SIGNALS)))
        found = list(hooks(name))
        if not found:
            raise RefusedError(1, "{0}: the guest has no executable in {1}/{0}.d/".format(name, HOOKS))
        return ["/bin/sh", "-c", _RUN_HOOKS, name, *found]

    def _run(self, stream: int, wanted: Dict[str, Any], limit_s: "Optional[float]" = None) -> None:
        run = Run(stream, wanted, self.environment, self._write)
        if limit_s is not None:
            run.deadline = time.monotonic() + limit_s
        self.runs[stream] = run

    def _write(self, stream: int, channel: int, data: bytes) -> None:
        self.channel.send(encode_data(stream, channel, data))

    def _exited(self, stream: int, result: Dict[str, Any]) -> None:
        self.channel.send(encode_json(EXITED, stream, result))

    def _take(self, stream: int, channel: int, data: bytes) -> None:
        if stream in self.runs:
            if not self.runs[stream].take(channel, data):
                self.runs[stream].cancel()
        elif stream in self.collecting and channel == STDIN:
            whole = self.collecting[stream]
            whole += data
            if data and len(whole) <= _MOST_ENVIRONMENT:
                self.channel.send(encode_credit(stream, len(data)))
                return
            del self.collecting[stream]
            self._exited(stream, self._set_environment(bytes(whole)))

    def _set_environment(self, text: bytes) -> Dict[str, Any]:
        try:
            values = json.loads(text.decode())
            if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
                raise ValueError("expected an object of texts")
            # What no process can have is left out: Linux has no way to hand it over.
            wanted = {
                name: value
                for name, value in values.items()
                if name and "=" not in name and "\0" not in name and "\0" not in value
            }
            content = environment_file(wanted)
            os.makedirs(os.path.dirname(self.environment_file), mode=0o755, exist_ok=True)
            beside = self.environment_file + ".new"
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(content)
            os.replace(beside, self.environment_file)
            self.environment = wanted
        except (ValueError, RecursionError) as exc:
            return {"code": 1, "error": "environment: {}".format(exc)}
        except OSError as exc:
            return {"code": 1, "error": "{}: {}".format(self.environment_file, (exc.strerror or str(exc)).lower())}
        return {"code": 0}

    def end_session(self) -> None:
        """End all that the host has begun."""
        for run in self.runs.values():
            run.cancel()
            self.cancelled.append(run)
        self.runs, self.collecting, self.session = {}, {}, ""

    # -- what happens by itself ----------------------------------------------------------------------------------

    def tend(self) -> None:
        """See to what has ended, what is due, and what has changed."""
        now = time.monotonic()
        for stream, run in list(self.runs.items()):
            if run.consumed > 0:
                self.channel.send(encode_credit(stream, run.consumed))
                run.consumed = 0
            result = run.tend(now)
            if result is not None:
                del self.runs[stream]
                self._exited(stream, result)
        self.cancelled = [run for run in self.cancelled if run.tend(now) is None]
        if now - self.heard_at > _SILENCE_S and self.session:
            self.end_session()
        if now >= self.look_at and self.session and not self.channel.full:
            self._look(now)

    def _look(self, now: float) -> None:
        self.look_at = now + (_FIRST_LOOKS_S if uptime_s() - self.started_uptime_s < _BOOTING_S else _LOOK_S)
        found = quick_facts()
        note = dict(found) if found != self.facts else {}
        self.facts = found
        if now >= self.numbers_at:
            self.numbers_at = now + _LOOK_S
            note.update(numbers())
        if note:
            self.channel.send(encode_json(NOTE, 0, note))

    def wait_s(self) -> float:
        """How long there is nothing to do unless something comes."""
        if self.cancelled or any(
            run.process.returncode is not None or run.deadline is not None for run in self.runs.values()
        ):
            return 0.1
        return 1.0 if self.runs or not self.session else max(0.0, min(_FIRST_LOOKS_S, self.look_at - time.monotonic()))


class Channel:
    """The way to the host: a virtio-serial port, a vsock that the host calls, or (in tests) a descriptor `fd`."""

    def __init__(self, fd: int = -1) -> None:
        self.fd = fd
        self.given = fd >= 0
        self.path = ""
        self.listener: Optional[socket.socket] = None
        self.waiting = bytearray()
        self.retry_at = 0.0
        self._sock: Optional[socket.socket] = None
        self._decoder = Decoder()

    @property
    def full(self) -> bool:
        """True while enough waits for the host."""
        return len(self.waiting) > _OUT_FULL

    def send(self, data: bytes) -> None:
        if self.fd >= 0:
            self.waiting += data
            self.pump()

    def pump(self) -> None:
        try:
            while self.waiting:
                del self.waiting[: os.write(self.fd, self.waiting[:32768])]
        except BlockingIOError:
            return
        except OSError:  # nobody is there; reading says so too
            self.waiting.clear()

    def open(self) -> bool:
        """Look for a way while there is none: modules may still be loading. True when the port was opened just now."""
        if self.fd >= 0 or self.given:
            return False
        self.retry_at = time.monotonic() + _RETRY_S
        self.path = find_port()
        if not self.path:
            if self.listener is None:
                self.listener = _listen()
            return False
        try:
            self.fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # somebody else has it: a script that says `exit N`
            return False
        self.retry_at = 0.0
        self.waiting += b"\n"  # whatever half a line was there before
        return True

    def accept(self) -> bool:
        """Take a call of the host's, which ends the one before; anybody else's is refused. True when it was one."""
        assert self.listener is not None
        try:
            sock, cid = accept_vsock(self.listener)
        except OSError:
            return False
        if cid != HOST_CID:
            sock.close()
            return False
        self.forget()
        sock.setblocking(False)
        self._sock, self.fd, self.retry_at = sock, sock.fileno(), 0.0
        return True

    def receive(self) -> "Optional[List[Any]]":
        """Frames and lines that have come; None when the host has gone away."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if data:
            return self._decoder.feed(data)
        if self.path:  # a port whose host is away: it says so all the time
            self.retry_at = time.monotonic() + _RETRY_S
            return []
        self.forget()
        return None

    def forget(self) -> None:
        if self._sock is not None:
            self._sock.close()
        self._sock, self.fd = None, -1
        self.waiting.clear()
        self._decoder = Decoder()


class Door:
    """A socket in the guest, for root: lines `exit N`, which go to the host. Raises OSError when it cannot be made."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        if os.path.lexists(path):
            os.unlink(path)
        before = os.umask(0o177)
        try:
            self.sock.bind(path)
        finally:
            os.umask(before)
        self.sock.listen(4)
        self.sock.setblocking(False)

    def answer(self, channel: Channel) -> None:
        try:
            caller, _ = self.sock.accept()
        except OSError:
            return
        caller.settimeout(1.0)
        try:
            words = caller.recv(64).split()
            if len(words) == 2 and words[0] == b"exit" and words[1].isdigit() and channel.fd >= 0:
                channel.send(b"exit " + words[1] + b"\n")
                caller.sendall(b"ok\n")
        except OSError:
            pass
        finally:
            caller.close()


def serve(agent: Agent, door: "Optional[Door]") -> None:
    """Until the channel is gone for good, which only one in a test ever is.

    While much waits for the host, nothing is read, of the commands or of the host: so all that waits is bounded.
    """
    channel = agent.channel
    wake, wakes = os.pipe()
    for fd in (wake, wakes):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    if channel.fd >= 0:
        agent.on_connected()
    while channel.fd >= 0 or not channel.given:
        now = time.monotonic()
        if now >= channel.retry_at and channel.open():
            agent.on_connected()
        readers: Dict[int, Callable[[], Any]] = {wake: lambda: os.read(wake, 4096)}
        writers: Dict[int, Callable[[], Any]] = {}
        if door is not None:
            readers[door.sock.fileno()] = lambda: door.answer(channel)
        if channel.listener is not None:
            readers[channel.listener.fileno()] = lambda: _take_call(agent)
        if channel.fd >= 0 and now >= channel.retry_at:
            if not channel.full:
                readers[channel.fd] = lambda: _hear(agent)
            if channel.waiting:
                writers[channel.fd] = channel.pump
        for run in agent.runs.values():
            _watch(run, readers if not channel.full else {}, writers)
        ready, writable, _ = select.select(list(readers), list(writers), [], agent.wait_s())
        for fd in writable:
            writers[fd]()
        for fd in ready:
            readers[fd]()
        agent.tend()
    agent.end_session()


def _watch(run: Run, readers: Dict[int, Any], writers: Dict[int, Any]) -> None:
    if run.wants_to_read:
        for fd in run.outputs:
            readers[fd] = lambda fd=fd: run.on_readable(fd)
    if run.wants_to_write:
        writers[run.stdin] = run.on_writable


def _take_call(agent: Agent) -> None:
    if agent.channel.accept():
        agent.on_connected()


def _hear(agent: Agent) -> None:
    for one in agent.channel.receive() or ():
        if isinstance(one, Frame):
            agent.on_frame(one)


def _listen() -> "Optional[socket.socket]":
    """Where the host calls over vsock; None when the guest has none."""
    try:
        listener = vsock("bind", _ANY_CID, AGENT_PORT)
        listener.listen(4)
    except OSError:
        return None
    listener.setblocking(False)
    return listener


def _door() -> "Optional[Door]":
    try:
        return Door(SOCKET)
    except OSError as exc:
        sys.stderr.write("chv: {}: {}\n".format(SOCKET, exc.strerror))
        return None


def main(words: List[str]) -> int:
    """`run`, `install`, `exit N`; for tests `fd N` with a connected socket, and where the environment's file goes."""
    if words[:1] == ["install"]:
        sys.stdout.write("chv: the guest agent runs ({})\n".format(install(sys.executable)))
        return 0
    if words[:1] == ["exit"]:
        return end_machine(words[1] if len(words) == 2 else "")
    if words[:1] == ["fd"] and len(words) == 3:
        os.set_blocking(int(words[1]), False)
        serve(Agent(Channel(int(words[1])), words[2]), _door())
        return 0
    if words == ["run"]:
        serve(Agent(Channel()), _door())
        return 0
    sys.stderr.write("usage: agent.py run | install | exit N\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
