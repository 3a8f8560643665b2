"""Starting the VMM and its helpers: FIFOs, listening sockets, launchers."""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from vmlib.keeper.plan import HelperPlan, KeeperPlan
from vmlib.paths import RunPaths
from vmlib.process import TOOL_ENVIRONMENT, spawn

# Enough for a second of console at TCG speed, so that a change of keepers neither stalls the guest nor loses a byte.
_FIFO_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031
_LAUNCHER = Path(__file__).resolve().parent.parent / "launcher.py"


class SpawnError(Exception):
    """The program of the VMM or of a helper could not be executed."""


def make_fifos(run: RunPaths, *, helpers: bool) -> None:
    for path in (run.console_in, run.console_out, run.stderr, *([run.helper_words] if helpers else ())):
        os.mkfifo(path, 0o600)


def open_fifo(path: Path) -> int:
    """Open both ends, so that neither an end of file nor SIGPIPE ever comes from it; the caller owns the descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # without the privilege for more, 64 KiB it is
        fcntl.fcntl(fd, _F_SETPIPE_SZ, _FIFO_BYTES)
    return fd


def spawn_vmm(
    plan: KeeperPlan, *, log_fds: list[int], sockets: dict[str, socket.socket], inherited: dict[str, int]
) -> "subprocess.Popen[bytes]":
    """Start the VMM and wait until its program runs. Raises SpawnError with the launcher's reason.

    `log_fds` are ends of the task's log FIFOs that the VMM holds without using them, so that whoever reads the logs
    sees no end of file when this keeper dies. `sockets` are its listeners and those that lead to its helpers,
    `inherited` is its dialect's. The plan's files are closed here once the VMM has them.
    """
    run = RunPaths(plan.run)
    fds = plan.files | inherited | {name: sock.fileno() for name, sock in sockets.items()}
    spec = vmm_spec(plan, fds)
    # The VMM's own open file descriptions: QEMU makes its console non-blocking, ours must not change with it.
    streams = [os.open(path, os.O_RDWR | os.O_CLOEXEC) for path in (run.console_in, run.console_out, run.stderr)]
    try:
        return launch(spec, "vmm", streams, [*fds.values(), *log_fds])
    finally:
        for fd in (*streams, *plan.files.values()):
            os.close(fd)


def vmm_spec(plan: KeeperPlan, fds: dict[str, int]) -> dict[str, object]:
    """What the launcher is told of a VMM that inherits those descriptors."""
    return {
        "argv": plan.argv,
        "fds": fds,
        "environment": plan.environment,
        "identity": str(RunPaths(plan.run).vmm),
        "uid": plan.uid,
        "gid": plan.gid,
        "groups": plan.groups,
        "cgroups": plan.cgroups,
        "cpus": plan.cpus,
        "memory_lock_bytes": plan.memory_lock_bytes,
        "netns": plan.netns,
        "cage": None if plan.cage is None else asdict(plan.cage),
        "filtered": True,
        "routes": plan.routes,
        "limits": plan.limits,
    }


def spawn_helper(
    plan: HelperPlan, run: RunPaths, *, listener: socket.socket | None = None
) -> "tuple[subprocess.Popen[bytes], int]":
    """Start a helper and wait until its program runs; its socket takes connections then. Raises SpawnError, OSError.

    With a `listener` the helper gets that one, which stays the caller's. The descriptor is what it will write to when
    it serves, the caller's to close; -1 when it tells nothing.
    """
    if plan.bind_at:
        Path(plan.bind_at).mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as on_failure:
        if plan.calls:
            fds = {"vmm": ours.enter_context(_connected(run.root / plan.calls)).fileno()}
        elif listener is not None:
            fds = {"listener": listener.fileno()}
        else:
            path = run.helper_socket(plan.name)
            path.unlink(missing_ok=True)  # of the one before
            fds = {"listener": ours.enter_context(listen(path)).fileno()}
        for name, directory in plan.directories.items():
            fds[name] = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            ours.callback(os.close, fds[name])
        words = os.open(run.helper_words, os.O_RDWR | os.O_CLOEXEC)
        ours.callback(os.close, words)
        ready, output = -1, words
        if plan.tells_ready:
            ready, output = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            on_failure.callback(os.close, ready)
            ours.callback(os.close, output)
            os.fchown(output, plan.uid, plan.gid)  # it may open it once more, by its name in /proc
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        ours.callback(os.close, nothing)
        spec = {
            "argv": plan.argv,
            "fds": fds,
            "environment": TOOL_ENVIRONMENT,
            "identity": str(run.helper(plan.name)),
            "uid": plan.uid,
            "gid": plan.gid,
            "groups": [],
            "capabilities": plan.capabilities,
            "netns": plan.netns,
            "cage": None if plan.cage is None else asdict(plan.cage),
            "filtered": plan.filtered,
            "limits": plan.limits,
            "cgroups": [*plan.cgroups, *([plan.seat] if plan.seat and Path(plan.seat).exists() else ())],
        }
        if plan.bind:
            spec["mount"] = {"directory": plan.bind, "at": plan.bind_at, "readonly": plan.readonly}
        child = launch(spec, "helper", [nothing, output, words], list(fds.values()))
        on_failure.pop_all()
        return child, ready


def launch(spec: dict[str, object], kind: str, streams: list[int], pass_fds: list[int]) -> "subprocess.Popen[bytes]":
    """Run the launcher until it has become the program. Raises SpawnError."""
    spec_fd = os.memfd_create("launch")
    os.write(spec_fd, json.dumps(spec).encode())
    status_r, status_w = os.pipe()
    try:
        child = spawn(
            [sys.executable, "-I", "-S", str(_LAUNCHER), str(spec_fd), str(status_w), str(os.getpid())],
            kind=kind,
            env={},
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            pass_fds=[spec_fd, status_w, *pass_fds],
        )
    finally:
        os.close(spec_fd)
        os.close(status_w)
    with open(status_r, "rb") as status:
        reason = status.read()
    if reason:
        child.wait()
        raise SpawnError(reason.decode(errors="replace"))
    return child


def listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.bind(str(path))
    path.chmod(0o600)
    sock.listen(16)
    return sock


def _connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)  # a VMM that hangs takes so many calls, and its keeper must not hang with it
    try:
        sock.connect(str(path))
        sock.setblocking(True)
    except OSError as exc:
        sock.close()
        raise OSError(exc.errno, exc.strerror, str(path)) from exc
    return sock
