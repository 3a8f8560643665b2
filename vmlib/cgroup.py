"""Our own groups on the host, beside everybody else's, behind cgroup v1, hybrid and v2 alike.

Every machine has one group for its VMM and one for its keeper in each hierarchy, so that neither belongs to the
service that started them. Processes sit in leaf groups only: a v2 group that holds processes can give no controllers
to its children.
"""

import contextlib
import errno
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vmlib.errors import HostError

_TOP_V2 = "chv.slice"
_TOP_V1 = "chv"
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_POLL_S = 0.01
_MAKE_ATTEMPTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupLayout:
    """Where our groups are to be made. `reason` says what is missing: why there are none, or not all."""

    kind: Literal["v1", "hybrid", "v2", "none"]
    tops: tuple[Path, ...] = ()  # our topmost group in each hierarchy; may not exist yet
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineGroups:
    """The groups of one machine, one for each hierarchy."""

    vmm: tuple[Path, ...] = ()
    keeper: tuple[Path, ...] = ()


def parse_layout(mountinfo: str, root: Path = Path("/sys/fs/cgroup")) -> CgroupLayout:
    """Find the hierarchies that are mounted at or beneath `root` in the text of /proc/self/mountinfo."""
    mounts: dict[Path, tuple[str, frozenset[str]]] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(rest) < 3:
            continue
        point = Path(_unescaped(fields[4]))
        if point == root or root in point.parents:
            mounts[point] = (rest[0], frozenset(rest[2].split(",")))  # a later mount hides an earlier one

    if mounts.get(root, ("",))[0] == "cgroup2":
        return CgroupLayout(kind="v2", tops=(root / _TOP_V2,))
    tops: list[Path] = []
    hierarchies: set[frozenset[str]] = set()
    unified = False
    for point, (filesystem, options) in mounts.items():
        # Without CPUs and memory nodes of its own a v1 cpuset group takes no process (ENOSPC).
        usable = filesystem == "cgroup2" or (filesystem == "cgroup" and "cpuset" not in options)
        hierarchy = frozenset({"unified"}) if filesystem == "cgroup2" else options
        if not usable or hierarchy in hierarchies:
            continue
        hierarchies.add(hierarchy)
        unified |= filesystem == "cgroup2"
        tops.append(point / _TOP_V1)
    if not tops:
        return CgroupLayout(kind="none", reason=f"no cgroup hierarchy is mounted beneath {root}")
    return CgroupLayout(kind="hybrid" if unified else "v1", tops=tuple(tops))


def read_layout(root: Path = Path("/sys/fs/cgroup"), mountinfo: Path = Path("/proc/self/mountinfo")) -> CgroupLayout:
    """The layout of this host, without the hierarchies in which we cannot make groups."""
    layout = parse_layout(mountinfo.read_text(), root)
    writable = tuple(top for top in layout.tops if os.access(top if top.exists() else top.parent, os.W_OK))
    refused = [str(top.parent) for top in layout.tops if top not in writable]
    if not refused:
        return layout
    reason = f"no groups can be made in {', '.join(refused)}"
    return CgroupLayout(kind=layout.kind if writable else "none", tops=writable, reason=reason)


