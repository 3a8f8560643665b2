"""Starting the VMM: its FIFOs, its listening sockets, its launcher."""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from vmlib.keeper.plan import KeeperPlan
from vmlib.paths import RunPaths
from vmlib.process import spawn

# Enough for a second of console at TCG speed, so that a change of keepers neither stalls the guest nor loses a byte.
_FIFO_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031
_LAUNCHER = Path(__file__).resolve().parent.parent / "launcher.py"


class SpawnError(Exception):
    """The VMM's program could not be executed."""


def make_fifos(run: RunPaths) -> None:
    for path in (run.console_in, run.console_out, run.stderr):
        os.mkfifo(path, 0o600)


def open_fifo(path: Path) -> int:
    """Open both ends, so that neither an end of file nor SIGPIPE ever comes from it; the caller owns the descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # without the privilege for more, 64 KiB it is
        fcntl.fcntl(fd, _F_SETPIPE_SZ, _FIFO_BYTES)
    return fd


def spawn_vmm(plan: KeeperPlan, *, log_fds: list[int]) -> "subprocess.Popen[bytes]":
    """Start the VMM and wait until its program runs. Raises SpawnError with the launcher's reason.

    `log_fds` are ends of the task's log FIFOs that the VMM holds without using them, so that whoever reads the logs
    sees no end of file when this keeper dies. The plan's files are closed here once the VMM has them.
    """
    run = RunPaths(plan.run)
    listeners = [(name, _listen(plan.run / file)) for name, file in plan.listeners.items()]
    fds = dict(plan.files) | {name: sock.fileno() for name, sock in listeners}
    spec = {
        "argv": plan.argv,
        "fds": fds,
        "environment": plan.environment,
        "identity": str(run.vmm),
        "uid": plan.uid,
        "gid": plan.gid,
        "groups": plan.groups,
        "cgroups": plan.cgroups,
    }
    spec_fd = os.memfd_create("launch")
    os.write(spec_fd, json.dumps(spec).encode())
    status_r, status_w = os.pipe()
    # The VMM's own open file descriptions: QEMU makes its console non-blocking, ours must not change with it.
    streams = [os.open(path, os.O_RDWR | os.O_CLOEXEC) for path in (run.console_in, run.console_out, run.stderr)]
    try:
        child = spawn(
            [sys.executable, "-I", "-S", str(_LAUNCHER), str(spec_fd), str(status_w), str(os.getpid())],
            kind="vmm",
            env={},
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            pass_fds=[spec_fd, status_w, *fds.values(), *log_fds],
        )
    finally:
        for fd in (spec_fd, status_w, *streams, *plan.files.values()):
            os.close(fd)
        for _, sock in listeners:
            sock.close()
    with open(status_r, "rb") as status:
        reason = status.read()
    if reason:
        child.wait()
        raise SpawnError(reason.decode(errors="replace"))
    return child


def _listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.bind(str(path))
    path.chmod(0o600)
    sock.listen(16)
    return sock
