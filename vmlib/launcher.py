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

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522

_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_MS_REC = 0x4000
_MS_SLAVE = 1 << 19
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY = 1
_MOUNT_ATTR_NOSUID = 2
_MOUNT_ATTR_NODEV = 4

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int, more: int = 0) -> None:
    if _libc.prctl(option, value, more, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"prctl {option}")


class _MountAttr(ctypes.Structure):
    """struct mount_attr of mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _call(what: str, number: int, *args: Any) -> int:
    done = int(_libc.syscall(number, *args))
    if done < 0:
        code = ctypes.get_errno()
        needs = " (Linux 5.12 or later is needed)" if code == errno.ENOSYS else ""
        raise OSError(code, os.strerror(code) + needs, what)
    return done


def mount_for_ourselves(directory: int, at: str, *, readonly: bool) -> None:
    """Enter a mount namespace of our own, in which the open directory and all below it is mounted at `at`.

    The kernel refuses writes through a read-only one whatever its user does: the mount outlives every privilege that
    could change it. What the host unmounts goes away here, too.
    """
    tree = _call(
        "open_tree",
        _SYS_OPEN_TREE,
        directory,
        b"",
        ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | _AT_RECURSIVE),
    )
    attributes = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | (_MOUNT_ATTR_RDONLY if readonly else 0)
    wanted = _MountAttr(attributes, 0, _MS_SLAVE, 0)
    flags = ctypes.c_uint(_AT_EMPTY_PATH | _AT_RECURSIVE)
    _call("mount_setattr", _SYS_MOUNT_SETATTR, tree, b"", flags, ctypes.byref(wanted), ctypes.sizeof(wanted))
    for what, failed in (
        ("unshare", _libc.unshare(_CLONE_NEWNS)),
        ("mount", _libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None)),
    ):
        if failed:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), what)
    _call(
        at, _SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(at), ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
    )  # fmt: skip
    os.close(tree)


def enter_network(path: str) -> None:
    """Enter the network namespace of that file. Only its root may, so this comes before privileges are dropped."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, _CLONE_NEWNET) != 0:
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


def _drop_privileges(uid: int, gid: int, groups: list[int], kept: list[int]) -> None:
    last_cap = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    if os.geteuid() == 0:
        for cap in range(last_cap + 1):
            if cap not in kept:
                _prctl(_PR_CAPBSET_DROP, cap)
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
    if _libc.capset(header, data) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "capset")
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
    os.umask(0o077)
    os.chdir("/")
    argv = substitute(spec["argv"], spec["fds"])
    for fd in spec["fds"].values():
        os.set_inheritable(fd, True)
    # Python and the keeper ignore these; a VMM must start with their ordinary meaning.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    _drop_privileges(spec["uid"], spec["gid"], spec["groups"], spec.get("capabilities", []))
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
