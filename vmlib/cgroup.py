"""Our own groups on the host, beside everybody else's, behind cgroup v1, hybrid and v2 alike.

Every machine has one group for its VMM and one for its keeper in each hierarchy, so that neither belongs to the
service that started them. Processes sit in leaf groups only: a v2 group that holds processes can give no controllers
to its children; the threaded groups below a VMM's (see cpuset.py) may.
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

from vmlib import cpuset, process
from vmlib.errors import HostError
from vmlib.process import Identity

_TOP_V2 = "chv.slice"
_TOP_V1 = "chv"
_TOP = re.compile(r"chv(-[a-z0-9]+)*(\.slice)?")
_MARK = "trusted.chv"  # an extended attribute, as systemd has them on its own groups
_HOLDER = "trusted.chv-holder"
_CPUSET_FILES = ("cpuset.cpus", "cpuset.cpus.partition", "*/*/cpuset.cpus", "*/vmm/cpuset.mems", "*/vmm/*/cpuset.cpus")
_CONTROLLERS = ("cpuset", "cpu", "memory", "pids")
_SHARES = (2, 262144)  # v1's least and most
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_POLL_S = 0.01
_MAKE_ATTEMPTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupLayout:
    """Where our groups are to be made. `reason` says what is missing: why there are none, or not all."""

    kind: Literal["v1", "hybrid", "v2", "none"]
    tops: tuple[Path, ...] = ()  # our topmost group in each hierarchy; may not exist yet
    unified: Path | None = None  # the one of v2 among them
    # The one in which the controller is to be used; None when the host has none or we may not.
    cpuset: Path | None = None
    cpu: Path | None = None
    memory: Path | None = None
    pids: Path | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineGroups:
    """The groups of one machine: one for its VMM and one for its keeper in each hierarchy."""

    vmm: tuple[Path, ...] = ()
    keeper: tuple[Path, ...] = ()
    # The one among them in which the controller is; None when there is none.
    cpuset: Path | None = None
    keeper_cpuset: Path | None = None
    cpu: Path | None = None
    memory: Path | None = None
    pids: Path | None = None
    threaded: bool = False  # threads may have CPU sets of their own, in groups below the VMM's


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a VMM may use of its host beside CPUs; None = no limit."""

    memory_bytes: int | None = None
    pids: int | None = None  # threads count
    cpu_shares: int | None = None  # v1's measure on every host: 2 to 262144, such as MHz


# -- layout ----------------------------------------------------------------------------------------------------------


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
        top = root / _TOP_V2
        return CgroupLayout(kind="v2", tops=(top,), unified=top, cpuset=top, cpu=top, memory=top, pids=top)
    tops: dict[frozenset[str], Path] = {}
    for point, (filesystem, options) in mounts.items():
        if filesystem == "cgroup2":
            tops.setdefault(frozenset({"unified"}), point / _TOP_V1)
        elif filesystem == "cgroup":
            tops.setdefault(options, point / _TOP_V1)
    if not tops:
        return CgroupLayout(kind="none", reason=f"no cgroup hierarchy is mounted beneath {root}")
    unified = tops.get(frozenset({"unified"}))
    by_controller = {name: top for options, top in tops.items() for name in _CONTROLLERS if name in options}
    return CgroupLayout(
        kind="v1" if unified is None else "hybrid",
        tops=tuple(tops.values()),
        unified=unified,
        cpuset=by_controller.get("cpuset"),
        cpu=by_controller.get("cpu"),
        memory=by_controller.get("memory"),
        pids=by_controller.get("pids"),
    )


def read_layout(root: Path = Path("/sys/fs/cgroup"), mountinfo: Path = Path("/proc/self/mountinfo")) -> CgroupLayout:
    """The layout of this host, without the hierarchies and controllers that we cannot use."""
    layout = parse_layout(mountinfo.read_text(), root)
    if not layout.tops:
        return layout
    tops = tuple(top for top in layout.tops if os.access(top if top.exists() else top.parent, os.W_OK))
    unified = layout.unified if layout.unified in tops else None
    offered: list[str] = []
    if unified is not None:
        with contextlib.suppress(OSError):
            offered = (unified.parent / "cgroup.controllers").read_text().split()
    found: dict[str, Path | None] = {}
    for name in _CONTROLLERS:
        top = getattr(layout, name)
        if top is None or top == unified:  # a hybrid host may have left it to v2
            top = unified if name in offered else None
        found[name] = top if top in tops else None
    reasons = []
    if refused := [str(top.parent) for top in layout.tops if top not in tops]:
        reasons.append(f"no groups can be made in {', '.join(refused)}")
    if tops and (missing := [name for name, top in found.items() if top is None]):
        reasons.append(f"cgroup controllers that cannot be used: {', '.join(missing)}")
    return CgroupLayout(
        kind=layout.kind if tops else "none",
        tops=tops,
        unified=unified,
        cpuset=found["cpuset"],
        cpu=found["cpu"],
        memory=found["memory"],
        pids=found["pids"],
        reason="; ".join(reasons),
    )


