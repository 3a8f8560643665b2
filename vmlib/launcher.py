"""Becomes a VMM or a helper of one: records who it is, drops its privileges, then execs. Standard library only.

Started by the keeper as `python -I -S launcher.py SPEC_FD STATUS_FD PARENT_PID` with standard streams already in place.
What goes wrong before the exec is written to STATUS_FD, which closes by itself when the exec succeeds.
"""

import ctypes
import errno
import json
import os
import re
import resource
import signal
import sys
from pathlib import Path
from typing import Any

# Isolated mode knows no site-packages; the library is found from where this file lies.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vmlib import cage, mounts, syscall_filter

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522

# No root by itself is anything to it, whatever it comes to run: NOROOT and NO_CAP_AMBIENT_RAISE, both for good.
_NO_ROOT = 0xC3


def _prctl(option: int, value: int, more: int = 0) -> None:
    mounts.expect(mounts.libc.prctl(option, value, more, 0, 0), f"prctl {option}")


def mount_for_ourselves(directory: int, at: str, *, readonly: bool) -> None:
    """Enter a mount namespace of our own, in which the open directory and all below it is mounted at `at`.

    The kernel refuses writes through a read-only one whatever its user does: the mount outlives every privilege that
    could change it. What the host unmounts goes away here, too.
    """
    tree = mounts.clone_tree(at, fd=directory)
    attributes = mounts.ATTR_NOSUID | mounts.ATTR_NODEV | (mounts.ATTR_RDONLY if readonly else 0)
    mounts.set_attributes(tree, attributes, "mount_setattr")
    mounts.leave_for_own(mounts.CLONE_NEWNS)
    mounts.attach(tree, at)


def enter_network(path: str) -> None:
    """Enter the network namespace of that file. Only its root may, so this comes before privileges are dropped."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if mounts.libc.setns(fd, mounts.CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            reason = "is no network namespace" if code == errno.EINVAL else os.strerror(code)
            raise OSError(code, reason, path)
    finally:
        os.close(fd)


def allow_locked_memory(limit: int) -> None:
    """Let this process lock so much memory. Only root may raise the limit, so this comes before privileges go."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
    except ValueError as exc:  # how Python says that
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), "setrlimit memlock") from exc


def limit(limits: dict[str, int]) -> None:
    """Set resource limits by name. One that is lower already, and that we may not raise, stays."""
    for name, value in limits.items():
        which = getattr(resource, f"RLIMIT_{name.upper()}")
        try:
            resource.setrlimit(which, (value, value))
        except ValueError:
            hard = resource.getrlimit(which)[1]
            resource.setrlimit(which, (min(value, hard), hard))


def substitute(argv: list[str], fds: dict[str, int]) -> list[str]:
    """Replace `{fd:NAME}` by the number of the descriptor of that name."""
    return [re.sub(r"\{fd:([a-z0-9_.-]+)\}", lambda m: str(fds[m[1]]), word) for word in argv]


def _save_identity(path: Path) -> None:
    # The pid and start time of this process are those of what it becomes: an exec changes neither.
    stat = Path("/proc/self/stat").read_text()
    start_time = int(stat[stat.rindex(")") + 2 :].split()[19])
    beside = path.with_name(f".{path.name}.new")
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    beside.write_text(json.dumps({"pid": os.getpid(), "start_time": start_time, "boot_id": boot_id}))
    beside.rename(path)


def _drop_privileges(uid: int, gid: int, groups: list[int], kept: list[int], *, last_cap: int) -> None:
    if os.geteuid() == 0:
        for cap in range(last_cap + 1):
            if cap not in kept:
                _prctl(_PR_CAPBSET_DROP, cap)
        if not kept:
            _prctl(_PR_SET_SECUREBITS, _NO_ROOT)
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        if uid != 0 and kept:
            _prctl(_PR_SET_KEEPCAPS, 1)
        os.setresuid(uid, uid, uid)
        if uid != 0 and kept:
            _keep_over_exec(kept)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _keep_over_exec(kept: list[int]) -> None:
    """Of a process that is no longer root an exec leaves only what is in the ambient set."""
    mask = sum(1 << cap for cap in kept)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = (ctypes.c_uint32 * 6)(low, low, low, high, high, high)  # effective, permitted, inheritable, twice 32 bits
    mounts.expect(mounts.libc.capset(header, data), "capset")
    for cap in kept:
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, cap)


def launch(spec: dict[str, Any], parent: int) -> None:
    """Do everything in order and exec; returns only by raising."""
    # Until the exec our life hangs on the keeper's, so that a keeper that dies now leaves nothing behind.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)
    _save_identity(Path(spec["identity"]))
    for group in spec["cgroups"]:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    if netns := spec.get("netns"):
        enter_network(netns)
    if mount := spec.get("mount"):
        mount_for_ourselves(spec["fds"][mount["directory"]], mount["at"], readonly=mount["readonly"])
    if cpus := spec.get("cpus"):
        os.sched_setaffinity(0, cpus)
    Path("/proc/self/oom_score_adj").write_text("0")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_lock := spec.get("memory_lock_bytes"):
        allow_locked_memory(memory_lock)
    limit(spec.get("limits", {}))
    os.umask(0o077)
    os.chdir("/")
    argv = substitute(spec["argv"], spec["fds"])
    last_cap = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    program = cage.program_path(argv[0], spec["environment"].get("PATH", os.defpath))
    if shut_in := spec.get("cage"):
        cage.enter(shut_in, spec["fds"], program)
    for fd in spec["fds"].values():
        os.set_inheritable(fd, True)
    # Python and the keeper ignore these; a VMM must start with their ordinary meaning. But a write beyond its limit is
    # to be an error that the guest hears of, and no end.
    for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _drop_privileges(spec["uid"], spec["gid"], spec["groups"], spec.get("capabilities", []), last_cap=last_cap)
    # A change of uid cleared the death signal already; without one it has to be said.
    _prctl(_PR_SET_PDEATHSIG, 0)
    if os.getppid() != parent:
        raise SystemExit(1)
    if spec.get("filtered"):
        syscall_filter.install(routes=spec.get("routes", False))
    os.execve(program, argv, spec["environment"])


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
    except Exception as exc:  # silence is a success to who waits
        os.write(status_fd, f"{spec['argv'][0]}: {exc}".encode())
        raise


if __name__ == "__main__":
    main()
