"""The one module that starts processes, and the identity by which a process is found again: pid and start time.

Nothing here forks: Popen without preexec_fn, user or group uses vfork, which is safe under gRPC's threads.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vmlib import failpoint
from vmlib.errors import HostError

# What a tool may see of our environment; the plugin's own holds everything that the agent has.
TOOL_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that cannot be mistaken for a later one with the same pid."""

    pid: int
    start_time: int  # clock ticks after boot, field 22 of /proc/PID/stat


def stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from `state` (index 0) on; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


def identify(pid: int) -> Identity | None:
    """The identity of a process that runs now."""
    fields = stat_fields(pid)
    return None if fields is None else Identity(pid, int(fields[19]))


def itself() -> Identity:
    """The identity of this process."""
    who = identify(os.getpid())
    assert who is not None
    return who


def alive(who: Identity) -> bool:
    """True while that very process runs. One that ended and waits for its parent counts as gone."""
    fields = stat_fields(who.pid)
    if fields is None or int(fields[19]) != who.start_time:
        return False
    # A leader that ended before its last thread did: that thread may still be at work on a disk.
    return fields[0] not in "ZX" or int(fields[17]) > 1


def send_signal(who: Identity, number: int) -> bool:
    """Signal that very process; False when it is gone. Never hits a later process with the same pid."""
    try:
        fd = os.pidfd_open(who.pid)
    except ProcessLookupError:
        return False
    try:
        if not alive(who):
            return False
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def wait_gone(who: Identity, timeout_s: float) -> bool:
    """Wait until that process is gone; False when it still runs after `timeout_s`."""
    try:
        fd = os.pidfd_open(who.pid)
    except ProcessLookupError:
        return True
    try:
        deadline = time.monotonic() + timeout_s
        while alive(who):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll(min(left, 1.0) * 1000)
        return True
    finally:
        os.close(fd)


def save_identity(path: Path, who: Identity) -> None:
    """Write an identity so that a reader sees all of it or nothing. Not synced: it means nothing after a reboot."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps({"pid": who.pid, "start_time": who.start_time, "boot_id": boot_id()}))
    beside.rename(path)


def load_identity(path: Path) -> Identity | None:
    """Read what `save_identity` or the launcher wrote; None when there is nothing, or it is of an earlier boot."""
    try:
        data = json.loads(path.read_text())
        who, written_in = Identity(int(data["pid"]), int(data["start_time"])), data["boot_id"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError):
        return None  # not synced, so cut short by a power failure: of an earlier boot
    return who if written_in == boot_id() else None


def boot_id() -> str:
    """Changes at every boot of the host: what lived before it is gone."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def spawn(
    argv: Sequence[str],
    *,
    kind: str,
    env: Mapping[str, str],
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> "subprocess.Popen[bytes]":
    """Start a child in a session of its own. `kind` names its failpoint (`child.KIND`)."""
    child = subprocess.Popen(
        list(argv),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=dict(env),
        pass_fds=tuple(pass_fds),
        cwd="/",
        start_new_session=True,
    )
    failpoint.hit(f"child.{kind}")
    return child


def run_tool(argv: Sequence[str], *, timeout_s: float, pass_fds: Sequence[int] = ()) -> str:
    """Run a tool to its end and return its standard output. Raises HostError with the tool's own words."""
    name = Path(argv[0]).name
    try:
        child = spawn(
            argv, kind="tool", env=TOOL_ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=pass_fds
        )
    except OSError as exc:
        raise HostError(f"{argv[0]}: {(exc.strerror or str(exc)).lower()}", hint=f"install {name}") from exc
    with child:
        try:
            out, err = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as exc:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            raise HostError(f"{name}: no end after {timeout_s:g} s") from exc
    if child.returncode != 0:
        words = err.decode(errors="replace").strip().splitlines() or [f"status {child.returncode}"]
        raise HostError(words[-1])
    return out.decode(errors="replace")
