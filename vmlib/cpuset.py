"""Which CPUs and memory nodes a cgroup allows, on v1 and v2; every write is read back. Knows paths, not machines."""

import errno
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from vmlib.cores.cpulist import format_cpus, parse_cpus
from vmlib.errors import HostError

PartitionKind = Literal["", "root", "isolated"]

_ISOLATED = Path("/sys/devices/system/cpu/isolated")
_SAFE_PARTITIONS = (6, 7)  # before it, a partition with an isolcpus CPU in it can bring the kernel down
_RELEASED_S = 2.0  # CPUs of a former partition come back a moment later
_POLL_S = 0.02

MEANINGS: Mapping[int, str] = {
    errno.EBUSY: "a group below has more than that",
    errno.ENOSPC: "processes are in the group and it would have none left",
    errno.EACCES: "the group above does not have all of them",
    errno.EINVAL: "not a valid list, or a group beside it holds some of them exclusively",
    errno.ERANGE: "numbers beyond what this kernel can have",
    errno.ENOENT: "the group is gone, or its controller is not enabled in the group above",
    errno.ENODEV: "the group is gone",
}
_ENABLING: Mapping[int, str] = {
    errno.EBUSY: "processes are in that group itself",
    errno.ENOENT: "the group above does not pass it on",
    errno.EOPNOTSUPP: "the group is threaded, it passes on controllers of threads only",
}


# -- files -----------------------------------------------------------------------------------------------------------


def is_v2(group: Path) -> bool:
    return (group / "cgroup.controllers").exists()


def read_value(file: Path) -> str:
    """Raises HostError."""
    try:
        return file.read_text().strip()
    except OSError as exc:
        raise HostError(f"{file}: {explain(exc, {errno.ENOENT: MEANINGS[errno.ENOENT]})}") from exc


def write_value(file: Path, text: str, meanings: Mapping[int, str] | None = None) -> None:
    """Write without reading back. "" empties the file. Raises HostError with what the kernel's refusal means."""
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode() or b"\n")  # zero bytes succeed and change nothing
        finally:
            os.close(fd)
    except OSError as exc:
        raise HostError(f"{file}: {text!r} refused: {explain(exc, meanings or {})}") from exc


def set_value(file: Path, text: str, expected: str | None = None, meanings: Mapping[int, str] | None = None) -> None:
    """Write and read back. Raises HostError."""
    write_value(file, text, meanings)
    if (found := read_value(file)) != (text if expected is None else expected):
        raise HostError(f"{file}: wrote {text!r}, found {found!r}")


def explain(exc: OSError, meanings: Mapping[int, str]) -> str:
    said = (exc.strerror or str(exc)).lower()
    meaning = meanings.get(exc.errno or 0)
    return f"{said}: {meaning}" if meaning else said


def enable(group: Path, controllers: Iterable[str], *, required: bool = True) -> None:
    """Pass controllers on to the groups below (v2). Raises HostError; unless `required`, unavailable ones are left."""
    file = group / "cgroup.subtree_control"
    on, available = (set(read_value(path).split()) for path in (file, group / "cgroup.controllers"))
    for name in controllers:
        if name in on or (name not in available and not required):
            continue
        write_value(file, f"+{name}", _ENABLING)
        if name not in read_value(file).split():
            raise HostError(f"{file}: wrote '+{name}', found {read_value(file)!r}")


# -- CPUs and memory nodes ---------------------------------------------------------------------------------------------


def read_cpus(group: Path) -> tuple[frozenset[int], frozenset[int]]:
    """What was written for the group, and what it really has. Raises HostError."""
    return _read(group, "cpus")


def read_mems(group: Path) -> tuple[frozenset[int], frozenset[int]]:
    """The same for memory nodes. Raises HostError."""
    return _read(group, "mems")