def paths_for(layout: CgroupLayout, key: str, *, top: str = "") -> MachineGroups:
    """The groups of the machine `key`, which the caller makes unique on the host. None of them need exist.

    `top` names another topmost group of ours than `chv`, such as `chv-cores`.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"cgroup key {key!r}: expected letters, digits, '.', '_' and '-'")
    if top and not _TOP.fullmatch(top):
        raise ValueError(f"topmost cgroup {top!r}: expected chv, or chv-NAME")

    def leaf(ours: Path | None, name: str) -> Path | None:
        if ours is None:
            return None
        return (ours.with_name(top.removesuffix(".slice") + ours.suffix) if top else ours) / key / name

    return MachineGroups(
        vmm=tuple(path for each in layout.tops if (path := leaf(each, "vmm"))),
        keeper=tuple(path for each in layout.tops if (path := leaf(each, "keeper"))),
        cpuset=leaf(layout.cpuset, "vmm"),
        keeper_cpuset=leaf(layout.cpuset, "keeper"),
        cpu=leaf(layout.cpu, "vmm"),
        memory=leaf(layout.memory, "vmm"),
        pids=leaf(layout.pids, "vmm"),
        threaded=layout.cpuset is not None and layout.cpuset == layout.unified,
    )


# -- making ----------------------------------------------------------------------------------------------------------


def create(paths: Iterable[Path]) -> None:
    """Make these groups and those above them, so that they take processes; ones that exist are fine.

    Raises HostError.
    """
    for path in paths:
        _expect_ours(path)
        _make(path)
        if (path / "cpuset.cpus").exists() and not cpuset.is_v2(path):
            cpuset.fill(path, _top_of(path))


def prepare(
    groups: MachineGroups,
    *,
    limits: Limits,
    cpus: Iterable[int] = (),
    mems: Iterable[int] = (),
    keeper_cpus: Iterable[int] = (),
    mark: str = "",
) -> None:
    """Make a machine's groups with all that its processes may use, before there are any. Raises HostError.

    They bear the `mark`, where this host lets us. Every write is read back. Empty `cpus`, `mems` or `keeper_cpus` stand
    for all that there is. What a host without the controller cannot limit is not limited; the layout's `reason` names
    it.
    """
    leaves = (*groups.vmm, *groups.keeper)
    for path in leaves:
        _expect_ours(path)
        _make(path)
    for group in {path.parent for path in leaves} if mark else ():
        with contextlib.suppress(OSError):  # not root, or a kernel without: they are then found by journal and record
            os.setxattr(group, _MARK, mark.encode())
    _pass_on(groups)
    if groups.cpuset is not None and groups.keeper_cpuset is not None:
        for leaf, own in ((groups.cpuset, frozenset(cpus)), (groups.keeper_cpuset, frozenset(keeper_cpus))):
            cpuset.allow_all_above(leaf, _top_of(leaf))
            nodes = frozenset(mems) if leaf == groups.cpuset else frozenset()
            if cpuset.is_v2(leaf):
                cpuset.write_cpus(leaf, own)
                cpuset.write_mems(leaf, nodes)
            else:
                cpuset.write_mems(leaf, nodes)
                cpuset.write_cpus(leaf, own)
    _limit(groups, limits)


def marked(key: str = "*") -> list[tuple[Path, str]]:
    """Every group of a machine that bears a mark, in each hierarchy, and the mark; with a `key` only that machine's."""
    found = []
    for ours in read_layout().tops:
        for top in filter(lambda path: _TOP.fullmatch(path.name), sorted(ours.parent.glob("chv*"))):
            for group in sorted(top.glob(key)):
                with contextlib.suppress(OSError):  # none, no group, or gone meanwhile
                    found.append((group, os.getxattr(group, _MARK).decode(errors="replace")))
    return found


def hold(top: Path, who: Identity, data_dir: Path) -> None:
    """Note on our topmost group for whom it is a partition. A kernel that takes no note lets any of ours have it."""
    words = f"{who.pid} {who.start_time} {data_dir}".encode()
    with contextlib.suppress(OSError):
        if _attribute(top, _HOLDER) != words:
            os.setxattr(top, _HOLDER, words)


def held_by_other(top: Path, data_dir: Path) -> Path | None:
    """The data directory of the living process that holds that partition, when it is not `data_dir`."""
    try:
        pid, start_time, directory = _attribute(top, _HOLDER).decode(errors="replace").split(" ", 2)
        who = Identity(int(pid), int(start_time))
    except (OSError, ValueError):
        return None
    return Path(directory) if Path(directory) != data_dir and process.alive(who) else None


