"""QMP as a client speaks it: framing without I/O, a small synchronous client, and a `Vmm` on top of it.

The keeper, which hears events on a QMP of its own, has its own reader in `vmlib.keeper.qmp_events`.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vmlib.errors import HypervisorError
from vmlib.hypervisor.base import Counters, Usage, VcpuThread
from vmlib.lines import LineBuffer, LineTooLongError

# The longest answers we ask for have some 200 bytes a vCPU, and 1000 for each layer of a disk.
MAX_LINE_BYTES = 1 << 20
CALL_TIMEOUT_S = 5.0
_QUEUE_FULL_S = 0.02  # a client before us is served in a few milliseconds
# The longest piece of a peer's answer that may stand in a message of ours.
_MAX_QUOTED = 200

# QEMU's run states that a machine of ours can be in, in the words of `Vmm.status`.
_STATUS = {
    "prelaunch": "created",
    "running": "running",
    "suspended": "running",
    "paused": "paused",
    "io-error": "paused",
    "watchdog": "paused",
    "internal-error": "paused",
    "debug": "paused",
    "guest-panicked": "panicked",
    "shutdown": "shutdown",
}


_ABOVE_FILES = ("raw", "qcow2", "throttle")


class QmpProtocolError(ValueError):
    """The peer sent what is not QMP."""


class QmpFraming:
    """Bytes in, QMP messages out, never more than `max_line` bytes in memory."""

    def __init__(self, max_line: int = MAX_LINE_BYTES) -> None:
        self._lines = LineBuffer(max_line)

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Return the messages that are complete now. Raises QmpProtocolError; the stream is of no use after it."""
        try:
            lines = self._lines.feed(data)
        except LineTooLongError as exc:
            raise QmpProtocolError(str(exc)) from exc
        return [_parse(line) for line in lines if line.strip()]


def encode(command: str, arguments: Mapping[str, object] | None, request_id: int) -> bytes:
    """One request, as a line."""
    message: dict[str, object] = {"execute": command, "id": request_id}
    if arguments:
        message["arguments"] = dict(arguments)
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise QmpProtocolError(f"not JSON: {line[:_MAX_QUOTED]!r}") from exc
    if not isinstance(message, dict):
        raise QmpProtocolError(f"not an object: {line[:_MAX_QUOTED]!r}")
    return message


class QmpRefusedError(HypervisorError):
    """The VMM answered that it will not."""


class QmpClosedError(HypervisorError):
    """The VMM closed the connection before it answered."""


class QmpClient:
    """One connection to a QMP socket. Calls from several threads take their turn; every wait has a deadline.

    A call that fails in transport or in time leaves the connection `broken`: close it and connect again.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._framing = QmpFraming()
        self._waiting: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._last_id = 0
        self.broken = False

    @classmethod
    def connect(cls, path: Path, *, timeout_s: float = CALL_TIMEOUT_S) -> "QmpClient":
        """Connect and negotiate. QEMU serves one client at a time: the others wait for their greeting."""
        deadline = time.monotonic() + timeout_s
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        client = cls(sock)
        try:
            try:
                _queue_up(sock, path, deadline)
            except TimeoutError as exc:
                raise HypervisorError(f"{path}: no connection within {timeout_s:g} s") from exc
            except OSError as exc:
                raise HypervisorError(f"{path}: {(exc.strerror or str(exc)).lower()}") from exc
            greeting = client._receive(deadline, "greeting")
            if "QMP" not in greeting:
                raise HypervisorError(f"greeting: {_quoted(greeting)}, expected QMP")
            client.execute("qmp_capabilities", timeout_s=max(0.001, deadline - time.monotonic()))
        except BaseException:
            client.close()
            raise
        return client

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> Any:
        """Run one command and return its result; events and late answers to earlier commands are passed over.

        Raises QmpClosedError when the VMM hangs up, HypervisorError for everything else.
        """
        deadline = time.monotonic() + timeout_s
        if not self._lock.acquire(timeout=timeout_s):
            raise HypervisorError(f"{command}: the VMM is still busy with an earlier command after {timeout_s:g} s")
        try:
            self._last_id += 1
            request_id = self._last_id
            self._send(encode(command, arguments, request_id), deadline, command)
            while True:
                message = self._receive(deadline, command)
                if message.get("id") != request_id:
                    # An answer without an id is QEMU's complaint about bytes that it could not read as a command.
                    if "error" in message and "id" not in message:
                        raise HypervisorError(f"{command}: {_error_text(message['error'])}")
                    continue
                if "error" in message:
                    raise QmpRefusedError(f"{command}: {_error_text(message['error'])}")
                if "return" in message:
                    return message["return"]
                raise HypervisorError(f"{command}: {_quoted(message)}, expected an answer")
        finally:
            self._lock.release()

    def wait_closed(self, timeout_s: float) -> bool:
        """Read on until the VMM hangs up; False when it has not within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                self._receive(deadline, "end of file")
        except QmpClosedError:
            return True
        except HypervisorError:
            return False

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, data: bytes, deadline: float, command: str) -> None:
        try:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            self._sock.sendall(data)
        except TimeoutError as exc:
            self.broken = True
            raise HypervisorError(f"{command}: the VMM does not take commands") from exc
        except OSError as exc:
            self.broken = True
            raise QmpClosedError(f"{command}: {(exc.strerror or str(exc)).lower()}") from exc

    def _receive(self, deadline: float, what: str) -> dict[str, Any]:
        try:
            while not self._waiting:
                self._waiting += self._framing.feed(self._read(deadline, what))
        except QmpProtocolError as exc:
            self.broken = True
            raise HypervisorError(f"{what}: {exc}") from exc
        except HypervisorError:
            self.broken = True
            raise
        return self._waiting.pop(0)

    def _read(self, deadline: float, what: str) -> bytes:
        try:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            data = self._sock.recv(1 << 16)
        except TimeoutError as exc:
            raise HypervisorError(f"{what}: no answer from the VMM in time") from exc
        except OSError as exc:
            raise QmpClosedError(f"{what}: {(exc.strerror or str(exc)).lower()}") from exc
        if not data:
            raise QmpClosedError(f"{what}: the VMM closed the connection")
        return data