def write_cpus(group: Path, cpus: Iterable[int]) -> None:
    """Give a group exactly these CPUs; none = all that the group above has. Raises HostError when it gets others."""
    _write(group, "cpus", frozenset(cpus))


def write_mems(group: Path, nodes: Iterable[int]) -> None:
    """The same for memory nodes. In a group with processes this moves their memory, and returns when it has moved."""
    _write(group, "mems", frozenset(nodes))


def allow_all_above(group: Path, top: Path) -> None:
    """Let v1's groups from `top` down to the one above `group` have all there is, also what came back by hotplug.

    v2's have it by themselves. Raises HostError.
    """
    if is_v2(top):
        return
    for above in _from_top(group.parent, top):
        for what in ("mems", "cpus"):
            if _read(above.parent, what)[0] - _read(above, what)[0]:
                _write(above, what, frozenset())


def fill(group: Path, top: Path) -> None:
    """Let each v1 group from `top` to `group` that has no CPUs or nodes, and so takes no process, have all above it."""
    for each in _from_top(group, top):
        for what in ("mems", "cpus"):
            if not _read(each, what)[0]:
                _write(each, what, frozenset())


def _from_top(group: Path, top: Path) -> Iterator[Path]:
    yield from reversed([one for one in (group, *group.parents) if one == top or top in one.parents])


def _files(group: Path, what: str) -> tuple[Path, Path]:
    effective = group / (f"cpuset.{what}.effective" if is_v2(group) else f"cpuset.effective_{what}")
    return group / f"cpuset.{what}", effective


def _read(group: Path, what: str) -> tuple[frozenset[int], frozenset[int]]:
    configured, effective = _files(group, what)
    if not configured.exists() and is_v2(group):  # a namespace's or the host's topmost group
        found = parse_cpus(read_value(effective))
        return found, found
    return parse_cpus(read_value(configured)), parse_cpus(read_value(effective))


def _write(group: Path, what: str, wanted: frozenset[int]) -> None:
    file, effective_file = _files(group, what)
    v2 = is_v2(group)
    above = _read(group.parent, what)
    to_write = wanted if wanted or v2 else above[0]
    text = format_cpus(to_write)
    write_value(file, text, MEANINGS)
    configured, effective = _read(group, what)
    if configured != to_write:
        raise HostError(f"{file}: wrote {text!r}, found {format_cpus(configured)!r}")
    expected = to_write or above[1]
    if effective != expected:
        raise HostError(
            f"{effective_file}: wrote {text!r}, expected {format_cpus(expected)!r}, found {format_cpus(effective)!r}: "
            "some are offline or not the group's above"
        )


# -- threads (v2) ------------------------------------------------------------------------------------------------------


def thread_groups(vmm: Path, vcpus: int) -> tuple[Path, tuple[Path, ...]]:
    """Make the threaded groups below a VMM's own (v2): for the emulator's threads, and for each vCPU's.

    They keep a thread's place over whatever is done to the group above. Raises HostError.
    """
    emulator, places = thread_group_paths(vmm, vcpus)
    for group in (emulator, *places):
        try:
            group.mkdir(exist_ok=True)
        except OSError as exc:
            raise HostError(f"cgroup {group}: {explain(exc, {})}") from exc
        if read_value(group / "cgroup.type") != "threaded":
            set_value(
                group / "cgroup.type",
                "threaded",
                meanings={errno.EOPNOTSUPP: "the group above passes on controllers that threads cannot have"},
            )
    enable(vmm, ("cpuset",))
    enable(vmm, ("cpu",), required=False)
    return emulator, places


def thread_group_paths(vmm: Path, vcpus: int) -> tuple[Path, tuple[Path, ...]]:
    return vmm / "emu", tuple(vmm / f"v{index}" for index in range(vcpus))