def paths_for(layout: CgroupLayout, key: str) -> MachineGroups:
    """The groups of the machine `key`, which the caller makes unique on the host. None of them need exist."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"cgroup key {key!r}: expected letters, digits, '.', '_' and '-'")
    return MachineGroups(
        vmm=tuple(top / key / "vmm" for top in layout.tops),
        keeper=tuple(top / key / "keeper" for top in layout.tops),
    )


def create(paths: Iterable[Path]) -> None:
    """Make these groups and those above them; ones that exist are fine. Raises HostError."""
    for path in paths:
        _expect_ours(path)
        for attempt in range(_MAKE_ATTEMPTS):
            try:
                path.mkdir(parents=True, exist_ok=True)
                break
            except OSError as exc:
                # Whoever removes the last other group takes our topmost one away, perhaps right now.
                if exc.errno == errno.ENOENT and attempt + 1 < _MAKE_ATTEMPTS:
                    continue
                raise HostError(f"cgroup {path}: {_words(exc)}") from exc


def join(path: Path, pid: int) -> None:
    """Move a process into a group. Raises HostError."""
    _expect_ours(path)
    try:
        (path / "cgroup.procs").write_text(str(pid))
    except ProcessLookupError as exc:
        raise HostError(f"cgroup {path}: process {pid} is gone") from exc
    except OSError as exc:
        raise HostError(f"cgroup {path}: process {pid} cannot join: {_words(exc)}") from exc


def pids(path: Path) -> tuple[int, ...]:
    """The processes in a group and those below it; none when it does not exist."""
    found: set[int] = set()
    for group, _, _ in os.walk(path):
        # Gone meanwhile (ENOENT, ENODEV), or a threaded group, whose processes its domain lists (EOPNOTSUPP).
        with contextlib.suppress(OSError):
            # 0 stands for a process outside our pid namespace.
            found |= {int(line) for line in Path(group, "cgroup.procs").read_text().split()} - {0}
    return tuple(sorted(found))


def kill_all(path: Path, *, timeout_s: float = 5.0) -> None:
    """End every process in a group and wait until it is empty; a missing group is. Raises HostError."""
    _expect_ours(path)
    if os.getpid() in pids(path):
        raise HostError(f"cgroup {path}: holds this very process ({os.getpid()})")

    def kill() -> bool:
        with contextlib.suppress(OSError):  # v1, or a kernel before 5.14
            _write_existing(path / "cgroup.kill", "1")
        # What starts between two looks is found by the next.
        for pid in pids(path):
            _kill_member(path, pid)
        return not pids(path)

    if not _until(kill, timeout_s):
        raise HostError(f"cgroup {path}: still holds {_who(path)} after SIGKILL")


def remove(path: Path, *, timeout_s: float = 2.0) -> None:
    """Remove a group of ours and those below it, then those above it that are empty now. A missing one is fine.

    A group empties a moment after its last process has ended, so this waits. Raises HostError that says who is in.
    """
    _expect_ours(path)

    def removed() -> bool:
        for group, _, _ in os.walk(path, topdown=False):
            try:
                os.rmdir(group)
            except FileNotFoundError:
                continue
            except OSError as exc:
                if exc.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise HostError(f"cgroup {group}: {_words(exc)}") from exc
                return False
        return True

    if not _until(removed, timeout_s):
        raise HostError(f"cgroup {path}: cannot be removed, it still holds {_who(path)}")
    for above in _ours_above(path):
        try:
            os.rmdir(above)
        except OSError:  # another machine's group is in it, or it is gone
            break


def _ours_above(path: Path) -> Iterator[Path]:
    """The groups between `path` and our topmost one, which is the last."""
    for above in path.parents:
        yield above
        if above.name in (_TOP_V1, _TOP_V2):
            return


def _expect_ours(path: Path) -> None:
    """Guards against a wrong path from a record on disk: beneath our topmost group, or not at all."""
    if ".." in path.parts or not any(above.name in (_TOP_V1, _TOP_V2) for above in path.parents):
        raise ValueError(f"{path} is not a group of ours")


def _kill_member(path: Path, pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        # Looked up again now that the descriptor holds it: the number may have gone to a process of somebody else's.
        # PermissionError: a kernel thread of the VMM's, which goes with it.
        if pid in pids(path):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
    finally:
        os.close(fd)


def _write_existing(path: Path, text: str) -> None:
    with open(path, "r+") as file:  # "w" would make the file in a tree that is not the kernel's
        file.write(text)


def _who(path: Path) -> str:
    names = []
    for pid in pids(path):
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            name = "gone"
        names.append(f"{pid} ({name})")
    return ", ".join(names) or "no process that can be seen from here"


def _until(done: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _words(exc: OSError) -> str:
    return (exc.strerror or str(exc)).lower()
