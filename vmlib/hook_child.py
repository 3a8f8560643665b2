"""Runs one call of one hook in a process of its own. Run by path, with a socket to the caller as standard input.

The caller's end is ours: with it go whatever processes the hook has started, so that nobody works on a volume while
another process already takes it back.
"""

import contextlib
import os
import queue
import signal
import socket
import stat
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Isolated mode; the library is found from where this file lies.
    sys.path[0:0] = [str(Path(__file__).resolve().parent.parent)]

from vmlib.disk.image import check_image
from vmlib.errors import HostError, NoCapacityError, SpecError, VmError
from vmlib.hook_wire import pack, unpack
from vmlib.hooks import MAX_DISKS, Context, GivenDisk, Hook, Prepared, load_hook
from vmlib.spec import MachineSpec


def main() -> int:
    sock = socket.socket(fileno=os.dup(0))
    with open("/dev/null", "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.umask(0o077)
    call = _Call(sock)
    request = call.receive()
    sys.path[:] = request["sys_path"]
    try:
        hook = load_hook(request["hook"])
        context = Context(
            machine=request["machine"], machine_id=request["machine_id"], labels=request["labels"], note=call.note
        )
        if request["do"] == "preflight":
            answer, fds = _preflight(hook, request["spec"], context, request["max_virtual_bytes"])
            call.done(answer, fds)
        else:
            hook.postflight(request["state"], context)
            call.done(None)
    except Exception as exc:  # noqa: BLE001  foreign code: its caller wants to know what it raised
        if not isinstance(exc, VmError):
            traceback.print_exc()
        call.refuse(exc)
    return 0


class _Call:
    """The conversation with the caller."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._over = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError), self._sock.makefile("rb") as incoming:
            for line in incoming:
                self._lines.put(line)
        if not self._over:
            os.killpg(0, signal.SIGKILL)

    def receive(self) -> Any:
        return unpack(self._lines.get())

    def note(self, state: Mapping[str, str]) -> None:
        """Returns once it is on disk."""
        if not all(isinstance(word, str) for pair in state.items() for word in pair):
            raise TypeError("a noted state is a mapping of text to text")
        self._sock.sendall(pack({"note": dict(state)}))
        self.receive()

    def done(self, answer: Prepared | None, fds: list[int] | None = None) -> None:
        self._over = True
        line = pack({"done": answer})
        if fds:  # with the first byte
            socket.send_fds(self._sock, [line[:1]], fds)
            line = line[1:]
        self._sock.sendall(line)

    def refuse(self, exc: Exception) -> None:
        self._over = True
        kind = next((one.__name__ for one in (SpecError, NoCapacityError) if isinstance(exc, one)), "HostError")
        message = str(exc) if isinstance(exc, VmError) else f"{type(exc).__name__}: {exc}"
        hint = exc.hint if isinstance(exc, VmError) else ""
        self._sock.sendall(pack({"refused": {"kind": kind, "message": message[:2000], "hint": hint[:500]}}))


def _preflight(hook: Hook, spec: MachineSpec, context: Context, max_virtual_bytes: int) -> tuple[Prepared, list[int]]:
    prepared = hook.preflight(spec, context)
    if not isinstance(prepared, Prepared):
        raise HostError(f"preflight gave a {type(prepared).__name__}, expected vmlib.hooks.Prepared")
    if len(prepared.disks) > MAX_DISKS:
        raise HostError(f"gave {len(prepared.disks)} disks, expected at most {MAX_DISKS}")
    # Opened and looked at here: a volume on a dead server hangs this process, which can be killed.
    return prepared, [_open(disk, max_virtual_bytes) for disk in prepared.disks]


def _open(disk: GivenDisk, max_virtual_bytes: int) -> int:
    what = f"disk {disk.name}"
    try:
        fd = os.open(
            disk.path, (os.O_RDONLY if disk.readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        )
    except OSError as exc:
        raise HostError(f"{what}: {disk.path}: {(exc.strerror or str(exc)).lower()}") from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise HostError(f"{what}: {disk.path} is not a regular file")
    if disk.format == "qcow2":
        # A guest that wrote a header of its own into a raw disk has done nothing wrong; into this one it cannot.
        check_image(fd, declared="qcow2", key=what, path=disk.path, max_virtual_bytes=max_virtual_bytes)
    elif not 0 < (size := os.fstat(fd).st_size) <= max_virtual_bytes:
        raise HostError(f"{what}: {disk.path} has {size} bytes, expected 1 to {max_virtual_bytes}")
    return fd


if __name__ == "__main__":
    sys.exit(main())
