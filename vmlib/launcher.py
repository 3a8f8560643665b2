"""Becomes a VMM: records who it is, drops every privilege, then execs. Standard library only.

Started by the keeper as `python -I -S launcher.py SPEC_FD STATUS_FD PARENT_PID` with standard streams already in place.
What goes wrong before the exec is written to STATUS_FD, which closes by itself when the exec succeeds.
"""

import ctypes
import json
import os
import re
import resource
import signal
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"prctl {option}")


def substitute(argv: list[str], fds: dict[str, int]) -> list[str]:
    """Replace `{fd:NAME}` by the number of the descriptor of that name."""
    return [re.sub(r"\{fd:([a-z0-9_.-]+)\}", lambda m: str(fds[m[1]]), word) for word in argv]


def _save_identity(path: Path) -> None:
    # The pid and start time of this process are the VMM's: an exec changes neither.
    stat = Path("/proc/self/stat").read_text()
    start_time = int(stat[stat.rindex(")") + 2 :].split()[19])
    beside = path.with_name(".vmm.new")
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    beside.write_text(json.dumps({"pid": os.getpid(), "start_time": start_time, "boot_id": boot_id}))
    beside.rename(path)


def _drop_privileges(uid: int, gid: int, groups: list[int]) -> None:
    last_cap = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    if os.geteuid() == 0:
        for cap in range(last_cap + 1):
            _prctl(_PR_CAPBSET_DROP, cap)
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def launch(spec: dict[str, Any], parent: int) -> None:
    """Do everything in order and exec; returns only by raising."""
    # Until the exec our life hangs on the keeper's, so that a keeper that dies now leaves nothing behind.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)
    _save_identity(Path(spec["identity"]))
    for group in spec["cgroups"]:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    Path("/proc/self/oom_score_adj").write_text("0")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    os.chdir("/")
    argv = substitute(spec["argv"], spec["fds"])
    for fd in spec["fds"].values():
        os.set_inheritable(fd, True)
    # Python and the keeper ignore these; a VMM must start with their ordinary meaning.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    _drop_privileges(spec["uid"], spec["gid"], spec["groups"])
    # A change of uid cleared the death signal already; without one it has to be said.
    _prctl(_PR_SET_PDEATHSIG, 0)
    if os.getppid() != parent:
        raise SystemExit(1)
    os.execvpe(argv[0], argv, spec["environment"])


def main() -> None:
    spec_fd, status_fd, parent = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    os.set_inheritable(status_fd, False)
    with open(spec_fd, "rb") as source:
        source.seek(0)
        spec = json.load(source)
    try:
        launch(spec, parent)
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        os.write(status_fd, f"{exc.filename or spec['argv'][0]}: {reason}".encode())
        raise SystemExit(127) from exc


if __name__ == "__main__":
    main()
