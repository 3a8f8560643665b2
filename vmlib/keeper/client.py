"""How others talk to a keeper: start one, hold it until the machine is theirs to keep, ask it things."""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from vmlib.errors import HypervisorError, LaunchError
from vmlib.keeper.plan import KeeperPlan
from vmlib.lines import LineBuffer
from vmlib.paths import RunPaths
from vmlib.process import Identity, spawn

_MAIN = Path(__file__).resolve().parent / "__main__.py"
_MAX_ANSWER = 1 << 20
_START_S = 60.0  # a loaded host starts a VMM slowly; the task's own patience is longer

# Keepers that this process started and has not reaped yet.
_children: list["subprocess.Popen[bytes]"] = []


class Connection:
    """A connection to a keeper's control socket. Every call is bounded by `timeout_s`."""

    def __init__(self, sock: socket.socket, *, timeout_s: float = 5.0) -> None:
        self._sock = sock
        self._timeout_s = timeout_s
        self._lines = LineBuffer(_MAX_ANSWER)
        self._queue: list[dict[str, Any]] = []

    @classmethod
    def open(cls, path: Path, *, timeout_s: float = 5.0) -> Self:
        """Raises OSError when nobody listens."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(timeout_s)
            sock.connect(str(path))
        except BaseException:
            sock.close()
            raise
        return cls(sock, timeout_s=timeout_s)

    def send(self, message: dict[str, Any]) -> None:
        self._sock.settimeout(self._timeout_s)
        self._sock.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The next message; None at the end. Raises TimeoutError."""
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        while not self._queue:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._sock.recv(1 << 16)
            except ConnectionError:
                data = b""
            if not data:
                return None
            self._queue += [json.loads(line) for line in self._lines.feed(data)]
        return self._queue.pop(0)

    def receive_exactly(self) -> dict[str, Any]:
        """The next message, and nothing of what follows it, which may be no message; {} at the end."""
        deadline = time.monotonic() + self._timeout_s
        seen = b""
        while not seen.endswith(b"\n"):
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            ahead = self._sock.recv(4096, socket.MSG_PEEK)
            piece = self._sock.recv(ahead.find(b"\n") + 1 or len(ahead)) if ahead else b""
            if not piece or len(seen) > _MAX_ANSWER:
                return {}
            seen += piece
        answer = json.loads(seen)
        return answer if isinstance(answer, dict) else {}

    def detach(self) -> socket.socket:
        """The socket, which is the caller's from now on; it does not block."""
        self._sock.setblocking(False)
        return self._sock

    def ask(self, op: str, **details: Any) -> dict[str, Any]:
        """One request and its answer. Raises HypervisorError when the keeper refuses or does not answer."""
        try:
            self.send({"op": op, **details})
            answer = self.receive()
        except OSError as exc:
            raise HypervisorError(f"the keeper does not answer {op!r}: {exc}") from exc
        if answer is None or not answer.get("ok"):
            reason = "it is gone" if answer is None else answer.get("reason", "no reason given")
            raise HypervisorError(f"the keeper refused {op!r}: {reason}")
        return answer

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_guest_channel(path: Path, *, timeout_s: float) -> socket.socket:
    """What the guest says on its channel and what it is told, as bytes, from the keeper at `path`.

    The socket is the caller's and does not block. Raises OSError, HypervisorError.
    """
    sock, _ = _as_bytes(path, timeout_s, "agent")
    return sock


@dataclass(frozen=True, slots=True)
class Console:
    """The guest's console as bytes, both ways; the socket is the caller's and does not block."""

    sock: socket.socket
    writes: bool  # what is sent reaches the guest
    writer: str  # who had that before; "" = nobody


def open_console(path: Path, *, write: bool, take: bool, who: str, notices: bool, timeout_s: float) -> Console:
    """The guest's console, from the keeper at `path`: of those who want to write one does, the others watch.

    `take` takes that away from whoever has it; he is told of `who`. With `notices` such news comes as a line on the
    console, and one who watches writes once those before him are gone. Raises OSError, HypervisorError.
    """
    sock, answer = _as_bytes(path, timeout_s, "console", write=write, take=take, who=who, notices=notices)
    return Console(sock, answer.get("writes") is True, str(answer.get("writer", "")))