def move_thread(group: Path, tid: int) -> bool:
    """Move a thread into a threaded group; False when the thread is gone. Raises HostError."""
    try:
        (group / "cgroup.threads").write_text(str(tid))
    except ProcessLookupError:
        return False
    except OSError as exc:
        meanings = {
            errno.EOPNOTSUPP: "its process is not in the group above, or the group is not threaded",
            errno.ENOSPC: "the group has no CPU",
        }
        raise HostError(f"cgroup {group}: thread {tid} cannot join: {explain(exc, meanings)}") from exc
    return True


# -- partitions (v2) ---------------------------------------------------------------------------------------------------


def read_partition(top: Path) -> str:
    """`member`, `root`, `isolated`, or one of these with `invalid (WHY)`; "" where there are no partitions."""
    try:
        return (top / "cpuset.cpus.partition").read_text().strip()
    except OSError:
        return ""


def set_partition(top: Path, cpus: Iterable[int], kind: PartitionKind) -> None:
    """Take CPUs away from everybody else on the host for our tree, or give them back (kind ""). Raises HostError.

    One that is so already is not touched. One that would not be valid is given back.
    """
    wanted = frozenset(cpus)
    if not kind:
        _give_back(top)
        return
    _expect_partitions(top)
    state = read_partition(top)
    if state == kind and read_cpus(top) == (wanted, wanted):
        return
    own = read_cpus(top)[1] if state else frozenset()
    problem = partition_problem(
        wanted,
        others=read_cpus(top.parent)[1] | own,
        isolated=parse_cpus(_ISOLATED.read_text()) if _ISOLATED.exists() else frozenset(),
        release=os.uname().release,
    )
    if problem:
        raise HostError(f"partition {kind} over {format_cpus(wanted)!r}: {problem}")
    if state not in ("", "member"):
        _to_member(top)
    write_cpus(top, wanted)
    write_value(top / "cpuset.cpus.partition", kind)
    if (found := read_partition(top)) != kind:  # the write itself always succeeds
        _to_member(top)
        raise HostError(f"{top / 'cpuset.cpus.partition'}: wrote {kind!r}, found {found!r}")


def partition_problem(wanted: frozenset[int], *, others: frozenset[int], isolated: frozenset[int], release: str) -> str:
    """Why a partition must not even be tried; "" when it may. `others` are the CPUs that we and the host have now."""
    if not wanted:
        return "expected at least one CPU"
    if missing := wanted - others:
        return f"CPU {format_cpus(missing)} is offline or somebody else's partition"
    if not others - wanted:
        return "the rest of the host would have no CPU"
    match = re.match(r"(\d+)\.(\d+)", release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < _SAFE_PARTITIONS and (both := wanted & isolated):
        return f"CPU {format_cpus(both)} is in isolcpus, which kernel {release} does not survive (6.7 does)"
    return ""


def _expect_partitions(top: Path) -> None:
    if not is_v2(top.parent):
        raise HostError(f"partition of {top}: expected cgroup v2 at {top.parent}")
    try:
        top.mkdir(exist_ok=True)
    except OSError as exc:
        raise HostError(f"cgroup {top}: {explain(exc, {})}") from exc
    enable(top.parent, ("cpuset",))
    if not read_partition(top):
        raise HostError(f"partition of {top}: this kernel has no cpuset.cpus.partition")


def _to_member(top: Path) -> None:
    cpus = read_cpus(top)[1]
    set_value(top / "cpuset.cpus.partition", "member")
    deadline = time.monotonic() + _RELEASED_S
    while cpus - read_cpus(top.parent)[1]:
        if time.monotonic() > deadline:
            raise HostError(f"cgroup {top}: CPU {format_cpus(cpus)} did not come back to {top.parent}")
        time.sleep(_POLL_S)


def _give_back(top: Path) -> None:
    state = read_partition(top)
    if not state:
        return
    if state != "member":
        _to_member(top)
    if read_cpus(top)[0]:
        try:
            write_cpus(top, ())
        except HostError:  # machines run in it: then it keeps a list, of all there is
            write_cpus(top, read_cpus(top.parent)[1])