def _queue_up(sock: socket.socket, path: Path, deadline: float) -> None:
    """Connect. Raises TimeoutError, OSError.

    Behind the one that it serves QEMU lets two wait [run QEMU 7.2]. To a socket with a timeout, which is one that does
    not block, the kernel says EAGAIN then, at once.
    """
    sock.setblocking(False)
    while True:
        try:
            sock.connect(str(path))
        except BlockingIOError as exc:
            if time.monotonic() >= deadline:
                raise TimeoutError from exc
            time.sleep(_QUEUE_FULL_S)  # nothing tells a client that a place has become free, poll(2) neither
        else:
            return


def _quoted(message: object) -> str:
    text = json.dumps(message)
    return text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + "…"


def _error_text(error: object) -> str:
    if isinstance(error, dict) and isinstance(error.get("desc"), str):
        return f"{error['desc'][:_MAX_QUOTED]} ({error.get('class', 'no class')})"
    return _quoted(error)


class QmpVmm:
    """`Vmm` over QMP. The connection is opened when it is needed and kept until `close`; a broken one is replaced."""

    def __init__(
        self, path: Path, *, timeout_s: float = CALL_TIMEOUT_S, connect_timeout_s: float | None = None
    ) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._connect_timeout_s = timeout_s if connect_timeout_s is None else connect_timeout_s
        self._lock = threading.Lock()
        self._client: QmpClient | None = None

    def connect(self) -> None:
        """Open the connection now. Raises HypervisorError."""
        with self._lock:
            if self._client is None:
                self._client = QmpClient.connect(self._path, timeout_s=self._connect_timeout_s)

    def boot(self) -> None:
        self._call("cont")

    def status(self) -> str:
        answer = self._call("query-status")
        state = answer.get("status") if isinstance(answer, dict) else None
        if not isinstance(state, str) or state not in _STATUS:
            raise HypervisorError(f"query-status: {_quoted(answer)}, expected a state of a machine")
        return _STATUS[state]

    def vcpus(self) -> tuple[VcpuThread, ...]:
        answer = self._call("query-cpus-fast")
        try:
            found = [VcpuThread(index=int(cpu["cpu-index"]), thread_id=int(cpu["thread-id"])) for cpu in answer]
        except (KeyError, TypeError, ValueError) as exc:
            raise HypervisorError(f"query-cpus-fast: {_quoted(answer)}, expected a list of vCPUs") from exc
        return tuple(sorted(found, key=lambda vcpu: vcpu.index))

    def foreign_files(self) -> tuple[str, ...]:
        answer = self._call("query-named-block-nodes", {"flat": True})
        try:
            # Formats lie on top of the nodes that open something, and those of ours open what they were given.
            opened = [str(node["file"]) for node in answer if node["drv"] not in _ABOVE_FILES]
        except (KeyError, TypeError) as exc:
            raise HypervisorError(f"query-named-block-nodes: {_quoted(answer)}, expected a list of nodes") from exc
        return tuple(name for name in opened if not name.startswith("/dev/fdset/"))

    def usage(self) -> Usage:
        stats = self._call("query-blockstats")
        try:
            # Flash chips and the nodes below have no device of their own.
            disks = tuple(
                Counters(
                    read_bytes=int(one["stats"]["rd_bytes"]),
                    write_bytes=int(one["stats"]["wr_bytes"]),
                    read_ops=int(one["stats"]["rd_operations"]),
                    write_ops=int(one["stats"]["wr_operations"]),
                )
                for one in stats
                if "virtio-backend" in str(one.get("qdev", ""))
            )
            return Usage(disks=disks, nics=(), memory_bytes=self._memory_bytes())
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise HypervisorError(f"query-blockstats: {_quoted(stats)}, expected numbers of each disk") from exc

    def _memory_bytes(self) -> int:
        with contextlib.suppress(QmpRefusedError):  # there is no balloon
            return int(self._call("query-balloon")["actual"])
        return int(self._call("query-memory-size-summary")["base-memory"])

    def power_button(self) -> None:
        self._call("system_powerdown")

    def pause(self) -> None:
        self._call("stop")

    def resume(self) -> None:
        self._call("cont")

    def reboot(self) -> None:
        self._call("system_reset")

    def nmi(self) -> None:
        self._call("inject-nmi")

    def quit(self) -> None:
        # The answer says only that the VMM has read the command; the end of file is the end.
        with contextlib.suppress(QmpClosedError):
            self._call("quit")
            with self._lock:
                client = self._client
            if client is not None and not client.wait_closed(self._timeout_s):
                raise HypervisorError(f"quit: the VMM still runs after {self._timeout_s:g} s")
        self.close()

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _call(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        self.connect()
        with self._lock:
            client = self._client
        if client is None:
            raise HypervisorError(f"{command}: the connection was closed meanwhile")
        try:
            return client.execute(command, arguments, timeout_s=self._timeout_s)
        finally:
            if client.broken:
                with self._lock:
                    if self._client is client:
                        self._client = None
                client.close()