def _as_bytes(path: Path, timeout_s: float, op: str, **wish: Any) -> tuple[socket.socket, dict[str, Any]]:
    """A connection that has nothing of the control protocol any more, and the answer that came before that."""
    with contextlib.ExitStack() as on_failure:
        connection = Connection.open(path, timeout_s=timeout_s)
        on_failure.callback(connection.close)
        connection.send({"op": op, **wish})
        answer = connection.receive_exactly()
        if not answer.get("ok"):
            raise HypervisorError(f"the keeper refused {op!r}: {answer.get('reason', 'it is gone')}")
        on_failure.pop_all()
        return connection.detach(), answer


class Lease(Connection):
    """The connection that a new keeper's life hangs on until `commit`."""

    def show_console(self, path: str) -> None:
        """Have the keeper read the guest's console at `path`; it does when this returns. Raises HypervisorError."""
        try:
            self.send({"console": path})
            answer = self.receive()
        except OSError as exc:
            raise HypervisorError(f"the keeper does not answer 'console': {exc}") from exc
        match answer:
            case {"ok": True}:
                return
            case {"reason": str(reason)}:
                raise HypervisorError(f"console {path}: {reason}")
        raise HypervisorError("the VMM ended before its guest had a console")

    def commit(self) -> None:
        """From now on the machine lives without us; one that has ended by now has its end on disk.

        Raises HypervisorError when the keeper does not answer.
        """
        try:
            with contextlib.suppress(BrokenPipeError):
                self.send({"op": "commit"})
            answer = self.receive()
        except OSError as exc:
            raise HypervisorError(f"the keeper does not answer 'commit': {exc}") from exc
        match answer:
            case {"ok": True} | {"exit": dict()}:
                return
        raise HypervisorError("the keeper ended before the machine was committed")


def start_keeper(plan: KeeperPlan) -> tuple[Lease, Identity]:
    """Start a keeper and, by it, the VMM with its guest held; the caller closes the lease.

    Raises LaunchError with the launcher's or the VMM's own words.
    """
    lease, answer = _launch("start", plan, kind="keeper")
    match answer:
        case {"spawned": {"pid": int(pid), "start_time": int(start_time)}}:
            return lease, Identity(pid, start_time)
        case {"failed": str(reason)}:
            lease.close()
            raise LaunchError(reason)
    lease.close()
    raise LaunchError("the keeper ended before the VMM ran", log_tail=_tail(RunPaths(plan.run).keeper_log))


def adopt(run: RunPaths) -> bool:
    """Start another keeper for a machine whose keeper is gone. False when the machine was gone too.

    Raises HypervisorError when that is not possible, for one because another keeper was faster.
    """
    try:
        plan = KeeperPlan.load(run.plan.read_bytes())
    except (OSError, ValueError) as exc:
        raise HypervisorError(f"{run.plan}: {exc}") from exc
    lease, answer = _launch("adopt", plan, kind="adopt")
    lease.close()
    match answer:
        case {"adopted": bool(adopted)}:
            return adopted
        case {"failed": str(reason)}:
            raise HypervisorError(reason)
    raise HypervisorError("the new keeper ended at once", log_tail=_tail(run.keeper_log))


def reap() -> None:
    """Collect keepers that have ended, so that none of them stays as a zombie."""
    for child in list(_children):
        if child.poll() is not None:
            with contextlib.suppress(ValueError):  # another thread was faster
                _children.remove(child)


def _launch(mode: Literal["start", "adopt"], plan: KeeperPlan, *, kind: str) -> tuple[Lease, dict[str, Any] | None]:
    reap()
    run = RunPaths(plan.run)
    lock = _take_lock(run.keeper_lock)
    ours, theirs = socket.socketpair()
    lease = Lease(ours, timeout_s=_START_S)
    environment = {key: os.environ[key] for key in ("CHV_FAILPOINT",) if key in os.environ}
    try:
        with theirs, open(run.keeper_log, "ab") as log:
            child = spawn(
                [sys.executable, "-I", "-S", str(_MAIN), mode, str(lock)],
                kind=kind,
                env=environment,
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                pass_fds=[lock, *(plan.files.values() if mode == "start" else ())],
            )
        _children.append(child)
        with contextlib.suppress(ConnectionError):
            lease.send(json.loads(plan.dump()))
        return lease, lease.receive(_START_S)
    except TimeoutError as exc:
        lease.close()
        raise LaunchError(f"the VMM did not start within {_START_S:g} s") from exc
    except BaseException:
        lease.close()
        raise
    finally:
        os.close(lock)  # the keeper has it now


def _take_lock(path: Path) -> int:
    """The lock that a keeper inherits, so that there is no moment in which one runs and the lock is free."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(fd)
        raise HypervisorError("another keeper holds this machine") from exc
    return fd


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-2000:]
    except FileNotFoundError:
        return ""