def cpuset_files(layout: CgroupLayout) -> list[Path]:
    """What can be written to take a machine off its CPUs and memory nodes: its groups', and those of its threads."""
    if layout.cpuset is None:
        return []
    tops = filter(lambda path: _TOP.fullmatch(path.name), sorted(layout.cpuset.parent.glob("chv*")))
    return [file for top in tops for pattern in _CPUSET_FILES for file in sorted(top.glob(pattern))]


def _attribute(path: Path, name: str) -> bytes:
    """Empty when it has none. Raises OSError."""
    try:
        return os.getxattr(path, name)
    except OSError as exc:
        if exc.errno != errno.ENODATA:
            raise
        return b""


def weight_of(shares: int) -> int:
    """v2's cpu.weight (1 to 10000) for v1's shares."""
    least, most = _SHARES
    return 1 + (min(max(shares, least), most) - least) * 9999 // (most - least)


def oom_kills(memory_group: Path) -> int:
    """How many processes of a group the kernel has killed for want of memory. Raises HostError."""
    file = memory_group / ("memory.events" if cpuset.is_v2(memory_group) else "memory.oom_control")
    counts = dict(line.split(" ", 1) for line in cpuset.read_value(file).splitlines() if " " in line)
    return int(counts.get("oom_kill", 0))


def _make(path: Path) -> None:
    for attempt in range(_MAKE_ATTEMPTS):
        try:
            path.mkdir(parents=True, exist_ok=True)
            return
        except OSError as exc:
            # Whoever removes the last other group takes our topmost one away, perhaps right now.
            if exc.errno == errno.ENOENT and attempt + 1 < _MAKE_ATTEMPTS:
                continue
            raise HostError(f"cgroup {path}: {_words(exc)}") from exc


def _pass_on(groups: MachineGroups) -> None:
    """On v2 a group's files are there when every group above it passes the controller on."""
    wanted: dict[Path, list[str]] = {}
    # The keeper's group may lie below another topmost one.
    for name, leaf in (*((name, getattr(groups, name)) for name in _CONTROLLERS), ("cpuset", groups.keeper_cpuset)):
        if leaf is not None and cpuset.is_v2(leaf):
            wanted.setdefault(leaf, []).append(name)
    for leaf, names in wanted.items():
        top = _top_of(leaf)
        # Our topmost group passes them on as well: the kernel then refuses to take them from it (EBUSY).
        for above in (top.parent, top, leaf.parent):
            cpuset.enable(above, names)


def _limit(groups: MachineGroups, limits: Limits) -> None:
    if groups.memory is not None and limits.memory_bytes is not None:
        file = "memory.max" if cpuset.is_v2(groups.memory) else "memory.limit_in_bytes"
        whole_pages = limits.memory_bytes // _PAGE_BYTES * _PAGE_BYTES
        cpuset.set_value(groups.memory / file, str(whole_pages))
    if groups.pids is not None and limits.pids is not None:
        cpuset.set_value(groups.pids / "pids.max", str(limits.pids))
    if groups.cpu is not None and limits.cpu_shares is not None:
        if cpuset.is_v2(groups.cpu):
            cpuset.set_value(groups.cpu / "cpu.weight", str(weight_of(limits.cpu_shares)))
        else:
            least, most = _SHARES
            cpuset.set_value(groups.cpu / "cpu.shares", str(min(max(limits.cpu_shares, least), most)))


# -- members ---------------------------------------------------------------------------------------------------------


def join(path: Path, pid: int) -> None:
    """Move a process into a group. Raises HostError."""
    _expect_ours(path)
    try:
        (path / "cgroup.procs").write_text(str(pid))
    except ProcessLookupError as exc:
        raise HostError(f"cgroup {path}: process {pid} is gone") from exc
    except OSError as exc:
        why = ": the group has no CPU or no memory node" if exc.errno == errno.ENOSPC else ""
        raise HostError(f"cgroup {path}: process {pid} cannot join: {_words(exc)}{why}") from exc


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
        if cpuset.read_partition(above) not in ("", "member"):
            break  # it keeps its CPUs from others while no machine is there, too
        try:
            os.rmdir(above)
        except OSError:  # another machine's group is in it, or it is gone
            break


def _ours_above(path: Path) -> Iterator[Path]:
    """The groups between `path` and our topmost one, which is the last."""
    for above in path.parents:
        yield above
        if _TOP.fullmatch(above.name):
            return


def _top_of(path: Path) -> Path:
    *_, top = _ours_above(path)
    return top


def _expect_ours(path: Path) -> None:
    """Guards against a wrong path from a record on disk: beneath our topmost group, or not at all."""
    if ".." in path.parts or not any(_TOP.fullmatch(above.name) for above in path.parents):
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
